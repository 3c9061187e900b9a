"""Discover the structure of a model by experiment: run it on a tiny example, look at the flow, prove what is claimed.

No class names are used anywhere; what a module is follows from what it did to its input.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bitwright.errors import InputError
from bitwright.machine import return_free_memory
from bitwright.models.accounting import exceptions, out_of_reach
from bitwright.models.calling import example_inputs, on_device_of, shrunk
from bitwright.models.chain import Chain, find_chains
from bitwright.models.convolutions import ConvolutionFinder
from bitwright.models.flow import Flow
from bitwright.models.model import Model
from bitwright.models.norms import find_norms
from bitwright.models.outline import record_shapes
from bitwright.models.pairs import PairFinder
from bitwright.models.prove import SUFFIX, Prover, relative_error
from bitwright.models.record import Run, record_run
from bitwright.models.residual import NotOffered, propose_stream
from bitwright.models.rotary import RotaryFinder
from bitwright.models.rotation import RotationProof
from bitwright.models.routing import complete_experts, mark_experts
from bitwright.models.rules import NO_RULES, Rules, excluded, named_chain, ruled_sites
from bitwright.models.sites import find_uses, mark_head, sites_of
from bitwright.models.stream import BlockStream, logits_of
from bitwright.models.structure import Pair, ResidualStream, RotaryPair, Structure, WeightSite
from bitwright.models.unseen import unseen_sites

CHAIN_TOLERANCE = 1e-4
MAX_CHAINS = 4
# What a block may raise when it does not get what another block used to leave for it.
REPLAY_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, InputError)


def discover(model: Model, example: Any = None, proofs: bool = True, rules: Rules = NO_RULES) -> Structure:
    """Everything Bitwright needs to know of a model, from one recorded run on ``example`` and proofs per block.

    Args:
        model: an opened model, in memory or streamed (then parameters are read as they are used).
        example: a batch (tensor, tuple or mapping), of which a few rows and tokens are used; made from the model's
            config where None.
        proofs: without them only blocks, sites and ties are found, from a run of shapes that reads no weight; that is
            enough for recipes that change nothing but the weights one by one.
        rules: what the user says; it goes before what is found.

    Raises:
        InputError: when no example is given and none can be made, or a rule does not hold.
    """
    rules.check(model.module)
    example = example_inputs(model.module) if example is None else shrunk(example)
    example = on_device_of(model.module, example)
    outline = None if proofs else record_shapes(model, example)
    if outline is not None:
        return _accounted(model, outline, _outlined(model, outline, rules), rules)
    run = record_run(model, example)
    dropped: list[str] = []
    for chain in _chains(model, run, rules):
        try:
            found = _with_chain(model, run, chain, example)
        except REPLAY_FAILURES as error:
            if not chain.calls:
                raise
            why = f"its blocks cannot be run alone ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        else:
            if found.chain_error <= CHAIN_TOLERANCE:
                break
            why = f"run block by block the output moves by {found.chain_error:.1e}: layers behind it read more"
        if rules.name_blocks:
            raise InputError(f"the blocks {chain.paths[0]} .. {chain.paths[-1]} of the rules do not hold: {why}")
        dropped.append(f"the chain {chain.paths[0]} .. {chain.paths[-1]} was dropped, {why}")
    return _accounted(model, run, replace(found, reasons=condensed([*dropped, *found.reasons])), rules)


def _chains(model: Model, run: Run, rules: Rules) -> list[Chain]:
    """Chains worth a try, the best first; what the rules name is the only one."""
    named = named_chain(rules, model.module, run)
    if named is not None:
        return [named]
    return [*find_chains(model.module, run, excluded(rules, model.module))[:MAX_CHAINS], Chain(())]


def _outlined(model: Model, run: Run, rules: Rules) -> Structure:
    """What a run of shapes tells."""
    chain = _chains(model, run, rules)[0]
    paths = chain.paths
    uses = mark_head(run, find_uses(model, run, paths), chain.calls[-1] if chain.calls else None)
    uses = mark_experts(model.module, run, uses)
    return Structure(
        blocks=paths,
        sites=tuple(sites_of(uses)),
        reasons=("norms, pairs and the residual stream were not looked for",),
        returns=tuple(call.items for call in chain.calls),
        aside=chain.aside,
    )


def _accounted(model: Model, run: Run, found: Structure, rules: Rules) -> Structure:
    """Add the sites that the run did not reach, the ties, and what no site covers."""
    sites = list(found.sites)
    reasoned = exceptions(run, _uncovered(model.module, sites))
    sites += unseen_sites(model, sites, found.blocks, dict(reasoned))
    found = ruled_sites(rules, model, replace(found, sites=tuple(sites)))
    rest = _uncovered(model.module, list(found.sites))
    reasoned += out_of_reach(run, [name for name in rest if name not in dict(reasoned)])
    return replace(
        complete_experts(model.module, found),
        ties=find_ties(model.module),
        exceptions=reasoned,
        unaccounted=tuple(name for name in rest if name not in dict(reasoned)),
    )


def _uncovered(module: nn.Module, sites: list[WeightSite]) -> list[str]:
    """Parameters of two or more dimensions that no site covers."""
    covered = {site.name for site in sites} | {site.tied_to for site in sites}
    return [name for name, p in module.named_parameters() if p.dim() >= 2 and name not in covered]


def condensed(reasons: list[str]) -> tuple[str, ...]:
    """Reasons that differ in numbers only are said once, with their count."""
    alike: dict[str, list[str]] = {}
    for reason in reasons:
        alike.setdefault(re.sub(r"\d+", "#", reason), []).append(reason)
    return tuple(
        group[0] if len(group) == 1 else f"{group[0]} (and {len(group) - 1} more alike)" for group in alike.values()
    )


def _with_chain(model: Model, run: Run, chain: Chain, example: Any) -> Structure:
    """All that follows from a recorded run once the chain of blocks is fixed."""
    reasons: list[str] = []
    stream = BlockStream(model, chain.paths, tuple(call.items for call in chain.calls), chain.aside)
    uses = mark_head(run, find_uses(model, run, chain.paths), chain.calls[-1] if chain.calls else None)
    uses = mark_experts(model.module, run, uses)
    norms = find_norms(model, run, chain.paths)
    flow = Flow(run, uses, norms)
    rotation = _propose_rotation(model, flow, chain, reasons)
    rotary: list[RotaryPair] = []
    prover, pairs, residual, error = _prove_blocks(model, flow, stream, chain, example, rotation, reasons, rotary)
    if error <= CHAIN_TOLERANCE:
        convolutions = ConvolutionFinder(model, flow, prover)
        pairs += convolutions.all_pairs()
        reasons += convolutions.reasons
    return Structure(
        blocks=chain.paths,
        sites=tuple(sites_of(uses)),
        norms=norms,
        pairs=tuple(pairs),
        residual=residual,
        reasons=tuple(reasons),
        chain_error=error,
        returns=stream.returns,
        aside=chain.aside,
        rotary=tuple(rotary),
    )


def chain_holds(model: Model, structure: Structure, example: Any = None) -> bool:
    """Whether the model can be run block by block, for a structure that was found from shapes alone.

    One block at a time is in memory; that the output is the same is known from the recorded flow.
    """
    if not structure.blocks:
        return True
    example = on_device_of(model.module, example_inputs(model.module) if example is None else shrunk(example))
    stream = block_stream(model, structure)
    try:
        with torch.no_grad():
            calls = stream.prefix_inputs([example])[0]
            hidden = calls.hidden
            for index, path in enumerate(structure.blocks):
                with model.unit(path):
                    hidden = stream.run_block(index, calls, hidden)
                return_free_memory()
            stream.run_suffix(calls, hidden)
    except REPLAY_FAILURES:
        return False
    return True


def block_stream(model: Model, structure: Structure) -> BlockStream:
    """Block-wise execution of a discovered model."""
    return BlockStream(model, structure.blocks, structure.returns, structure.aside)


def find_ties(module: nn.Module) -> tuple[tuple[str, str], ...]:
    """Pairs (name, owning name) of parameters that are one tensor."""
    first: dict[int, str] = {}
    ties = []
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            ties.append((name, owner))
    return tuple(ties)


def _propose_rotation(model: Model, flow: Flow, chain: Chain, reasons: list[str]) -> RotationProof | None:
    try:
        return RotationProof(model, flow, propose_stream(model, flow, chain))
    except NotOffered as reason:
        reasons.append(f"residual rotation: {reason}")
        return None


def _prove_blocks(
    model: Model, flow: Flow, stream: BlockStream, chain: Chain, example: Any, rotation: RotationProof | None,
    reasons: list[str], rotary: list[RotaryPair],
) -> tuple[Prover, list[Pair], ResidualStream | None, float]:  # fmt: skip
    """Run the model block by block once, proving each block's pairs while it is loaded; compare the result.

    What fails is added to ``reasons``, rotary pairs to ``rotary``.
    """
    if not stream.blocks:
        reasons.append("no chain of blocks: nothing but the whole model can be run alone")
        prover = Prover(stream, flow.run, example, None, [])
        finder = PairFinder(model, flow, prover)
        pairs = [pair for norm in flow.norms for pair in finder.of_norm(norm)]
        reasons += finder.reasons
        return prover, pairs, None, 0.0
    calls = stream.prefix_inputs([example])[0]
    prover = Prover(stream, flow.run, example, calls, [calls.hidden])
    finder = PairFinder(model, flow, prover)
    turned = RotaryFinder(model, flow, prover)
    pairs = []
    for index, call in enumerate(chain.calls):
        with model.unit(call.path):
            prover.hidden.append(prover.output(index))
            pairs += finder.in_block(index, call)
            rotary += turned.in_block(index, call)
            rotation = _rotate_block(rotation, prover, index, reasons)
    error = relative_error(prover.output(SUFFIX), logits_of(flow.run.result))
    if not error <= CHAIN_TOLERANCE:
        return prover, [], None, error
    for norm in flow.norms:
        if norm.block is None:
            pairs += finder.of_norm(norm)
    reasons += finder.reasons
    return prover, pairs, _rotate_ends(rotation, prover, reasons), error


def _rotate_block(
    rotation: RotationProof | None, prover: Prover, index: int, reasons: list[str]
) -> RotationProof | None:
    if rotation is not None:
        try:
            rotation.block(prover, index)
        except NotOffered as reason:
            reasons.append(f"residual rotation: {reason}")
            return None
    return rotation


def _rotate_ends(rotation: RotationProof | None, prover: Prover, reasons: list[str]) -> ResidualStream | None:
    if rotation is None:
        return None
    try:
        return rotation.ends(prover)
    except NotOffered as reason:
        reasons.append(f"residual rotation: {reason}")
        return None
