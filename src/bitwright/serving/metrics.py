"""Counts of an engine in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

from bitwright.serving.engine import Counts

METRICS = "/metrics"
KIND = "text/plain; version=0.0.4"

_COUNTERS = (
    ("steps", "steps_total", "Steps of decoding that were taken."),
    ("rows", "step_rows_total", "Tokens that these steps read; over the steps: answers that took a step together."),
    ("read", "prompt_tokens_total", "Tokens of prompts that were read."),
    ("known", "prompt_tokens_cached_total", "Tokens of prompts that the prompt cache had."),
    ("drawn", "generated_tokens_total", "Tokens that were drawn."),
    ("answers", "answers_total", "Answers that have ended."),
    ("errors", "answer_errors_total", "Answers that ended with an error."),
)


def exposition(load: tuple[int, int], counts: Counts) -> str:
    """What a scraper reads: answers that run and wait, and all counts."""
    running, waiting = load
    gauges = (
        ("answers_running", "Answers that run.", running),
        ("answers_waiting", "Requests that wait.", waiting),
        ("step_rows", "Answers in the last step.", counts.last_rows),
    )
    lines = [line for name, text, value in gauges for line in _metric(name, "gauge", text, value)]
    for field, name, text in _COUNTERS:
        lines += _metric(name, "counter", text, getattr(counts, field))
    return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, text: str, value: int) -> list[str]:
    name = f"bitwright_{name}"
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value}"]
