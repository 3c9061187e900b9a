"""A progress bar with the time left, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def job_progress() -> Iterator[Callable[[str, int, int, float], None]]:
    """Yield ``report(unit, done, total, share of the unit)``; nothing is drawn where standard error is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("opening", total=1.0)

        def report(unit: str, done: int, total: int, share: float) -> None:
            completed = done + (share if share < 1.0 else 0.0)
            bar.update(task, description=unit, total=float(total), completed=completed)

        yield report
