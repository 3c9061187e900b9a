"""Second-order rounding of trellis-coded weights: runs of columns with feedback between them."""

from __future__ import annotations

import torch

from bitwright.formats import Codes, TrellisGrid, parse
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.ranges import Mse, RootMeanSquare
from bitwright.stages.rounding import SecondOrder
from bitwright.stages.rounding.second_order import block_feedback, feedback_factor
from bitwright.stages.solve import quantize_weight
from tests.unit.layer_problem import Layer, correlated_layer

DAMPING = 0.01


def rounded(layer: Layer, text: str, second: bool = True, block: int = 512) -> Codes:
    estimator = RootMeanSquare() if text.startswith("trellis") else Mse()
    rule = SecondOrder(damping=DAMPING, block=block) if second else None
    term = quantize_weight(layer.w, Quantizer(parse(text), estimator, rule), layer.context()).terms[0]
    assert isinstance(term, Codes)
    return term


def test_runs_are_coded_in_turn_with_the_errors_of_those_before() -> None:
    """The definition in double precision: what a run misses goes to all later ones, and its columns count by pivot."""
    layer = correlated_layer(8, 192)
    found = rounded(layer, "trellis2-l8-t64")
    for block in (64, 128):
        assert torch.equal(rounded(layer, "trellis2-l8-t64", block=block).codes, found.codes)
    factor = block_feedback(feedback_factor(layer.h, DAMPING, layer.context()), 64)
    grid, scale = found.format.grid, found.scale.effective
    assert isinstance(grid, TrellisGrid)
    assert torch.allclose(scale[:, 0], layer.w.square().mean(1).sqrt(), rtol=1e-3)
    values, upper = torch.zeros_like(layer.w), factor.upper.double()
    for start in range(0, 192, 64):
        part = slice(start, start + 64)
        assert float(upper[part, part].abs().max()) == 0
        current = layer.w[:, part].double() + (layer.w - values).double() @ upper[:, part]
        codes = grid.encode((current.float() / scale), factor.pivots[part].contiguous())
        # Last bits of the sums decide a code now and then.
        assert float((codes != found.codes[:, part]).float().mean()) < 0.02
        values[:, part] = grid.decode(found.codes[:, part]) * scale
    assert torch.equal(values, found.dequantize())


def test_feedback_and_the_weights_of_columns_pay() -> None:
    layer = correlated_layer(24, 256, tokens=1024)
    losses = {
        (text, second): layer.loss(rounded(layer, text, second).dequantize())
        for text, second in (
            ("trellis2-l10-t64", False),
            ("trellis2-l10-t64", True),
            ("trellis2-l10", False),
            ("trellis2-l10", True),
            ("int2", True),
        )
    }
    assert losses["trellis2-l10-t64", True] < 0.8 * losses["trellis2-l10-t64", False]
    assert losses["trellis2-l10-t64", True] < losses["int2", True]
    # One run holds all columns: no feedback is left, but errors go where they cost least.
    assert losses["trellis2-l10", True] < losses["trellis2-l10", False]


def test_groups_are_whole_runs() -> None:
    layer = correlated_layer(8, 256)
    found = rounded(layer, "trellis2-l8-t32 g64")
    assert found.scale.effective.shape == (8, 4)
    assert layer.loss(found.dequantize()) < layer.loss(rounded(layer, "trellis2-l8-t32 g64", False).dequantize())


def test_zeros_have_a_scale() -> None:
    layer = correlated_layer(4, 64)
    nothing = Layer(torch.zeros_like(layer.w), layer.h, layer.cross)
    assert bool(torch.isfinite(rounded(nothing, "trellis2-l8-t32").dequantize()).all())
