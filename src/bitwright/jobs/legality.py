"""Whether an engine will serve what a job would make, before a weight is read; and what is nearest to it otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitwright.errors import InputError
from bitwright.formats import Format, Group, parse
from bitwright.interop.engines import Engine, Layer, Objection
from bitwright.interop.engines import engine as find_engine
from bitwright.interop.engines.base import Split
from bitwright.jobs.opening import Job, Opened
from bitwright.models import WeightSite

_SHOWN = 3
MOST_DEVICES = 8


@dataclass(frozen=True)
class Legality:
    """An engine's answer to a plan.

    ``nearest`` is a weight format that it serves everywhere, or serves with the layers ``floating`` kept float; empty
    where there is none. ``parallel`` is the number of devices asked for, ``fewer`` the largest number below it on
    which the plan is legal as it is (0: none).
    """

    engine: str
    parallel: int
    objections: tuple[Objection, ...]
    nearest: str = ""
    floating: tuple[str, ...] = ()
    fewer: int = 0

    @property
    def legal(self) -> bool:
        """Whether the engine serves the plan."""
        return not self.objections

    @property
    def text(self) -> str:
        """One sentence."""
        where = self.engine if self.parallel == 1 else f"{self.engine} on {self.parallel} devices"
        if self.legal:
            return f"{where} serves this plan"
        first = "; ".join(f"{o.path}: {o.why}" for o in self.objections[:_SHOWN])
        more = len(self.objections) - _SHOWN
        ways = []
        if self.nearest and not self.floating:
            ways.append(f'--weights "{self.nearest}"')
        elif self.nearest:
            kept = f"{len(self.floating)} layers float, the first {self.floating[0]}"
            ways.append(f'--weights "{self.nearest}" with {kept}')
        if self.fewer:
            ways.append(f"--parallel {self.fewer}")
        mend = f"nearest legal: {' or '.join(ways)}" if ways else "nothing near it is legal; choose another engine"
        return f"{where} would not serve this plan ({first}{f'; and {more} more' if more > 0 else ''}); {mend}"


def check_engine(job: Job, opened: Opened) -> Legality:
    """Ask the job's engine about an opened job on as many devices as the job names.

    Raises:
        InputError: for an unknown engine, or a number of devices that is not from 1 to 8.
    """
    engine, parallel = find_engine(job.engine), job.parallel
    if not 1 <= parallel <= MOST_DEVICES:
        raise InputError(f"--parallel takes 1 to {MOST_DEVICES} devices, not {parallel}")
    layers = planned_layers(job, opened)
    found = tuple(engine.object_to(layers, parallel))
    if job.recipe.kv_cache:  # no format and no number of devices mends that
        cache = Objection("the cache", "its keys and values are quantized by scales measured while it runs")
        return Legality(engine.name, parallel, (cache, *found))
    if not found:
        return Legality(engine.name, parallel, ())
    text, floating = _nearest(layers, engine, parallel)
    fewer = next((n for n in range(parallel - 1, 0, -1) if not engine.object_to(layers, n)), 0)
    return Legality(engine.name, parallel, found, text, floating, fewer)


def planned_layers(job: Job, opened: Opened) -> list[Layer]:
    """What the plan makes of every weight, as engines see it."""
    groups: dict[tuple[int | None, int], int] = {}
    for site in opened.structure.sites:
        groups[site.block, site.shared_input] = groups.get((site.block, site.shared_input), 0) + 1
    heads = _heads(opened)
    layers = []
    for path, choice in opened.choices.items():
        site = choice.site
        together = groups[site.block, site.shared_input]
        weight = choice.weight
        terms = tuple(type(r).__name__ for r in weight.residuals) if weight is not None else ()
        layers.append(
            Layer(
                path, site.kind, site.shape, None if weight is None else weight.format,
                None if choice.input is None else choice.input.format, _split(site, together, opened),
                _head_dim(site, together, heads), _joined(site, together), terms,
                online=any(t.leaves_online for t in job.recipe.transforms),
            )
        )  # fmt: skip
    return layers


def _split(site: WeightSite, together: int, opened: Opened) -> Split:
    """Engines cut what reads a block's stream by its rows and what writes to it by its columns.

    A layer that shares its input, or is not as wide as the stream, reads it; another one writes to it.
    """
    if site.role == "head":
        return "rows"
    if site.role != "block" or site.kind != "linear":
        return "none"
    width = _stream_width(opened)
    return "columns" if together == 1 and site.shape[0] == width and site.seen else "rows"


def _stream_width(opened: Opened) -> int:
    if opened.structure.residual is not None:
        return opened.structure.residual.dim
    return int(_config(opened).get("hidden_size", 0))


def _config(opened: Opened) -> dict[str, Any]:
    config: Any = getattr(opened.model.module, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found: dict[str, Any] = text.to_dict() if hasattr(text, "to_dict") else {}
    return found


def _heads(opened: Opened) -> tuple[int, int, int]:
    """Query heads, key-value heads and the width of one, as the model's config says them; zeros where it does not."""
    config = _config(opened)
    queries = config.get("num_attention_heads") or 0
    if not isinstance(queries, int) or queries == 0:
        return 0, 0, 0
    keys = config.get("num_key_value_heads") or queries
    width = config.get("head_dim") or int(config.get("hidden_size", 0)) // queries
    return queries, int(keys), int(width)


def _head_dim(site: WeightSite, together: int, heads: tuple[int, int, int]) -> int:
    queries, keys, width = heads
    attends = site.role == "block" and together >= 3 and site.shape[0] in (queries * width, keys * width)
    return width if attends else 0


def _joined(site: WeightSite, together: int) -> str:
    """What an engine makes one matrix of: layers that read one tensor, and all experts of a block."""
    if site.expert is not None:
        return f"experts of block {site.block}"
    return f"readers of {site.shared_input}" if together > 1 and site.role == "block" else ""


def _nearest(layers: Sequence[Layer], engine: Engine, parallel: int) -> tuple[str, tuple[str, ...]]:
    """The nearest format that the engine serves, and the layers that stay float with it."""
    coded = [layer.weight for layer in layers if layer.weight is not None and layer.kind != "embedding"]
    if not coded:
        return "", ()
    usual = max(set(coded), key=coded.count)
    best: tuple[str, tuple[str, ...]] = ("", ())
    for text in sorted(engine.candidates, key=lambda t: _distance(usual, parse(t))):
        fmt = parse(text)
        tried = [replace(x, weight=fmt if x.weight is not None else None) for x in layers]
        bad = {o.path for o in engine.object_to(tried, parallel)}
        if not bad:
            return str(fmt), ()
        kept = [replace(x, weight=None, input=None) if x.path in bad else x for x in tried]
        if not engine.object_to(kept, parallel) and (not best[0] or len(bad) < len(best[1])):
            best = (str(fmt), tuple(x.path for x in layers if x.path in bad))
    return best


def _distance(a: Format, b: Format) -> tuple[float, ...]:
    """How far a format is from another one: bits first, then the kind of grid, zero points, and the group."""
    sizes = [f.granularity.size if isinstance(f.granularity, Group) else 1 << 14 for f in (a, b)]
    return (
        abs(a.grid.bits - b.grid.bits),
        float(type(a.grid) is not type(b.grid)),
        float((a.zero is None) != (b.zero is None)),
        abs(math.log2(sizes[0] / sizes[1])),
    )
