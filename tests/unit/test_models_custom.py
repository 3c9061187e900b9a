"""Discovery on modules that no library wrote: unreached experts, bare readers of the stream, ties in reverse."""

from __future__ import annotations

import copy

import torch
from torch import nn

import bitwright as bw
from bitwright.jobs.sweep import Gatherer, input_hooks
from bitwright.models.discover import discover
from bitwright.models.model import open_model
from bitwright.models.residual import stream_edits
from bitwright.statistics import TokenCount
from tests.unit.models_toys import orthogonal, seeded


class _Routed(nn.Module):
    """Two experts of which the example reaches one, and a layer of its own class that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 6)])
        self.odd = _Transposed()
        self.table = nn.Embedding(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts[0](x)


class _Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 5))
        self.shift = nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("...i,io->...o", x, self.kernel) + self.shift


def test_weights_that_the_example_does_not_reach_are_found() -> None:
    found = discover(open_model(_Routed()), torch.randn(2, 8))
    sites = {site.path: site for site in found.sites}
    assert sites["experts.0"].seen
    assert not sites["experts.1"].seen
    assert sites["experts.1"].shape == (6, 8)
    assert sites["experts.1"].bias == "experts.1.bias"
    assert (sites["odd"].parameter, sites["odd"].shape, sites["odd"].transposed) == ("kernel", (5, 8), True)
    assert sites["table"].kind == "embedding"
    assert not sites["table"].seen
    assert found.unaccounted == ()


class _Block(nn.Module):
    """Pre-norm block whose last linear reads the stream without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16)
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)
        self.mix = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return x + self.mix(x)


class _HeadFirst(nn.Module):
    """The head is registered before the embedding that it shares its weight with."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 40, bias=False)
        self.blocks = nn.ModuleList([_Block() for _ in range(3)])
        self.table = nn.Embedding(40, 16)
        self.table.weight = self.head.weight
        self.norm = nn.RMSNorm(16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def test_a_reader_that_also_writes_and_a_tie_in_reverse() -> None:
    module = seeded(_HeadFirst)
    ids = torch.arange(24).reshape(2, 12)
    found = discover(open_model(module), ids)
    stream = found.residual
    assert stream is not None
    assert stream.embeddings == ("table",)
    assert "blocks.1.mix" in stream.readers
    assert "blocks.1.mix" in stream.writers
    assert found.ties == (("table.weight", "head.weight"),)
    assert next(site for site in found.sites if site.path == "table").tied_to == "head.weight"
    rotation = orthogonal(16, keep_ones=False).float()
    edits = stream_edits(open_model(module), found.norms, stream, lambda vectors: vectors @ rotation.T)
    turned = copy.deepcopy(module)
    for parameter, value in edits.items():
        path, _, leaf = parameter.rpartition(".")
        setattr(turned.get_submodule(path), leaf, nn.Parameter(value))
    torch.testing.assert_close(turned(ids), module(ids), rtol=1e-4, atol=1e-4)


class _Again(nn.Module):
    """One layer called three times, as ALBERT does, between a table that is also a factor and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = _Soft(6, 8)
        self.layer = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.table(x.softmax(-1)) + self.table(torch.arange(2)).sum(0)
        for _ in range(3):
            x = x + self.layer(x).tanh()
        return self.head(x)


class _Soft(nn.Embedding):
    """Rows for numbers, mixtures of rows for weights of a mixture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight if x.is_floating_point() else super().forward(x)


def test_a_layer_that_is_called_again_is_one_site_with_the_inputs_of_all_calls() -> None:
    torch.manual_seed(0)
    module, x = _Again(), torch.randn(4, 3, 6)
    found = discover(open_model(module), x)
    assert [site.path for site in found.sites] == ["table", "layer", "head"]
    gatherer = Gatherer(module, {"layer": (TokenCount(),)})
    with torch.no_grad(), input_hooks(module, ["layer"], gatherer):
        module(x)
    assert gatherer.results()["layer"][TokenCount()] == 3 * 4 * 3
    bw.quantize(module, "gptq", [x], weights="int8 channel")
    assert not isinstance(module.layer, nn.Linear)


def test_a_table_that_is_a_factor_elsewhere_stays_as_it_is() -> None:
    torch.manual_seed(0)
    module, x = _Again(), torch.randn(4, 3, 6)
    expected = module(x)
    (site,) = (site for site in discover(open_model(module), x).sites if site.path == "table")
    assert not site.whole
    bw.quantize(module, "rtn", [x], weights="int8 channel")
    assert type(module.table) is _Soft
    with torch.no_grad():
        assert float((module(x) - expected).abs().max()) < 0.05
