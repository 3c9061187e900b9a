"""Where tasks run: in this process, or on the machines of a cluster.

A task is a module-level function and one picklable item and depends on nothing else, so it gives the same bits wherever
it runs and can be started again when its machine is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from bitwright.events import Event, Events

T = TypeVar("T")
Read = TypeVar("Read", covariant=True)
Item = TypeVar("Item")
Found = TypeVar("Found")


class Shared(Protocol[Read]):
    """A value that several tasks read."""

    def get(self) -> Read:
        """The value; tasks must not write to it."""


class Workers(Protocol):
    """Runs tasks."""

    @property
    def remote(self) -> bool:
        """Whether tasks run outside this process, where neither its files in memory nor its callbacks are."""

    @property
    def count(self) -> int:
        """Tasks that run at a time."""

    def share(self, value: T) -> Shared[T]:
        """Send a value out once for all tasks that hold what is returned."""

    def map(self, function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        """``function`` of every item, in the order of the items.

        Items are taken as there is room for them, so neither all of them nor all results are in memory at once.

        Raises:
            InputError: if a task was lost again and again; and whatever the function raises.
        """

    def strangers(self) -> tuple[str, ...]:
        """How the machines of tasks differed from this one in what the last bits of sums depend on, in words."""


@dataclass(frozen=True)
class _Kept(Generic[T]):
    value: T

    def get(self) -> T:
        return self.value


@dataclass(frozen=True)
class Here:
    """Runs each task in this process when its result is asked for."""

    remote: bool = False
    count: int = 1

    def share(self, value: T) -> Shared[T]:
        """The value itself."""
        return _Kept(value)

    def map(self, function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        """One item at a time."""
        return map(function, items)

    def strangers(self) -> tuple[str, ...]:
        """This machine is no stranger."""
        return ()


HERE = Here()


class Noted(Events):
    """Events that a task takes home: nothing is said and nothing raised where it runs."""

    def record(self, kind: str, where: str, message: str) -> None:
        """Keep an event."""
        self.entries.append(Event(kind, where, message))


@contextmanager
def open_workers(cluster: str, threads: int) -> Iterator[Workers]:
    """The workers that ``--cluster`` names: none (empty), the cores of this machine (``local``), or a Ray cluster.

    Args:
        cluster: empty, ``local``, or the address of a running Ray cluster (``HOST:PORT``, ``auto``).
        threads: threads of every task; the same as this process uses, or sums differ in their last bits.

    Raises:
        InputError: if Ray is not installed or the cluster is not there.
    """
    if not cluster:
        yield HERE
        return
    from bitwright.jobs.ray_workers import ray_cluster

    with ray_cluster(cluster, threads) as workers:
        yield workers
