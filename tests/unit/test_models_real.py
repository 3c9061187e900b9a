"""Discovery on real trained models; skipped where the assets are absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitwright.models.discover import discover
from bitwright.models.model import open_model


@pytest.mark.parametrize("stream", [False, True])
def test_a_trained_llama(assets: Path, stream: bool) -> None:
    found = discover(open_model(assets / "lm-stories260k", stream=stream))
    assert found.blocks == tuple(f"model.layers.{i}" for i in range(5))
    assert found.chain_error == 0.0
    assert len(found.sites) == 5 * 7 + 2
    kinds = [pair.kind for pair in found.pairs]
    assert (kinds.count("norm_linear"), kinds.count("linear_linear")) == (10, 10)
    assert {pair.repeat for pair in found.pairs if pair.source.endswith("v_proj")} == {2}
    assert found.residual is not None
    assert found.residual.error < 1e-4
    assert found.unaccounted == ()
    assert found.reasons == ("model.norm: not joined with lm_head, whose weight is tied to another layer",)


def test_a_trained_vision_transformer(assets: Path) -> None:
    found = discover(open_model(assets / "vision-vit-cifar10", stream=True))
    assert len(found.blocks) == 4
    assert found.residual is not None
    assert found.residual.norm_kind == "layer"
    assert found.residual.head == "classifier"
    assert {site.role for site in found.sites if site.kind == "conv"} == {"outside"}


def test_a_ternary_model_with_norms_inside_its_sublayers(assets: Path) -> None:
    found = discover(open_model(assets / "lm-bitnet-stories-1m", stream=True))
    sinks = {len(pair.sinks) for pair in found.pairs if pair.kind == "norm_linear"}
    assert sinks == {1, 2, 3}
    assert found.residual is not None
