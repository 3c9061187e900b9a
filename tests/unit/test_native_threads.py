"""Compiled kernels called from several Python threads at once, after a fork, and while nobody calls them."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bitwright
from bitwright.native import _core as core  # type: ignore[attr-defined]
from bitwright.native import hadamard, linear, unavailable
from bitwright.native.buffers import span
from bitwright.native.loading import require_library
from bitwright.native.product import multiply
from bitwright.runtime.kernels.linear import variants
from tests.unit.native_samples import quantized, random, with_terms

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


def plain() -> Callable[[Tensor], Tensor]:
    codes = torch.randint(0, 16, (130, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    scale = linear.tiled(torch.rand(130, 8, generator=torch.Generator().manual_seed(2)))
    weight = linear.NativeWeight(linear.pack_codes(codes, 4, 32), scale, None, None, (130, 256), 4, 32, 1, 0, 8)
    return lambda x: linear.linear(x, weight)


def several() -> dict[str, Callable[[Tensor], Tensor]]:
    lookup = variants.lookup_product(with_terms(quantized("mxfp4", (70, 256))))
    ternary = variants.ternary_product(quantized("ternary channel", (70, 256)))
    return {
        "linear": plain(),
        "lookup": lambda x: multiply(x, lookup),
        "ternary": lambda x: multiply(x, ternary),
        "hadamard": lambda x: hadamard.hadamard(x, 128, None, None, False),
    }


def test_operators_of_many_threads_at_once() -> None:
    """Each thread's results are those that it would have had alone, whatever the others compute."""
    operators = several()
    inputs = [random(rows, 256, seed=rows) for rows in (1, 2, 7, 40)]
    wanted = {(name, i): run(x) for name, run in operators.items() for i, x in enumerate(inputs)}
    start = threading.Barrier(8)

    def work(number: int) -> list[tuple[str, int]]:
        start.wait()
        order = 5 * sorted(wanted, key=lambda case: hash((number, case)))
        return [(name, i) for name, i in order if not torch.equal(operators[name](inputs[i]), wanted[name, i])]

    with ThreadPoolExecutor(8) as pool:
        assert [wrong for found in pool.map(work, range(8)) for wrong in found] == []


def _in_a_child(x: Tensor, wanted: Tensor) -> None:
    sys.exit(0 if torch.equal(plain()(x), wanted) else 1)


def test_a_forked_process_has_a_pool_of_its_own() -> None:
    """The parent's helpers do not exist in the child, which starts its own and computes the same; so does its child."""
    run, x = plain(), random(9, 256)
    wanted = run(x)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_in_a_child, args=(x, wanted)) for _ in range(3)]
    for child in children:
        child.start()
    assert torch.equal(run(x), wanted)
    for child in children:
        child.join(60)
        assert child.exitcode == 0


IDLE = """
import time, torch
from bitwright.native.hadamard import hadamard
x = torch.ones(64, 4096)
torch.set_num_threads(4)
hadamard(x, 4096, None, None, False)
time.sleep(0.1)
before = time.process_time()
time.sleep(0.5)
print(time.process_time() - before)
"""


def test_nobody_spins_while_there_is_nothing_to_do() -> None:
    """Half a second after a product costs no processor time, up to a fifth of what one spinning thread would take."""
    source = str(Path(bitwright.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, check=True, cwd=source)
    assert float(done.stdout) < 0.1


def test_a_sequence_is_read_by_one_thread_at_a_time() -> None:
    """A second thread gets an exception instead of a state that another one is changing."""
    hidden, vocabulary = 64, 8000
    network = core.Network(require_library(), hidden, vocabulary, 1, 1, hidden, 4096)
    kept = [torch.ones(hidden), random(hidden, hidden), random(3 * hidden, hidden), random(vocabulary, hidden)]
    norm = network.norm(hidden, span(kept[0]), (0, 0), 1e-5, False)
    square, qkv, table = (network.dense(*w.shape, span(w), 0, (0, 0)) for w in kept[1:])
    places = [(0, 0), (0, hidden), (0, 2 * hidden), (0, 0), (0, 0)]
    network.layer([qkv], [square], places, [norm, -1, -1, -1, 0, square, -1, norm, 0, 1, square, -1], [0.1, 0, 1, 1])
    network.finish(table, 1.0, norm, table, 1.0, 0.0)
    reader = core.Reader(network, 0, [], [], [1.0, 1.0], 0)
    ids, logits = torch.zeros(3000, dtype=torch.int64), torch.empty(vocabulary)
    thread = threading.Thread(target=reader.read, args=(span(ids), span(logits), 1))
    thread.start()
    refused = []
    while thread.is_alive():
        try:
            reader.crop(5000)
        except ValueError as error:
            refused.append(str(error))
        time.sleep(1e-4)
    thread.join()
    assert set(refused) == {"a sequence is read by one thread at a time"}
    assert reader.tokens == 3000
