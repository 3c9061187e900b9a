"""Discover the structure of a model by experiment: run it on a tiny example, look at the flow, prove what is claimed.

No class names are used anywhere; what a module is follows from what it did to its input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bitwright.models.calling import example_inputs
from bitwright.models.chain import find_chain
from bitwright.models.model import Model
from bitwright.models.record import Run, record_run
from bitwright.models.sites import find_uses, mark_head, unseen_sites
from bitwright.models.stream import BlockStream, logits_of
from bitwright.models.structure import Structure

CHAIN_TOLERANCE = 1e-4


def discover(model: Model, example: Any = None) -> Structure:
    """Everything Bitwright needs to know of a model, from one recorded run on ``example`` and proofs per block.

    Args:
        model: an opened model, in memory or streamed (then parameters are read as they are used).
        example: a small batch (tensor, tuple or mapping); made from the model's config where None.

    Raises:
        InputError: when no example is given and none can be made.
    """
    example = example_inputs(model.module) if example is None else example
    run = record_run(model, example)
    chain = find_chain(model.module, run)
    reasons = list(chain.reasons)
    stream = BlockStream(model, chain.paths, tuple(call.items for call in chain.calls))
    error = _replay(stream, run, example, reasons)
    uses = mark_head(run, find_uses(model, run, chain.paths), chain.calls[-1] if chain.calls else None)
    sites = [use.site for use in uses]
    sites += unseen_sites(model, {site.name for site in sites}, chain.paths)
    covered = {site.name for site in sites} | {site.tied_to for site in sites}
    unaccounted = tuple(n for n, p in model.module.named_parameters() if p.dim() >= 2 and n not in covered)
    return Structure(
        blocks=chain.paths,
        sites=tuple(sites),
        ties=find_ties(model.module),
        reasons=tuple(reasons),
        unaccounted=unaccounted,
        chain_error=error,
        returns=stream.returns,
    )


def block_stream(model: Model, structure: Structure) -> BlockStream:
    """Block-wise execution of a discovered model."""
    return BlockStream(model, structure.blocks, structure.returns)


def find_ties(module: nn.Module) -> tuple[tuple[str, str], ...]:
    """Pairs (name, owning name) of parameters that are one tensor."""
    first: dict[int, str] = {}
    ties = []
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            ties.append((name, owner))
    return tuple(ties)


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute value of the reference (infinite for NaN)."""
    size = float(reference.abs().max())
    error = float((value - reference).abs().max()) / (size or 1.0)
    return error if error == error else float("inf")


def _replay(stream: BlockStream, run: Run, example: Any, reasons: list[str]) -> float:
    """Run the model block by block and compare with the recorded result."""
    if not stream.blocks:
        reasons.append("no chain of blocks: nothing but the whole model can be run alone")
        return 0.0
    with torch.no_grad():
        calls = stream.prefix_inputs([example])[0]
        hidden = calls.hidden
        for index, path in enumerate(stream.blocks):
            with stream.model.unit(path):
                hidden = stream.run_block(index, calls, hidden)
        error = relative_error(logits_of(stream.run_suffix(calls, hidden)), logits_of(run.result))
    if error > CHAIN_TOLERANCE:
        reasons.append(
            f"running block by block moves the output by {error:.1e}: layers behind read more than the last block"
        )
    return error
