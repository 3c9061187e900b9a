"""Which decoder serves a model: the compiled step where it is proved, else the model's modules."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import nn

from bitwright.data.seeds import stream
from bitwright.errors import InputError
from bitwright.native import extension, unavailable
from bitwright.runtime.decoder import Decoders, ModuleDecoder, module_decoders
from bitwright.runtime.native_decoder.build import NativeNetwork, build
from bitwright.runtime.native_decoder.cache import cache_of
from bitwright.runtime.native_decoder.decoder import NativeDecoder
from bitwright.runtime.native_decoder.plan import NotServedError
from bitwright.runtime.native_decoder.read import read_plan
from bitwright.runtime.native_decoder.trace import distance

_LOG = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""How far logits may be from the model's, beside the largest of them: both compute in fp32."""

ROUNDED = 2e-2
"""The same where activations are rounded to 8 bits: a value at the edge of two codes may fall on either side."""

SHORT = 5e-2
"""The same where the model computes in 16 bits."""

_PROMPT, _STEPS = 19, 5


@dataclass(frozen=True, eq=False)
class Found:
    """Decoders of a model; ``reason`` says why the compiled step does not serve it (``None``: it does).

    ``error``: how far the compiled step's logits were from the model's in the proof.
    """

    decoders: Decoders
    network: NativeNetwork | None
    reason: str | None
    error: float | None

    @property
    def native(self) -> bool:
        """Whether the compiled step serves the model."""
        return self.network is not None


def find_decoders(model: nn.Module, native: bool = True, instruction_set: str | None = None) -> Found:
    """Decoders over ``model``, compiled where that is asked for and proved.

    Raises:
        InputError: if the model is no causal language model.
    """
    fallback = module_decoders(model)
    if not native:
        return Found(fallback, None, "it was not asked for", None)
    try:
        network, error = native_network(model, instruction_set)
    except NotServedError as refused:
        _LOG.warning("the compiled step does not serve this model (%s); its modules run", refused)
        return Found(fallback, None, str(refused), None)
    return Found(lambda: NativeDecoder(network), network, None, error)


def native_network(model: nn.Module, instruction_set: str | None = None) -> tuple[NativeNetwork, float]:
    """The compiled network of a model, and how far its logits are from the model's.

    Raises:
        NotServedError: where it cannot be expressed, or is not equal.
    """
    missing = unavailable()
    if missing is not None:
        raise NotServedError(missing)
    if not hasattr(extension(), "Network"):
        raise NotServedError("the compiled kernels are older than this version; install bitwright again")
    try:
        plan = read_plan(model)
        network = build(plan, cache_of(model, plan.head_dim), instruction_set)
        error = _prove(model, network)
    except InputError as refused:
        raise NotServedError(str(refused)) from refused
    return network, error


def _prove(model: nn.Module, network: NativeNetwork) -> float:
    """Compare a prompt and a few steps; the largest deviation."""
    count = min(_PROMPT, network.plan.context - _STEPS)
    ids = torch.randint(0, network.plan.vocabulary, (count + _STEPS,), generator=stream(1, "native decoder")).tolist()
    own, other = NativeDecoder(network), ModuleDecoder(model)
    worst = distance(own.start(ids[:count]), other.start(ids[:count]))
    for token in ids[count:]:
        worst = max(worst, distance(own.step(token), other.step(token)))
    limit = tolerance(model, network.exact)
    if not worst <= limit:
        raise NotServedError(f"its logits differ from the model's by {worst:.1e} of the largest, beyond {limit:.0e}")
    return worst


def tolerance(model: nn.Module, exact: bool) -> float:
    """How far the logits may be away, beside the largest."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if kinds - {torch.float32, torch.float64}:
        return SHORT
    return TOLERANCE if exact else ROUNDED
