"""BatchNorm folding and cross-layer equalization are found by flow and proved; saturating activations are refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.models.discover import discover
from bitwright.models.edits import input_channels, scale_inputs, scale_outputs
from bitwright.models.model import open_model
from bitwright.models.norms import channel_affine
from bitwright.models.structure import Pair, Structure, WeightSite
from tests.unit.models_toys import MobileNet, ResNet, seeded, toy_images


class Fire(nn.Module):
    """One convolution read by two, whose outputs are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 6, 1)
        self.left = nn.Conv2d(6, 4, 1)
        self.right = nn.Conv2d(6, 4, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.squeeze(x))
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        return self.head(x.mean([2, 3]))


class NormedLinears(nn.Module):
    """BatchNorm behind a linear layer, and one whose input is also used elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 * 256, 12)
        self.norm = nn.BatchNorm1d(12)
        self.second = nn.Linear(12, 12)
        self.other = nn.BatchNorm1d(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(torch.relu(self.norm(self.first(x.flatten(1)))))
        return y + self.other(y)


_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "resnet": ResNet,
    "mobilenet": MobileNet,
    "mobilenet6": lambda: MobileNet(nn.ReLU6),
    "leaky": lambda: MobileNet(lambda: nn.LeakyReLU(0.1)),
    "silu": lambda: MobileNet(nn.SiLU),
    "fire": Fire,
    "linears": NormedLinears,
}


@functools.cache
def _found(name: str) -> Structure:
    return discover(open_model(seeded(_BUILDERS[name])), toy_images())


def _pairs(name: str, kind: str) -> dict[str, Pair]:
    return {pair.source: pair for pair in _found(name).pairs if pair.kind == kind}


def _sites(name: str) -> dict[str, WeightSite]:
    return {site.path: site for site in _found(name).sites}


def test_blocks_and_roles_of_a_residual_network() -> None:
    found = _found("resnet")
    assert found.blocks == ("layer1.0", "layer1.1", "layer2.0", "layer2.1")
    assert found.chain_error == 0.0
    assert [site.path for site in found.sites if site.role != "block"] == ["conv1", "fc"]
    assert _sites("resnet")["fc"].role == "head"
    assert found.unaccounted == ()
    assert any("change the shape" in reason for reason in found.reasons)


def test_convolutions_are_flattened_and_depthwise_known() -> None:
    sites = _sites("mobilenet")
    depthwise = sites["features.1.conv.1.0"]
    assert (depthwise.kind, depthwise.shape, depthwise.groups) == ("conv", (32, 9), 32)
    assert input_channels(depthwise, (32, 1, 3, 3)) == 32
    assert sites["features.0.0"].shape == (8, 27)


@pytest.mark.parametrize(("name", "count"), [("resnet", 10), ("mobilenet", 11), ("mobilenet6", 11), ("silu", 11)])
def test_every_batch_norm_folds(name: str, count: int) -> None:
    folds = _pairs(name, "batchnorm_conv")
    assert len(folds) == count == sum(norm.kind == "batch" for norm in _found(name).norms)
    assert all(len(pair.sinks) == 1 and pair.error < 1e-9 for pair in folds.values())


def test_a_batch_norm_folds_into_a_linear_but_not_past_other_readers() -> None:
    assert {s: p.sinks for s, p in _pairs("linears", "batchnorm_conv").items()} == {"norm": ("first",)}
    assert any("other: the output of second has other readers" in reason for reason in _found("linears").reasons)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "silu"])
def test_folding_leaves_the_output(name: str) -> None:
    module = seeded(_BUILDERS[name])
    folded = copy.deepcopy(module)
    sites = _sites(name)
    with torch.no_grad():
        for norm, pair in _pairs(name, "batchnorm_conv").items():
            site = sites[pair.sinks[0]]
            scale, shift = channel_affine(module.get_submodule(norm), 4, site.shape[0])
            layer = folded.get_submodule(site.path)
            layer.weight.copy_(scale_outputs(layer.weight, site, scale))
            layer.bias = nn.Parameter(shift.float())
            parent, _, leaf = norm.rpartition(".")
            setattr(folded.get_submodule(parent), leaf, nn.Identity())
        torch.testing.assert_close(folded(toy_images()), module(toy_images()), rtol=1e-4, atol=1e-5)


def test_equalization_runs_through_pointwise_depthwise_pointwise() -> None:
    pairs = _pairs("mobilenet", "conv_conv")
    assert pairs["features.1.conv.0.0"].sinks == ("features.1.conv.1.0",)
    assert pairs["features.1.conv.1.0"].sinks == ("features.1.conv.2",)
    assert pairs["features.1.conv.1.0"].through == ("features.1.conv.1.1",)
    assert pairs["features.4.0"].sinks == ("classifier.1",)
    # The stream into a skip connection has two readers that no scale reaches: the addition among them.
    assert "features.0.0" not in pairs
    assert "features.2.conv.2" not in pairs


def test_equalization_inside_a_residual_block_only() -> None:
    assert {s: p.sinks for s, p in _pairs("resnet", "conv_conv").items()} == {
        f"layer{stage}.{block}.conv1": (f"layer{stage}.{block}.conv2",) for stage in (1, 2) for block in (0, 1)
    }


def test_two_readers_are_scaled_together_and_a_join_ends_the_way() -> None:
    assert {s: p.sinks for s, p in _pairs("fire", "conv_conv").items()} == {"squeeze": ("left", "right")}


def test_leaky_rectifiers_pass_and_saturating_or_curved_ones_do_not() -> None:
    assert len(_pairs("leaky", "conv_conv")) == len(_pairs("mobilenet", "conv_conv"))
    assert _pairs("mobilenet6", "conv_conv") == {}
    assert _pairs("silu", "conv_conv") == {}


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "leaky", "fire"])
def test_equalization_leaves_the_output(name: str) -> None:
    module = seeded(_BUILDERS[name])
    scaled, sites = copy.deepcopy(module), _sites(name)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for pair in _pairs(name, "conv_conv").values():
            source = sites[pair.source]
            scale = torch.rand(source.shape[0], generator=generator) + 0.5
            if pair.through:
                norm = scaled.get_submodule(pair.through[0])
                norm.weight.mul_(scale)
                norm.bias.mul_(scale)
            else:
                layer = scaled.get_submodule(pair.source)
                layer.weight.copy_(scale_outputs(layer.weight, source, scale))
                layer.bias.mul_(scale)
            for path in pair.sinks:
                weight = scaled.get_submodule(path).weight
                weight.copy_(scale_inputs(weight, sites[path], 1 / scale))
        torch.testing.assert_close(scaled(toy_images()), module(toy_images()), rtol=1e-4, atol=1e-5)


def test_grouped_convolutions_scale_their_own_channels() -> None:
    site = WeightSite("c", "weight", "conv", "block", 0, (6, 2 * 9), 0, groups=2)
    layer = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    scale, x = torch.tensor([1.0, 2.0, 4.0, 8.0]), toy_images()[:, :1].repeat(1, 4, 1, 1)
    with torch.no_grad():
        expected = layer(x * scale.reshape(1, 4, 1, 1))
        layer.weight.copy_(scale_inputs(layer.weight, site, scale))
        torch.testing.assert_close(layer(x), expected)


def test_a_chain_of_bare_layers_has_no_blocks_but_has_pairs() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    found = discover(open_model(module), toy_images())
    assert found.blocks == ()
    assert {p.source: p.sinks for p in found.pairs} == {"0": ("3",), "3": ("7",)}
    assert any("no chain of blocks" in reason for reason in found.reasons)
    assert [site.role for site in found.sites] == ["outside", "outside", "head"]


class _Branches(nn.Module):
    """Convolutions of one image: two of points, one with other steps, two with windows of other sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.ModuleList([nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1, 2)])
        self.windows = nn.ModuleList([nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 3, padding=2, dilation=2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(branch(x).mean((2, 3)) for branch in (*self.points, *self.windows))


def test_only_convolutions_that_see_the_same_windows_share_statistics() -> None:
    torch.manual_seed(0)
    module, x = _Branches(), torch.randn(2, 4, 8, 8)
    sites = {site.path: site.shared_input for site in discover(open_model(module), x).sites}
    assert sites["points.0"] == sites["points.1"]
    assert len(set(sites.values())) == 4
    bw.quantize(module, "gptq", [x], weights="int8 channel")
