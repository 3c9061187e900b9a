"""The recorder sees every operation, tells values apart, and keeps no data alive."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from bitwright.models.model import Model
from bitwright.models.record import Run, flat_tensors, record_run


class _Probe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y.relu_()
        left, right = y.chunk(2, dim=-1)
        z = self.second(torch.cat([right, left], -1))
        return x + z.view(-1, 4).reshape(x.shape)


def _run() -> Run:
    return record_run(Model(_Probe()), torch.randn(2, 3, 4))


def _op(run: Run, name: str, number: int = 0) -> Any:
    return [op for op in run.ops if op.name == name][number]


def test_calls_nest_and_hold_their_operations() -> None:
    run = _run()
    assert [call.path for call in run.calls] == ["", "first", "second"]
    root, first, second = run.calls
    assert first.parent == second.parent == root.index
    assert run.ops[first.enter].name == "linear"
    assert root.enter <= first.enter < first.exit <= second.enter < second.exit <= root.exit == len(run.ops)


def test_parameters_are_named_and_scoped() -> None:
    linear = _op(_run(), "linear", 1)
    assert dict(linear.parameters) == {1: "second.weight", 2: "second.bias"}
    assert linear.scope == "second"


def test_a_view_keeps_its_identity_and_a_slice_does_not() -> None:
    run = _run()
    view, chunk = _op(run, "view"), _op(run, "chunk")
    assert view.inputs[0][1].key == view.outputs[0].key
    left, right = chunk.outputs
    assert len({chunk.inputs[0][1].key, left.key, right.key}) == 3
    assert left.storage == right.storage == chunk.inputs[0][1].storage


def test_slices_of_equal_size_are_told_apart() -> None:
    class Slices(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :2].sum() + x[:2].sum()

    run = record_run(Model(Slices()), torch.randn(4, 4))
    tops = [op.outputs[0].key for op in run.ops if op.name == "__getitem__"]
    assert len(set(tops)) == 2


def test_a_change_in_place_makes_a_new_value() -> None:
    run = _run()
    relu = _op(run, "relu_")
    assert relu.inputs[0][1].key != relu.outputs[0].key
    assert relu.inputs[0][1].storage == relu.outputs[0].storage
    assert _op(run, "chunk").inputs[0][1].key == relu.outputs[0].key


def test_producers_and_readers_are_indexed() -> None:
    run = _run()
    add = _op(run, "add")
    key = add.inputs[1][1].key
    assert run.ops[run.producer[key]].name == "linear"
    assert add.index in run.readers[key]
    assert run.outputs[0].key == add.outputs[0].key


def test_memory_of_freed_tensors_is_not_held_nor_confused() -> None:
    class Loop(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(20):
                x = x * 1.5
            return x

    run = record_run(Model(Loop()), torch.randn(64, 64))
    made = [op.outputs[0].key for op in run.ops]
    assert len(set(made)) == 20
    tensor = torch.randn(8)
    run = record_run(Model(Loop()), tensor)
    alive = weakref.ref(tensor)
    del tensor
    gc.collect()
    assert alive() is None


def test_hooks_are_removed_after_an_error() -> None:
    module = _Probe()
    with pytest.raises(RuntimeError):
        record_run(Model(module), torch.randn(2, 5))
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in module.modules())


def test_nested_outputs_are_flattened_in_order() -> None:
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    assert [t.item() for t in flat_tensors({"x": [a, (b, None)], "y": {"z": c}, "n": 3})] == [0.0, 1.0, 2.0]
