"""Calls the extension with wrong numbers and buffers; a program of its own, because what it looks for are crashes.

``python native_fuzz.py CASES SEED`` prints how many calls of every kind were refused and how many were served. Every
refusal is one of the expected exceptions; everything else ends the program with a traceback or a signal.
"""

from __future__ import annotations

import faulthandler
import sys
import warnings
from collections import Counter
from pathlib import Path

# Run by its path, in a process of its own.
sys.path.insert(0, str(Path(__file__).parents[2]))

from bitwright.native import _core
from tests.unit.native_fuzz_calls import CALLS
from tests.unit.native_fuzz_decode import decode, unfinished
from tests.unit.native_fuzz_draws import EXPECTED, NONE, Wrong

ALL = (*CALLS, decode)


def other_calls() -> None:
    """What has no buffers: memory of absurd sizes, objects that were never made, sets that do not exist."""
    library = _core.Library(_core.instruction_sets()[-1])
    weight, sweep, rounding, terms, coding, tables, ternary, network, reader, kernels = (
        kind.__new__(kind)
        for kind in (_core.Weight, _core.Sweep, _core.Rounding, _core.Terms, _core.Coding, _core.ByteTables,
                     _core.TernaryWeight, _core.Network, _core.Reader, _core.Library)
    )  # fmt: skip
    calls = (
        lambda: _core.pages(0),
        lambda: _core.pages(-1),
        lambda: _core.pages(2**62),
        lambda: _core.Library("sse9"),
        lambda: kernels.name,
        lambda: library.unpack_weight(weight, NONE, 1),
        lambda: library.linear(None, NONE, 0, 0, NONE, NONE, True, 1),
        lambda: library.sweep_load(sweep, NONE, 1),
        lambda: library.descend(sweep, 0, 1, rounding, 1),
        lambda: library.product(0, weight, None, None, None, NONE, None, None, NONE, 0, 0, NONE, NONE, 1),
        lambda: library.product(4, None, ternary, tables, None, NONE, terms, coding, NONE, 0, 0, NONE, NONE, 1),
        lambda: _core.Reader(network, 0, [], [], [1.0, 1.0], 0),
        lambda: network.finish(0, 1.0, 0, 0, 1.0, 0.0),
        lambda: reader.read(NONE, NONE, 1),
        lambda: reader.tokens,
        lambda: unfinished(library),
        # An object that was made is not made again under those who use it.
        lambda: library.__init__("scalar"),
    )
    for number, call in enumerate(calls):
        try:
            with warnings.catch_warnings(action="ignore"):
                call()
        except (*EXPECTED, RuntimeError):
            continue
        raise AssertionError(f"wrong call {number} was served")


def main(arguments: list[str]) -> None:
    """Do what the module's docstring says."""
    cases, seed = map(int, arguments)
    served: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for case in range(cases):
        wrong = Wrong(seed * 1_000_003 + case)
        call = ALL[case % len(ALL)]
        kernels = _core.Library(wrong.random.choice(_core.instruction_sets()))
        threads = wrong.number(wrong.random.randint(1, 3))
        try:
            call(wrong, kernels, threads)
        except EXPECTED:
            refused[call.__name__] += 1
        else:
            served[call.__name__] += 1
    other_calls()
    for name in sorted({call.__name__ for call in ALL}):
        sys.stdout.write(f"{name} {refused[name]} {served[name]}\n")


if __name__ == "__main__":
    faulthandler.enable()
    main(sys.argv[1:])
