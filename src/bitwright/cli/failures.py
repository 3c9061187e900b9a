"""From an exception to one sentence on standard error and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback

import typer
from rich.text import Text

from bitwright.cli.output import error_console
from bitwright.cli.requirements import extra_for
from bitwright.errors import CheckError, InputError

INPUT, INTERNAL, INTERRUPTED, PIPE_CLOSED = 2, 3, 130, 141

# What to do about an operating-system error that the place or the input causes, not a bug of ours.
_MENDS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the file would be larger than allowed (ulimit -f, or the file system); choose another --out",
    errno.EIO: "the disk fails; check it and run the same command again",
    errno.EROFS: "the file system is read-only; choose another --out",
    errno.EACCES: "permission denied; choose another place or change its permissions",
    errno.EPERM: "the operation is not permitted; choose another place or change its permissions",
    errno.ENOENT: "there is no such file or folder; check the path",
    errno.ENOTDIR: "a part of the path is a file; check the path",
    errno.EISDIR: "a file was expected but this is a folder; check the path",
    errno.EEXIST: "it exists already; choose another --out or remove it",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter one",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
}


def report_failure(failure: BaseException) -> int:
    """Say on standard error what went wrong and return the exit code.

    1 for a failed check, 2 where the input or the place is wrong, 3 for anything else (the traceback goes to a log
    file), 130 when interrupted, 141 when the reader of our output has gone. ``SystemExit`` keeps its own code.
    """
    if isinstance(failure, typer.Abort) and failure.__cause__ is not None:
        failure = failure.__cause__  # typer wraps an EOFError; in our code that is a broken file
    if isinstance(failure, SystemExit):
        return failure.code if isinstance(failure.code, int) else INTERNAL
    if isinstance(failure, BrokenPipeError):
        # The interpreter flushes standard output at exit; without this it would complain about the closed pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
        return PIPE_CLOSED
    expected = _sentence(failure)
    if expected is None:
        _say(f"internal error: {_one_line(failure)}; this is a bug of Bitwright, please report it. {_log(failure)}")
        return INTERNAL
    sentence, code = expected
    _say(sentence if code == INTERRUPTED else f"error: {sentence}")
    return code


def _sentence(failure: BaseException) -> tuple[str, int] | None:
    """The sentence and exit code of an error that is not a bug, else None."""
    if isinstance(failure, KeyboardInterrupt | typer.Abort):
        return "interrupted; the same command continues a job that writes a folder", INTERRUPTED
    if isinstance(failure, InputError | CheckError):
        return str(failure), failure.exit_code
    if isinstance(failure, typer.TyperException):
        return _usage(failure), INPUT
    if isinstance(failure, OSError) and failure.errno in _MENDS:
        return _place(failure), INPUT
    if isinstance(failure, MemoryError):
        return "the memory is used up; close other programs or lower the memory cap", INPUT
    if isinstance(failure, ModuleNotFoundError) and failure.name:
        missing = extra_for(failure.name.split(".")[0])
        if missing:
            return f"{failure.name} is not installed; run: pip install 'bitwright[{missing}]'", INPUT
    return None


def _usage(failure: typer.TyperException) -> str:
    context = getattr(failure, "ctx", None)
    mend = f"; see: {context.command_path} --help" if context is not None else ""
    return failure.format_message().rstrip(".") + mend


def _place(failure: OSError) -> str:
    where = f"{failure.filename}: " if failure.filename else ""
    return where + _MENDS[failure.errno or 0]


def _one_line(failure: BaseException) -> str:
    text = " ".join(str(failure).split())
    name = type(failure).__name__
    return f"{name}: {text}" if text else name


def _log(failure: BaseException) -> str:
    """Write the traceback to a new file in the temporary folder; return a sentence that says where it is."""
    trace = "".join(traceback.format_exception(failure))
    try:
        handle, path = tempfile.mkstemp(prefix="bitwright-error-", suffix=".log", text=True)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(trace)
    except OSError:
        sys.stderr.write(trace)
        return "The traceback is above"
    return f"The traceback is in {path}"


def _say(sentence: str) -> None:
    error_console().print(Text(sentence, style="bold red"))
