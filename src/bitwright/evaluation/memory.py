"""Peak anonymous memory of a stretch of work; memory-mapped files are not counted, as the kernel can drop them."""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")


@dataclass
class PeakMemory:
    """``start`` and ``peak`` in bytes; ``method`` says how they were read. Filled while the context is open."""

    start: int
    peak: int
    method: str

    @property
    def above_start(self) -> int:
        """Bytes above the start."""
        return max(0, self.peak - self.start)


def anonymous_bytes() -> int | None:
    """Return the resident anonymous memory of this process, or None where the system does not tell."""
    try:
        for line in STATUS.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _resident_peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def peak_memory(interval: float = 0.01) -> Iterator[PeakMemory]:
    """Watch the memory of the process while the block runs.

    A thread samples the anonymous resident memory every ``interval`` seconds. Where the system does not report it, the
    process's largest resident size since its birth is used (files count there, and an earlier peak hides a later one).
    """
    start = anonymous_bytes()
    if start is None:
        first = _resident_peak()
        result = PeakMemory(first, first, "largest resident size of the process")
        try:
            yield result
        finally:
            result.peak = _resident_peak()
        return
    result = PeakMemory(start, start, f"anonymous resident memory, sampled every {interval * 1000:.0f} ms")
    done = threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            result.peak = max(result.peak, anonymous_bytes() or 0)

    thread = threading.Thread(target=watch, name="bitwright-memory", daemon=True)
    thread.start()
    try:
        yield result
    finally:
        done.set()
        thread.join()
        result.peak = max(result.peak, anonymous_bytes() or 0)
