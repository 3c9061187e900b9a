"""MX: microscaling formats for weights and activations."""

from __future__ import annotations

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Recipe, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.site import rule


@recipe(
    "mx",
    number=252,
    family="weight-activation",
    paper="Rouhani et al. 2023, Microscaling Data Formats for Deep Learning, arXiv:2310.10537; OCP MX v1.0",
    claim=Claim(
        "lm-stories260k",
        (
            Check("at_most", "perplexity_ratio", margin=1.005, at="mxint8", text="MXINT8 direct cast is near-lossless"),
            Check("at_most", "perplexity_ratio", margin=1.01, at="mxfp8_e4m3", text="MXFP8 is near-lossless"),
            Check("at_most", "perplexity_ratio", margin=1.01, at="mxfp6_e2m3", text="MXFP6 costs under 1 %"),
            Check("order", "perplexity", baseline="mxint8 < mxfp6_e2m3 < mxfp4", text="MXFP4 is the worst"),
            *(
                Check("at_most", "spearman_loss", margin=0.008, at=at, asset="embedding-stsb")  # 1 % of the float 0.82
                for at in ("mxint8", "mxfp8_e4m3", "mxfp6_e2m3")
            ),
            Check("order", "embedding_error", baseline="mxint8 < mxfp6_e2m3 < mxfp4", asset="embedding-stsb"),
        ),
        note="The bars of 1 % for MXFP8 and MXFP6 come from models that are thousands of times larger. E4M3 and E2M3 "
        "both keep three mantissa bits, so their direct cast costs the same here, 1.5 % of perplexity, on a model of "
        "0.26 M parameters whose layers sum over 64 or 172 products only; MiniLM, of 22.7 M, keeps to them. Casts are "
        "bit-exact against ml_dtypes.",
    ),
)
def mx(weights: Format = parse("mxfp8_e4m3"), activations: str = "same", select: str = "linear,conv") -> Recipe:
    """Cast weights and activations to blocks of 32 elements that share a power-of-two scale; no data are read.

    The block's scale is ``2^(floor(log2 max|x|) - emax)`` of the element format (OCP MX v1.0, section 6.3), the
    elements are rounded to nearest even. ``activations`` is a format, ``same`` as the weights, or ``none``.

    What is left out: training with MX gradients (a training recipe), and bf16 vector operations.

    Cost: one pass over the weights.
    """
    quantizer = Quantizer(weights)
    rules = (rule(select, quantizer),)
    if activations == "none":
        return Recipe(weights=rules)
    chosen = str(weights) if activations == "same" else activations
    return Recipe(weights=rules, activations=(rule(select, Quantizer(parse(f"{chosen} dynamic"))),))
