"""One writer at a time for a folder that is being made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bitwright.errors import InputError


@contextmanager
def only_writer(work: Path, out: Path, who: str) -> Iterator[None]:
    """Keep others out of ``work``, the folder in which ``who`` ("job", "export") makes ``out``.

    The lock is a file beside the folder; the system frees it when its holder is killed.

    Raises:
        InputError: if another one holds it, or the place cannot be written.
    """
    lock = FileLock(f"{work}.lock")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another {who} is writing {out}; wait for it or choose another --out") from None
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}); choose another --out") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
