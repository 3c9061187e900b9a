"""The demonstration: a few recipes on the embedded model, each written, verified, read back and measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitwright.data import TokenData
from bitwright.evaluation import ReferenceLogits, logits_of, score_lm
from bitwright.evaluation.speed import generation_speed
from bitwright.jobs.command import quantize_request
from bitwright.jobs.evaluate import evaluation_data
from bitwright.jobs.opened_model import RunnableModel, open_runnable
from bitwright.jobs.page import comparison_page
from bitwright.jobs.request import Request
from bitwright.models.writer import write_text

RUNS = (
    ("rtn", "int8 channel asym"),
    ("rtn", "int4 g64 asym"),
    ("gptq", "int4 g64 asym"),
    ("rtn", "int3 g64 asym"),
    ("gptq", "int3 g64 asym"),
    ("rtn", "mxfp4"),
)
_EVALUATED, _CALIBRATED = 32, 32


def run_demo(out: Path, seed: int = 0, say: Callable[[str, float], None] = lambda text, share: None) -> dict[str, Any]:
    """Run the demonstration into ``out`` and return the rows that the command prints."""
    out.mkdir(parents=True, exist_ok=True)
    model = open_runnable("zoo")
    data = evaluation_data(model, "", _EVALUATED)
    assert isinstance(data, TokenData)
    reference = ReferenceLogits.gather(logits_of(model.module), data)
    rows = [_measure("float", "", model, data, None)]
    for done, (recipe, weights) in enumerate(RUNS):
        say(f"{recipe} {weights}", done / len(RUNS))
        folder = out / f"{recipe}-{weights}".replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        request = Request("zoo", recipe, (), weights, sequences=_CALIBRATED, out=str(folder), seed=seed)
        summary = quantize_request(request)
        row = _measure(recipe, weights, open_runnable(str(folder)), data, reference)
        rows.append(row | {"seconds": summary["seconds"], "verified": summary["verified"]})
    result: dict[str, Any] = {"model": "zoo", "protocol": data.protocol, "rows": rows}
    page = out / "report.html"
    write_text(page, comparison_page(result))
    return result | {"page": str(page)}


def _measure(recipe: str, weights: str, model: RunnableModel, data: TokenData, reference: Any) -> dict[str, Any]:
    scores = score_lm(logits_of(model.module, model.cache_factory), data, reference)
    config: Any = model.module.config
    vocabulary = int(config.vocab_size)
    speed = generation_speed(model.module, vocabulary, prompt=32, new_tokens=16, repeats=1)
    bits = model.bits_per_weight
    return {
        "recipe": recipe, "format": weights,
        "bits_per_weight": model.stored_bits_per_parameter if bits is None else bits,
        "bytes": model.stored_bytes, "perplexity": scores.perplexity,
        "kl": 0.0 if scores.kl is None else scores.kl,
        "top1_agreement": 1.0 if scores.top1_agreement is None else scores.top1_agreement,
        "tokens_per_second": speed.tokens_per_second, "seconds": 0.0,
    }  # fmt: skip
