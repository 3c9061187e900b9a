"""What a unit's later sweeps do not run again, and what they must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright.formats import parse
from bitwright.jobs.engine import Engine
from bitwright.jobs.opening import Job, open_job
from bitwright.jobs.replay import Replay, holders
from bitwright.recipes import Recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.rounding.asymmetric import Asymmetric
from bitwright.stages.rounding.second_order import SecondOrder
from bitwright.stages.site import rule
from tests.unit.jobs_toys import tiny_llama, token_ids

BATCHES = [{"input_ids": token_ids(seed)} for seed in (1, 2)]


class _Counting(nn.Linear):
    """A linear layer that counts its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class _Branch(nn.Module):
    """Two layers; ``memo`` and ``inplace`` break what a replay may assume."""

    def __init__(self, memo: bool = False, inplace: bool = False) -> None:
        super().__init__()
        self.first, self.second = _Counting(4, 4), _Counting(4, 4)
        self.memo, self.inplace = memo, inplace

    def forward(self, x: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        y = self.first(x)
        if self.memo and seen is not None:
            seen.append(y)
        if self.inplace:
            y.mul_(2)
        result: Tensor = self.second(y)
        return result


class _Block(nn.Module):
    """A branch called once or twice, then a last layer."""

    def __init__(self, branch: _Branch, twice: bool = False) -> None:
        super().__init__()
        self.branch, self.last, self.twice = branch, _Counting(4, 4), twice

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        y = self.branch(x, seen) if self.branch.memo else self.branch(x)
        if self.twice:
            y = self.branch(y)
        result: Tensor = self.last(y + sum(seen))
        return result


PATHS = ("branch.first", "branch.second", "last")


def _pass(block: nn.Module, replay: Replay, x: Tensor, record: bool = True) -> Tensor:
    with torch.no_grad(), replay.running(block, holders(PATHS), 0, record):
        result: Tensor = block(x)
    return result


@pytest.mark.parametrize("twice", [False, True])
def test_completed_calls_are_not_run_again(twice: bool) -> None:
    torch.manual_seed(0)
    block, x = _Block(_Branch(), twice), torch.randn(3, 4)
    replay = Replay()
    expected = _pass(block, replay, x)
    calls = [m.calls for m in (block.branch.first, block.branch.second, block.last)]
    assert torch.equal(_pass(block, replay, x), expected)
    assert [m.calls for m in (block.branch.first, block.branch.second, block.last)] == calls
    # The branch's output and the last layer's; what is inside the branch was given up.
    assert replay.held_bytes == (2 + twice) * x.nbytes
    replay.forget(0)
    assert replay.held_bytes == 0


def test_a_pass_that_ended_early_replays_what_it_completed_and_runs_the_rest() -> None:
    torch.manual_seed(0)
    block, x = _Block(_Branch()), torch.randn(3, 4)
    expected, replay = block(x), Replay()
    handle = block.branch.second.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(RuntimeError):
        _pass(block, replay, x)
    handle.remove()
    assert torch.equal(_pass(block, replay, x), expected)
    assert (block.branch.first.calls, block.branch.second.calls) == (2, 2)  # the first call of each is the expected one


def test_a_window_without_room_changes_only_the_number_of_calls() -> None:
    torch.manual_seed(0)
    block, x = _Block(_Branch()), torch.randn(3, 4)
    replay = Replay(0)
    expected = _pass(block, replay, x)
    assert torch.equal(_pass(block, replay, x), expected)
    assert block.last.calls == 2
    assert replay.held_bytes == 0


@pytest.mark.parametrize("branch", [{"memo": True}, {"inplace": True}])
def test_what_leaves_a_trace_elsewhere_is_run_again(branch: dict[str, bool]) -> None:
    torch.manual_seed(0)
    block, x = _Block(_Branch(**branch)), torch.randn(3, 4)
    replay = Replay()
    expected = _pass(block, replay, x)
    for _ in range(2):
        assert torch.equal(_pass(block, replay, x), expected)


def test_a_layer_replaced_meanwhile_does_not_answer_for_the_old_one() -> None:
    torch.manual_seed(0)
    block, x = _Block(_Branch()), torch.randn(3, 4)
    replay = Replay()
    handle = block.last.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(RuntimeError):
        _pass(block, replay, x)
    handle.remove()
    block.last = _Counting(4, 4)
    assert torch.equal(_pass(block, replay, x, record=False), block(x))


def _coded(replay_bytes: int | None, rounding: Any) -> tuple[dict[str, Tensor], int]:
    torch.manual_seed(0)
    recipe = Recipe(weights=(rule("linear", Quantizer(parse("int4 g16 asym"), rounding=rounding)),), name="test")
    opened = open_job(Job(tiny_llama(), recipe, BATCHES))
    engine = Engine(recipe, opened.model, opened.structure, opened.batches, twin=opened.twin, replay_bytes=replay_bytes)
    attention, calls = opened.model.module.get_submodule("model.layers.0.self_attn"), []
    run = attention.forward
    attention.forward = lambda *a, **k: calls.append(1) or run(*a, **k)
    found = {}
    for unit in engine.units:
        result = engine.work(unit)
        found |= {path: m.weight.dequantize() for path, m in result.modules.items() if m.weight is not None}
    return found, len(calls)


@pytest.mark.parametrize("rounding", [SecondOrder(), Asymmetric()])
def test_the_codes_are_those_of_an_engine_that_runs_everything_again(rounding: Any) -> None:
    slow, every = _coded(0, rounding)
    fast, fewer = _coded(None, rounding)
    assert slow.keys() == fast.keys()
    for path, w in slow.items():
        assert torch.equal(fast[path], w), path
    # Once for q, k, v's input, once for o's, once whole; the sweeps of the MLP and the last pass replay it.
    assert (every, fewer) == (5 * len(BATCHES), 3 * len(BATCHES))
