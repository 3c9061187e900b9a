"""API keys, and who may go without one."""

from __future__ import annotations

from pathlib import Path

from bitwright.errors import InputError

LEAST = 8
"""Characters of the shortest key."""


def read_keys(given: str | None, file: Path | None) -> tuple[str, ...]:
    """The key of the command line and those of a file, one per line; lines that begin with ``#`` are comments.

    Raises:
        InputError: for a key that is short or has spaces or signs beyond ASCII, or a file without a key.
    """
    keys = [] if given is None else [given.strip()]
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: is no text file; write one key per line") from error
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise InputError(f"{file}: has no key; write one per line")
        keys += found
    for key in keys:
        if len(key) < LEAST or not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(f"an API key needs {LEAST} or more ASCII characters without spaces; choose another")
    return tuple(keys)


def check_open(local: bool, keys: tuple[str, ...], without: bool) -> None:
    """Refuse to serve everybody by mistake.

    Raises:
        InputError: for an address that others reach, without a key and without ``--no-api-key``.
    """
    if without and keys:
        raise InputError("--no-api-key and a key contradict each other; give one of them")
    if not local and not keys and not without:
        raise InputError("others can reach this address; give --api-key-file, or --no-api-key if everybody may ask")
