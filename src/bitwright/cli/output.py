"""What a command prints: tables for people, or exactly one JSON value on standard output under ``--json``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from types import TracebackType
from typing import TextIO

from pydantic_core import to_json
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

FORMAT_VERSION = 1
UNBOUNDED = 1 << 16
"""Columns of a page without an edge."""


def error_console() -> Console:
    """A console on standard error that does not break lines of piped output."""
    return Console(stderr=True, soft_wrap=True)


def page(stderr: bool = False) -> Console:
    """A console that keeps to a terminal's width; piped output has none, so nothing of it is folded or cut."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, soft_wrap=True, width=UNBOUNDED)


class Output(AbstractContextManager["Output"]):
    """Where a command prints. Use it as ``with Output(json) as out``.

    For people (``json`` false): :meth:`show` and :meth:`table` print on standard output, :meth:`result` prints nothing.
    For programs (``json`` true): :meth:`result` prints one JSON value on standard output, and everything else that
    writes to ``sys.stdout`` inside the ``with`` block goes to standard error, also the prints of other libraries.
    """

    def __init__(self, json: bool) -> None:
        self.json = json
        self._stdout: TextIO = sys.stdout
        self._redirect: redirect_stdout[TextIO] | None = None
        self._printed = False
        self.console = page(stderr=json)

    def __enter__(self) -> Output:
        if self.json:
            self._redirect = redirect_stdout(sys.stderr)
            self._redirect.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._redirect is not None:
            self._redirect.__exit__(kind, error, trace)
            self._redirect = None

    def show(self, thing: RenderableType) -> None:
        """Print text or a rich renderable for a person; under ``--json`` it goes to standard error."""
        self.console.print(thing)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        title: str | None = None,
        note: str | None = None,
    ) -> None:
        """Print a table; numbers are aligned to the right and floats get four significant digits."""
        self.console.print(build_table(columns, rows, title))
        if note:
            self.console.print(Text(note, style="dim"))

    def result(self, value: Mapping[str, object] | Sequence[object]) -> None:
        """Print the result as one JSON value under ``--json`` (dataclasses and paths are converted, NaN is null).

        A mapping gets the key ``format_version``. May be called once only.
        """
        if not self.json:
            return
        if self._printed:
            raise RuntimeError("a command prints one JSON value only")
        self._printed = True
        if isinstance(value, Mapping):
            value = {"format_version": FORMAT_VERSION, **value}
        self._stdout.write(to_json(value, inf_nan_mode="null").decode() + "\n")
        self._stdout.flush()


def build_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> Table:
    """A rich table of ``rows``; a column whose first filled cell is a number is aligned to the right."""
    cells = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for place, name in enumerate(columns):
        filled = (row[place] for row in cells if row[place] is not None)
        number = isinstance(next(filled, None), int | float)
        table.add_column(name, justify="right" if number else "left")
    for row in cells:
        table.add_row(*(Text(cell_text(cell)) for cell in row))
    return table


def cell_text(value: object) -> str:
    """Text of one cell: floats with four significant digits, ``-`` for nothing, ``yes``/``no`` for truth values."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def bytes_text(count: int | float) -> str:
    """A number of bytes in decimal units, as the design counts them: ``1.5 GB`` is 1.5e9 bytes."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
