"""What machine this is: cores, instruction sets, memory, disk and measured read bandwidth.

Read from the operating system when asked, never at import. Memory and cores are what this process may use (container
limits and CPU affinity count), not what the hardware has.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# The instruction sets that a low-bit kernel can be written for; other flags say nothing about our speed.
_KERNEL_SETS = (
    "ssse3", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_vbmi", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "fphp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip

# M_MMAP_THRESHOLD of glibc's malloc.h.
_MMAP_THRESHOLD = -3


@dataclass(frozen=True)
class Processor:
    """The CPU: its name, the cores this process may use, and the instruction sets that kernels care about."""

    name: str
    architecture: str
    cores: int
    instruction_sets: tuple[str, ...]


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes: what this process may use at most, and what is free now (None where unknown)."""

    total: int | None
    available: int | None


def processor() -> Processor:
    """Read the CPU from ``/proc/cpuinfo`` where it exists, else from :mod:`platform`."""
    fields = _cpu_fields(_read("/proc/cpuinfo"))
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    if not flags and platform.machine() in {"arm64", "aarch64"}:
        flags = {"asimd"}  # part of every 64-bit ARM
    return Processor(
        name=fields.get("model name") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        cores=usable_cores(),
        instruction_sets=tuple(name for name in _KERNEL_SETS if name in flags),
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> Memory:
    """Memory that this process may use: the machine's, or the container's limit where that is lower."""
    total, available = _machine_memory()
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit():
        total = int(limit) if total is None else min(total, int(limit))
        used = _read("/sys/fs/cgroup/memory.current").strip()
        if used.isdigit():
            room = max(int(limit) - int(used), 0)
            available = room if available is None else min(available, room)
    return Memory(total, available)


def disk_free(path: Path) -> int:
    """Free bytes on the disk of ``path``, or of its nearest parent that exists."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def read_bandwidth(seconds: float = 0.5, size: int = 1 << 28) -> float:
    """Measured speed of reading main memory, in bytes per second, with torch's current threads.

    The best pass of a sum over ``size`` bytes (larger than the caches of most CPUs) within about ``seconds``. It is
    what a kernel that reads every weight once can hope for, so ``bytes / bandwidth`` bounds the time of a token.
    """
    import torch

    values = torch.ones(size // 4, dtype=torch.float32)
    best = float("inf")
    end = time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        values.sum()
        best = min(best, time.perf_counter() - start)
    return values.nbytes / best


def _machine_memory() -> tuple[int | None, int | None]:
    kilobytes = {}
    for line in _read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdigit():
            kilobytes[name] = int(number[0])
    if "MemTotal" in kilobytes:
        free = kilobytes.get("MemAvailable")
        return kilobytes["MemTotal"] * 1024, None if free is None else free * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    except (AttributeError, ValueError, OSError):
        return None, None


def _cpu_fields(text: str) -> dict[str, str]:
    """The ``name: value`` lines of the first processor in a ``/proc/cpuinfo``."""
    first = text.strip().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def return_free_memory() -> None:
    """Give what this process has freed back to the system, where the C library can (glibc).

    Freed tensors below 32 MB stay with the process otherwise: piled up over the layers of a model they were measured
    to make two thirds of a job's memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def keep_large_blocks_apart(smallest: int = 1 << 17) -> None:
    """Let blocks of ``smallest`` bytes and more leave this process as soon as they are freed, where glibc allows it.

    Its own threshold starts at 128 KiB, the default here, and rises to 32 MB with the first large tensor that is
    freed. What is freed below it then stays in the heap, between what is in use: it was measured to add up to three
    quarters to a job's peak, differently in every run, and no time was lost without it. The setting holds for the rest
    of the process.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, smallest)
