"""Which kernels will serve the result of a job, before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bitwright.errors import BitwrightError
from bitwright.jobs.choice import Choice
from bitwright.jobs.opening import Job, Opened
from bitwright.native import unavailable
from bitwright.runtime.dispatch import Request
from bitwright.runtime.kernels.table import TABLE
from bitwright.runtime.manifest import CacheSide
from bitwright.runtime.module import normal_form
from bitwright.runtime.overview import ONE, KernelNames, attention_words, kernel_names, torch_kernel
from bitwright.stages.quantizer import Quantizer
from bitwright.stages.residuals import LowRankError
from bitwright.stages.site import Target, select

FLOAT_KERNEL = torch_kernel(torch.float32)


def planned_kernels(choice: Choice) -> KernelNames:
    """The kernels for one token of a weight under its quantizers, on this machine's processor."""
    if choice.weight is None:
        return KernelNames(FLOAT_KERNEL, FLOAT_KERNEL)
    return kernel_names(_request(choice, choice.weight), TABLE)


def _request(choice: Choice, weight: Quantizer) -> Request:
    terms = [{"kind": "codes", "format": str(weight.format)}]
    terms += [{"kind": "lowrank" if isinstance(r, LowRankError) else "sparse"} for r in weight.residuals]
    op = "conv2d" if choice.site.kind == "conv" else choice.site.kind
    given = None if choice.input is None else str(choice.input.format)
    return Request(
        op, normal_form({"terms": terms}), "cpu", torch.float32, choice.site.shape, str(weight.format), ONE, given
    )


def planned_decoding(job: Job, opened: Opened) -> dict[str, Any]:
    """``attention``, ``decoder`` and ``online`` of a plan, as JSON values; the first two ``None`` without a vocabulary.

    Whether the compiled decoding step serves is settled by running the result. Here it is ruled out by what the recipe
    leaves behind, and else expected (``reason`` is ``None``).
    """
    online = [type(t).__name__ for t in job.recipe.transforms if t.leaves_online]
    config: Any = getattr(opened.model.module, "config", None)
    if not isinstance(getattr(config, "vocab_size", None), int):
        return {"attention": None, "decoder": None, "online": online}
    cache = planned_cache(job)
    reason = unavailable() or _obstacle(job, opened, online, cache)
    attention = attention_words(cache, torch.float32, reason is None)
    decoder = {"decoder": "native" if reason is None else "modules", "reason": reason}
    return {"attention": attention, "decoder": decoder, "online": online}


def planned_cache(job: Job) -> dict[str, Any] | None:
    """Formats of keys and values, as the manifest will say them; ``None`` where both stay float."""
    found: dict[str, Any] = {}
    for site in ("key", "value"):
        quantizer = select(job.recipe.kv_cache, Target(site, site, "cache"))
        if quantizer is not None:
            found[site] = {"format": quantizer.format}
    return {**found, "window": job.recipe.kv_window} if found else None


def _obstacle(job: Job, opened: Opened, online: list[str], cache: Mapping[str, Any] | None) -> str | None:
    """What the recipe leaves behind that the compiled step has no form for."""
    from bitwright.runtime.native_decoder.plan import placed

    served = placed(TABLE)
    if online:
        return f"the transform {online[0]} leaves operations that run with the model"
    for path, choice in opened.choices.items():
        if choice.site.expert is not None:
            return f"{path} belongs to a mixture of experts"
        if choice.site.kind == "linear" and choice.input is not None:
            return f"the input of {path} is coded"
        coded = choice.weight is not None and choice.site.kind == "linear"
        if coded and choice.weight and kernel_names(_request(choice, choice.weight), served).kernel == "none":
            return f"{path} runs on {planned_kernels(choice).kernel}"
        if choice.weight is not None and choice.weight.residuals:
            return f"{path} has terms beside its codes"
    return _cache_obstacle(opened, cache or {})


def _cache_obstacle(opened: Opened, cache: Mapping[str, Any]) -> str | None:
    from bitwright.runtime.native_decoder.cache import coding_numbers
    from bitwright.runtime.native_decoder.plan import NotServedError
    from bitwright.runtime.states import StateCoder

    config: Any = opened.model.module.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(text, "num_attention_heads", None) or 1
    width = getattr(text, "head_dim", None) or int(getattr(text, "hidden_size", 0)) // int(heads)
    for side in ("key", "value"):
        if side in cache:
            try:
                coding_numbers(StateCoder(CacheSide(cache[side]["format"]), TABLE), int(width))
            except (NotServedError, BitwrightError) as error:
                return str(error)
    return None
