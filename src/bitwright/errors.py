"""Exceptions of Bitwright and the exit codes that the command line gives them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BitwrightError(Exception):
    """Base of every error that Bitwright raises on purpose; the message is one sentence for the user."""

    exit_code = 3


class CheckError(BitwrightError):
    """A check of the result failed (verification, a claim, strict mode); exit code 1."""

    exit_code = 1


class InputError(BitwrightError):
    """The input or the place is wrong (bad file, unknown key, full disk); exit code 2."""

    exit_code = 2


def nearest_key(word: str, valid: Iterable[str]) -> str:
    """Return a clause that names the valid key nearest to ``word``, or lists all of them.

    Used at the end of an :class:`InputError`, e.g. ``did you mean 'gptq'?``.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(names)}"
