"""Tasks on the machines of a Ray cluster."""

from __future__ import annotations

import logging
import platform
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from bitwright.errors import BitwrightError, InputError
from bitwright.jobs.workers import Shared
from bitwright.machine import usable_cores
from bitwright.native import chosen

logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")
Found = TypeVar("Found")

LOST = 5
"""How often a task may be lost with its machine before the job gives up."""


def import_ray() -> Any:
    """The package.

    Raises:
        InputError: if it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--cluster needs Ray; install it with: pip install 'bitwright[cluster]'") from error
    return ray


def machine_words() -> str:
    """What the last bits of a sum depend on beside the threads: versions and instructions."""
    version = str(torch.__version__).split("+")[0]
    return f"torch {version}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, kernels {chosen()}"


def _work(function: Callable[[Item], Found], item: Item, threads: int) -> tuple[str, str, Found]:
    """Run one task on the machine where this is called; what that is, its number in the cluster, and the result."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return machine_words(), import_ray().get_runtime_context().get_node_id(), function(item)


@dataclass(frozen=True)
class _Reference(Generic[T]):
    """A value in the cluster's object store."""

    reference: Any

    def get(self) -> T:
        found: T = import_ray().get(self.reference)
        return found


class RayWorkers:
    """Runs tasks on a Ray cluster that this process is connected to.

    Args:
        ray: the package.
        threads: CPUs that a task holds, and threads that it computes with.
        count: tasks that the cluster runs at a time.

    ``done`` counts the tasks that every machine finished.
    """

    remote = True

    def __init__(self, ray: Any, threads: int, count: int) -> None:
        self._ray = ray
        self._threads = threads
        self.count = count
        self._task = ray.remote(num_cpus=threads, max_retries=LOST)(_work)
        self._here = machine_words()
        self._strangers: dict[str, None] = {}
        self.done: Counter[str] = Counter()

    def share(self, value: T) -> Shared[T]:
        """Put a value into the object store."""
        return _Reference(self._ray.put(value))

    def map(self, function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        """Results in the order of the items, with at most twice as many tasks under way as can run at a time."""
        waiting: deque[Any] = deque()
        try:
            for item in items:
                waiting.append(self._task.remote(function, item, self._threads))
                if len(waiting) >= 2 * self.count:
                    yield self._result(waiting.popleft())
            while waiting:
                yield self._result(waiting.popleft())
        finally:
            for reference in waiting:
                self._ray.cancel(reference)

    def strangers(self) -> tuple[str, ...]:
        """What other machines than this one answered with."""
        return tuple(self._strangers)

    def _result(self, reference: Any) -> Any:
        lost = self._ray.exceptions
        try:
            words, node, found = self._ray.get(reference)
        except lost.RayTaskError as error:
            if isinstance(error.cause, BitwrightError):
                raise error.cause from None
            raise
        except (lost.WorkerCrashedError, lost.NodeDiedError, lost.ObjectLostError, lost.OutOfMemoryError) as error:
            raise InputError(
                f"a task was lost {LOST + 1} times with its machine ({str(error).splitlines()[0]}); give the machines "
                "more memory, or fewer tasks at a time (--threads), and start the same command again: it resumes"
            ) from error
        self.done[node] += 1
        if words != self._here:
            self._strangers[f"{words} (here: {self._here})"] = None
        return found


@contextmanager
def ray_cluster(address: str, threads: int) -> Iterator[RayWorkers]:
    """Connect to a cluster, or start one on this machine (``local``), and leave it again.

    Ray sends no usage statistics from a cluster that ``ray.init`` starts (a test holds it to that); of another cluster
    its owner decides (``ray start --disable-usage-stats``).

    Raises:
        InputError: if Ray is not installed, nothing answers at the address, or no machine has ``threads`` CPUs.
    """
    ray = import_ray()
    if address.startswith("ray://"):
        raise InputError(f"{address}: start the command on a machine of the cluster and give its HOST:PORT, or auto")
    if ray.is_initialized():
        raise InputError("this process is connected to a Ray cluster already; leave it with ray.shutdown()")
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == "local":
            ray.init("local", num_cpus=max(threads, usable_cores()), **quiet)
        else:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"{address}: no Ray cluster answers there ({str(error).splitlines()[0]})") from error
    try:
        yield RayWorkers(ray, threads, _room(ray, threads))
    finally:
        ray.shutdown()


def _room(ray: Any, threads: int) -> int:
    """Tasks of ``threads`` CPUs that the cluster runs at a time."""
    sizes = [int(n.get("Resources", {}).get("CPU", 0)) for n in ray.nodes() if n.get("Alive")]
    count = sum(size // threads for size in sizes)
    if not count:
        raise InputError(
            f"a task computes with {threads} threads and the largest machine of the cluster gives "
            f"{max(sizes, default=0)} CPUs; give fewer --threads"
        )
    return count
