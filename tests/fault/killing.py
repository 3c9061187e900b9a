"""Kills a forked job at a chosen step: before its n-th write, sync, rename, removal or journal line, or in the middle.

Shared by the tests and ``benchmarks/kills.py``.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitwright.jobs import Job, run
from bitwright.jobs.journal import Journal
from bitwright.models import writer
from bitwright.models.writer import ShardWriter
from tests.unit.jobs_toys import in_child


def no_picture(*args: Any, **kwargs: Any) -> str:
    """Takes the place of drawing, which is half of a tiny job's time and writes nothing."""
    return "<svg/>"


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Steps:
    """Counts the steps of this process on the disk and runs ``at`` before the step ``count`` (never if negative)."""

    def __init__(self, count: int = -1, at: Callable[[], None] = _die, torn: bool = False) -> None:
        self.done = 0
        self.names: list[str] = []
        self.count, self.at, self.torn = count, at, torn

    def counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """``original``, counted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.done == self.count:
                if self.torn and name == "journal":
                    _half_a_line(*args)
                self.at()
            self.done += 1
            self.names.append(name)
            return original(*args, **kwargs)

        return call

    def watch(self) -> None:
        """Count from now on; only for a forked child, nothing is put back."""
        os.replace = self.counted("rename", os.replace)
        os.fsync = self.counted("sync", os.fsync)
        shutil.copyfile = self.counted("copy", shutil.copyfile)
        shutil.rmtree = self.counted("remove", shutil.rmtree)
        Path.unlink = self.counted("remove", Path.unlink)  # type: ignore[method-assign]
        ShardWriter.write = self.counted("tensor", ShardWriter.write)  # type: ignore[method-assign]
        writer.sync_folder = self.counted("sync", writer.sync_folder)
        Journal.add = self.counted("journal", Journal.add)  # type: ignore[method-assign]


def _half_a_line(journal: Journal, entry: Any) -> None:
    """What a power loss leaves of a journal line."""
    with journal.path.open("a", encoding="utf-8") as file:
        file.write('{"unit": "' + entry.unit + '", "file": "')
        file.flush()


def steps_of(job: Job, place: Path) -> list[str]:
    """Run a job to its end in a child and return the names of its steps."""

    def work() -> None:
        steps = Steps()
        steps.watch()
        run(job)
        place.write_text("\n".join(steps.names), encoding="utf-8")

    assert in_child(work) == 0
    return place.read_text(encoding="utf-8").split("\n")


def killed_at(job: Job, count: int, torn: bool = False) -> int:
    """Run a job in a child that is killed before its step ``count``; return the child's status."""

    def work() -> None:
        Steps(count, torn=torn).watch()
        run(job)

    return in_child(work)


def killed_after(job: Job, seconds: float) -> int:
    """Run a job in a child that is killed after so long; return the child's status (0 where it was faster)."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            run(job)
            status = 0
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.001)
