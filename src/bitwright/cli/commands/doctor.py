"""``bitwright doctor``: what is installed and what this machine can do."""

from __future__ import annotations

import platform
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from bitwright import __version__, machine, native
from bitwright.cli.options import Json, Threads, use_threads
from bitwright.cli.output import Output, bytes_text
from bitwright.cli.requirements import Requirement, requirements
from bitwright.errors import InputError


@dataclass(frozen=True)
class Extra:
    """One optional part of Bitwright: whether all it asks for is installed, and what is missing."""

    complete: bool
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Gpu:
    """One CUDA device."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class CompiledKernels:
    """Whether compiled kernels are installed; why not; instruction sets that run here, and the one that is used."""

    installed: bool
    reason: str | None
    instruction_sets: tuple[str, ...]
    chosen: str | None


@dataclass(frozen=True)
class Diagnosis:
    """All that ``bitwright doctor`` finds; its fields are the keys of ``--json``. None: not installed or unknown."""

    bitwright: str
    python: str
    platform: str
    packages: dict[str, str | None]
    extras: dict[str, Extra]
    kernels: tuple[str, ...]
    compiled_kernels: CompiledKernels
    cpu: machine.Processor
    threads: int
    memory_bytes: int | None
    memory_available_bytes: int | None
    read_bandwidth_bytes_per_second: float
    disk_free_bytes: dict[str, int]
    gpus: tuple[Gpu, ...]


def command(json: Json = False, threads: Threads = None) -> None:
    """Show versions, extras, kernels, memory, instruction sets and the measured read bandwidth."""
    with Output(json) as out:
        wanted = requirements()
        found = diagnose(wanted, use_threads(threads))
        out.result(asdict(found))
        if not json:
            print_diagnosis(found, out)
        absent = [need.name for need in wanted if need.extra is None and need.installed is None]
        if absent:
            raise InputError(f"{', '.join(absent)} not installed; run: pip install bitwright")


def diagnose(wanted: tuple[Requirement, ...], threads: int) -> Diagnosis:
    """Look at the installation and measure the machine; takes about a second."""
    cpu, memory = machine.processor(), machine.memory()
    places = (Path.cwd(), Path(tempfile.gettempdir()))
    return Diagnosis(
        bitwright=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages={need.name: need.installed for need in wanted},
        extras=extras(wanted),
        kernels=registered_kernels(),
        compiled_kernels=compiled_kernels(),
        cpu=cpu,
        threads=threads,
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        read_bandwidth_bytes_per_second=machine.read_bandwidth(),
        disk_free_bytes={str(place): machine.disk_free(place) for place in places},
        gpus=gpus(),
    )


def extras(wanted: tuple[Requirement, ...]) -> dict[str, Extra]:
    """The extras that ask for something, in alphabetical order."""
    absent: dict[str, list[str]] = {}
    for need in wanted:
        if need.extra is not None:
            names = absent.setdefault(need.extra, [])
            if need.installed is None:
                names.append(need.name)
    return {name: Extra(not absent[name], tuple(absent[name])) for name in sorted(absent)}


def registered_kernels() -> tuple[str, ...]:
    """Names of the kernels in the default table, ``operation/implementation``."""
    from bitwright.runtime.kernels.table import TABLE

    return tuple(kernel.name for kernel in TABLE.kernels)


def compiled_kernels() -> CompiledKernels:
    """What :mod:`bitwright.native` finds."""
    reason, sets = native.unavailable(), native.instruction_sets()
    return CompiledKernels(reason is None, reason, sets, sets[0] if sets else None)


def gpus() -> tuple[Gpu, ...]:
    """CUDA devices that torch sees."""
    import torch

    properties = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return tuple(Gpu(device.name, device.total_memory) for device in properties)


def print_diagnosis(found: Diagnosis, out: Output) -> None:
    """Print the three tables for people: machine, packages, extras."""
    share = "" if found.memory_available_bytes is None else f", {bytes_text(found.memory_available_bytes)} free"
    memory = "unknown" if found.memory_bytes is None else bytes_text(found.memory_bytes) + share
    rows: list[tuple[str, str]] = [
        ("bitwright", f"{found.bitwright} on Python {found.python}, {found.platform}"),
        ("processor", f"{found.cpu.name} ({found.cpu.architecture}), {found.cpu.cores} cores, {found.threads} threads"),
        ("instruction sets", " ".join(found.cpu.instruction_sets) or "unknown"),
        ("memory", memory),
        ("read bandwidth", f"{bytes_text(found.read_bandwidth_bytes_per_second)}/s measured"),
        *((f"free in {place}", bytes_text(free)) for place, free in found.disk_free_bytes.items()),
        *((f"GPU {index}", f"{gpu.name}, {bytes_text(gpu.memory_bytes)}") for index, gpu in enumerate(found.gpus)),
        ("kernels", ", ".join(found.kernels) or "none registered"),
        ("compiled kernels", compiled_text(found.compiled_kernels)),
    ]
    out.table(["machine", ""], rows)
    out.table(["package", "version"], [(name, version or "not installed") for name, version in found.packages.items()])
    rows = [(name, "ready" if x.complete else f"missing {', '.join(x.missing)}") for name, x in found.extras.items()]
    out.table(["extra", "state"], rows, note="install an extra with: pip install 'bitwright[NAME]'")


def compiled_text(found: CompiledKernels) -> str:
    """One line for people."""
    if not found.installed:
        return f"no, products run on torch: {found.reason}"
    others = ", ".join(found.instruction_sets[1:])
    return f"yes, for {found.chosen}" + (f" (also here: {others})" if others else "")
