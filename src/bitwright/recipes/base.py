"""The recipe: which stages fill which slots, and the claim that the result must meet."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from bitwright.stages.corrections.base import Correction
from bitwright.stages.learn.base import Learn
from bitwright.stages.site import Rule
from bitwright.stages.transforms import Transform


@dataclass(frozen=True)
class Data:
    """How much calibration data a recipe asks for: ``sequences`` of ``length`` tokens (or ``sequences`` images)."""

    sequences: int = 128
    length: int = 512


@dataclass(frozen=True)
class Check:
    """One measured statement of a claim.

    ``kind``:
      ``better_than``: ``metric`` of the recipe is lower than that of ``baseline`` by at least ``margin`` (a share of
      the baseline's value, or of its distance to the float value where ``of_gap`` is set);
      ``at_most``: ``metric`` <= ``margin``; ``equals``: within ``margin`` of the baseline's;
      ``order``: the metric rises along ``baseline`` given as ``"a < b < c"`` of variant names;
      ``ablation``: the variant ``baseline`` must be worse by ``margin``.
    Variants are named in the claim. Values are means over ``seeds``. ``asset`` names another asset than the claim's,
    which is then measured as it is; the check is left out, and the result says so, where that asset is not there.
    """

    kind: Literal["better_than", "at_most", "equals", "order", "ablation"]
    metric: str
    baseline: str = ""
    margin: float = 0.0
    at: str = ""
    of_gap: bool = False
    text: str = ""
    asset: str = ""


@dataclass(frozen=True)
class Variant:
    """A named change of the recipe (or another recipe) that a claim measures: ``recipe`` and its ``arguments``."""

    name: str
    recipe: str
    arguments: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Claim:
    """What is measured on which asset.

    ``asset`` names an entry of ``claims/assets.toml`` (or ``zoo``); ``prepare`` is ``as is`` or ``plant outliers``;
    ``formats`` are the weight formats at which the checks are repeated; ``note`` explains a check that fails.
    """

    asset: str
    checks: tuple[Check, ...]
    variants: tuple[Variant, ...] = ()
    formats: tuple[str, ...] = ()
    prepare: str = "as is"
    seeds: tuple[int, ...] = (0,)
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """Slots, all frozen values; an empty slot does nothing.

    ``weights`` and ``activations`` are rules over linears and convolutions (an activation rule codes the module's
    input); ``kv_cache`` rules select ``key`` and ``value``, seen as ``[tokens, head_dim]`` per head, and ``kv_window``
    recent tokens stay float. In each list the last match wins.
    """

    weights: tuple[Rule, ...] = ()
    activations: tuple[Rule, ...] = ()
    kv_cache: tuple[Rule, ...] = ()
    kv_window: int = 0
    transforms: tuple[Transform, ...] = ()
    corrections: tuple[Correction, ...] = ()
    learn: tuple[Learn, ...] = ()
    data: Data = field(default_factory=Data)
    name: str = ""


@dataclass(frozen=True)
class RecipeInfo:
    """A recipe function with its catalogue entry."""

    name: str
    number: int | None
    family: str
    paper: str
    build: Callable[..., Recipe]
    claim: Claim | None

    @property
    def summary(self) -> str:
        """First paragraph of the docstring."""
        return (inspect.getdoc(self.build) and (inspect.getdoc(self.build) or "").split("\n\n")[0]) or ""

    @property
    def parameters(self) -> dict[str, object]:
        """Names and defaults of the function's parameters, in order."""
        return {k: p.default for k, p in inspect.signature(self.build).parameters.items()}


def recipe(
    name: str, *, family: str, paper: str, number: int | None = None, claim: Claim | None = None
) -> Callable[[Callable[..., Recipe]], RecipeInfo]:
    """Decorate a function that builds a :class:`Recipe`; every parameter of the function needs a default."""

    def wrap(build: Callable[..., Recipe]) -> RecipeInfo:
        return RecipeInfo(name, number, family, paper, build, claim)

    return wrap
