"""What the commands do, as functions that return their JSON form."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bitwright.errors import InputError
from bitwright.jobs.journal import recorded_machine
from bitwright.jobs.output import REQUEST_NAME, working_folder
from bitwright.jobs.report import report_values
from bitwright.jobs.request import Request, build_job
from bitwright.jobs.run import Progress, no_progress, run
from bitwright.jobs.workers import HERE, Workers

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size(text: str) -> int:
    """``2GB`` in bytes (powers of ten; ``GiB`` powers of two); empty is 0.

    Raises:
        InputError: if it is no size.
    """
    if not text:
        return 0
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise InputError(f"{text!r} is no size; write e.g. 2GB or 512MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def quantize_request(
    request: Request, progress: Progress = no_progress, check: bool = True, workers: Workers = HERE
) -> dict[str, Any]:
    """Run a request into its folder and return the summary that ``--json`` prints.

    Raises:
        InputError: for wrong input; CheckError: if the result does not verify.
    """
    if not request.out:
        raise InputError("an output folder is needed; give --out DIR")
    if Path(request.out).exists():  # said before minutes of reading data; the run checks it again
        raise InputError(f"{request.out} exists already; choose another --out or remove it")
    job = replace(build_job(request), verify=check, fresh_process=True, workers=workers)
    result = run(job, progress)
    return {
        "out": request.out,
        "recipe": job.recipe.name,
        "bits_per_weight": result.bits_per_weight,
        "bytes": sum(p.stat().st_size for p in Path(request.out).glob("*.safetensors")),
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "resumed_units": result.resumed,
        "events": [asdict(e) for e in result.events],
        "experts": report_values(result)["experts"],
        "verified": result.verification["text"] if result.verification is not None else False,
    }


def interrupted_request(folder: Path) -> Request:
    """The request of an interrupted job.

    Raises:
        InputError: if the folder holds none, or the job was finished.
    """
    work = _work_of(folder)
    path = work / REQUEST_NAME
    if not path.is_file():
        finished = " (the job is finished)" if folder.is_dir() and not folder.name.endswith(".partial") else ""
        raise InputError(f"{work} holds no interrupted job{finished}; give the --out folder of one")
    request = Request.from_json(path.read_text(encoding="utf-8", errors="replace"))
    # The folder may have been named from another place than the one where the job was started.
    return replace(request, out=str(work.with_name(work.name.removesuffix(".partial"))))


def interrupted_threads(folder: Path) -> int | None:
    """With how many threads an interrupted job ran: sums come out alike, to the last bit, with as many only."""
    threads = recorded_machine(_work_of(folder)).get("threads")
    return threads if isinstance(threads, int) and threads > 0 else None


def _work_of(folder: Path) -> Path:
    return folder if folder.name.endswith(".partial") else working_folder(folder)
