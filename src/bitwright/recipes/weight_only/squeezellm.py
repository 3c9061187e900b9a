"""SqueezeLLM: sensitivity-weighted tables of levels, and sparse outliers."""

from __future__ import annotations

from bitwright.formats import Format, parse
from bitwright.recipes.base import Check, Claim, Data, Recipe, Variant, recipe
from bitwright.stages.codebooks import WeightedKMeans
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.residuals import Outliers
from bitwright.stages.rounding import Nearest
from bitwright.stages.site import rule
from bitwright.statistics.fisher import Fisher


@recipe(
    "squeezellm",
    number=34,
    family="weight-only",
    paper="Kim et al. 2023, SqueezeLLM, arXiv:2306.07629",
    claim=Claim(
        "lm-stories260k",
        (Check("order", "perplexity", baseline="dense and sparse < dense < unweighted < uniform"),),
        variants=(
            Variant("dense and sparse", "squeezellm", (("weights", "lut3 channel"),)),
            Variant("dense", "squeezellm", (("weights", "lut3 channel"), ("magnitude", 0.0), ("sensitive", 0.0))),
            Variant(
                "unweighted",
                "squeezellm",
                (("weights", "lut3 channel"), ("fisher", False), ("magnitude", 0.0), ("sensitive", 0.0)),
            ),
            Variant("uniform", "rtn", (("weights", "int3 channel asym"),)),
        ),
        formats=("lut3 channel",),
    ),
)
def squeezellm(
    weights: Format = parse("lut4 channel"),
    fisher: bool = True,
    magnitude: float = 0.004,
    sensitive: float = 0.0005,
    samples: int = 100,
    select: str = "linear,conv",
) -> Recipe:
    """A table of levels per output row by k-means, weighted with how much the loss feels each weight.

    The levels minimise ``sum_i F_i (w_i - q(w_i))^2``, F the mean squared gradient over ``samples`` sequences. Before,
    the largest ``magnitude`` and the most sensitive ``sensitive`` share of the weights are taken out and kept in fp16.
    What differs from the paper: outliers are a share of the matrix, not what passes a threshold for the whole model;
    k-means is nearly exact; a sparse value holds the weight less what the table gives its place.

    A table costs ``16 * 2^bits`` bits a row: little on rows of thousands, 2 bits a weight at 3 bits on rows of 64.

    Cost: ``samples`` backward passes of the whole float model, which must be in memory; k-means per row.
    """
    request = Fisher(samples)
    sparse = Outliers(magnitude, sensitive if fisher else 0.0, fisher=request)
    quantizer = Quantizer(
        weights,
        rounding=Nearest(),
        codebook=WeightedKMeans("fisher" if fisher else "none", request),
        residuals=(sparse,) if magnitude or (fisher and sensitive) else (),
    )
    return Recipe(weights=(rule(select, quantizer),), data=Data(samples, 512))
