"""Integers for the key-value cache: keys per channel, values per token."""

from __future__ import annotations

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Recipe, Variant, recipe
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.site import rule


@recipe(
    "kv-int",
    family="kv-cache",
    paper="Liu et al. 2024, KIVI, arXiv:2402.02750 (per-channel keys, per-token values)",
    claim=Claim(
        "zoo",  # heads of 32 channels: groups of 32 along either axis then cost the same bits
        (
            Check("better_than", "kl", baseline="keys-per-token", text="keys per channel beat keys per token"),
            Check("at_most", "perplexity_ratio", margin=1.01, at="8-bit", text="8 bits are nearly lossless"),
        ),
        variants=(
            Variant("keys-per-token", "kv-int", (("keys", "int2 g32 asym"),)),
            Variant("8-bit", "kv-int", (("keys", "int8 g32 axis=0 asym"), ("values", "int8 g32 asym"))),
        ),
    ),
)
def kv_int(
    keys: Format = parse("int2 g32 axis=0 asym"),
    values: Format = parse("int2 g32 asym"),
    window: int = 32,
) -> Recipe:
    """Store keys with a scale per channel over 32 tokens and values with a scale per token over 32 channels.

    Key caches have channels that are large for every token, value caches do not (KIVI, section 3); so keys are grouped
    along tokens and values along channels. A group of keys can only be coded once its tokens are there; the latest
    ``window`` tokens stay float. Weights and activations are not touched.

    Cost: nothing before the run.
    """
    return Recipe(
        kv_cache=(rule("key", Quantizer(keys)), rule("value", Quantizer(values))),
        kv_window=window,
    )
