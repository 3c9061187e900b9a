"""BatchNorm folding and cross-layer equalization on the small digits network, whose pairs are proved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bitwright.events import Events
from bitwright.jobs.units import split_units
from bitwright.jobs.view import UnitView
from bitwright.models import discover, open_model
from bitwright.stages.transforms.batchnorm import FoldBatchNorm
from bitwright.stages.transforms.equalization import CrossLayerEqualization, imbalance, pair_ranges
from bitwright.zoo import load_digits_model

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, UnitView]:
    """The digits network and a view of it, with its structure found once; tests copy before they change it."""
    module = load_digits_model().eval()
    return module, view_of(module)


def view_of(module: nn.Module) -> UnitView:
    structure = discover(open_model(module), (IMAGES[:2],))
    (unit,) = split_units(structure)
    return UnitView(module, unit, structure, lambda name: torch.float32, {}, {})


def copied(digits: tuple[nn.Module, UnitView]) -> tuple[nn.Module, UnitView]:
    module = copy.deepcopy(digits[0])
    view = digits[1]
    return module, UnitView(module, view.unit, view.structure, lambda name: torch.float32, {}, {})


def run(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(IMAGES)


def test_folding_keeps_the_function_and_leaves_no_batchnorm(digits: tuple[nn.Module, UnitView]) -> None:
    module, view = copied(digits)
    before = run(module)
    report = FoldBatchNorm().apply(view, {}, 0, Events())
    assert [where for where, _ in report.places] == ["bn1", "bn2", "bn3", "bn4"]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    assert view.removed == ["bn1", "bn2", "bn3", "bn4"]
    torch.testing.assert_close(run(module), before, atol=1e-4, rtol=1e-4)


def test_folding_a_norm_without_gain_into_a_convolution_with_bias() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, affine=False)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 3.0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    module = nn.Sequential(nn.Conv2d(1, 6, 3), norm, nn.ReLU(), head).eval()
    before = run(module)
    FoldBatchNorm().apply(view_of(module), {}, 0, Events())
    assert isinstance(module[1], nn.Identity)
    torch.testing.assert_close(run(module), before, atol=1e-5, rtol=1e-5)


def test_equalization_keeps_the_function_and_makes_ranges_alike(digits: tuple[nn.Module, UnitView]) -> None:
    module, view = copied(digits)
    FoldBatchNorm().apply(view, {}, 0, Events())
    before = run(module)
    pairs = [p for p in view.pairs if p.kind == "conv_conv"]
    assert [p.source for p in pairs] == ["conv1", "depthwise"]
    start = max(imbalance(view, p) for p in pairs)
    report = CrossLayerEqualization().apply(view, {}, 0, Events())
    assert len(report.places) == 2
    assert start > 1.5
    # Where the two ranges of a channel are positive they end up equal, in a chain of layers too.
    for pair in pairs:
        written, read = pair_ranges(view, pair)
        torch.testing.assert_close(written, read, rtol=0.05, atol=1e-3)
    torch.testing.assert_close(run(module), before, atol=1e-4, rtol=1e-4)


def test_a_norm_between_the_layers_must_be_folded_first(digits: tuple[nn.Module, UnitView]) -> None:
    module, view = copied(digits)
    before = run(module)
    events = Events()
    CrossLayerEqualization().apply(view, {}, 0, events)
    assert {event.kind for event in events.entries} == {"not equalized"}
    assert torch.equal(run(module), before)
