"""Evaluate every result in the work directory with one evaluator and write the table.

Perplexity is over every token after BOS of each story alone; the divergence is KL(float || quantized) of the next-token
distribution at the same positions, in nats per token. Both in fp32.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import math
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from exchange import ANSWERS, answers, arguments, decoder_linears, evaluation_tokens, load_model, results

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "benchmarks" / "results" / "peers_lm.json"
TIMES = ("seconds", "processor_seconds", "load_average")
PROTOCOL = (
    "lm-stories260k; int asym per output row, decoder linears only; calibration 128 x 512 tokens of train_head.txt; "
    "first 200 stories of valid.txt, each alone, BOS + story cut at 512, every token after BOS; KL(float || quantized)"
)


@dataclass
class Quality:
    """What the evaluator reports of one model."""

    perplexity: float
    kl: float


class Evaluator:
    """Holds the float model's answers so that each quantized model costs one pass; remembers what it has measured."""

    def __init__(self, assets: Path, work: Path) -> None:
        """Prepare; the model runs only when a result is new."""
        self.assets, self.work = assets, work
        self.memory = work / "quality.json"
        self.known = json.loads(self.memory.read_text()) if self.memory.exists() else {}

    @functools.cached_property
    def model(self) -> torch.nn.Module:
        """The model whose linear weights are replaced in turn; first in float."""
        return load_model(self.assets)

    @functools.cached_property
    def stories(self) -> list[torch.Tensor]:
        """The evaluation ids."""
        return evaluation_tokens(self.work)

    @functools.cached_property
    def float_answers(self) -> list[torch.Tensor]:
        """The float model's log-probabilities of each story; asked for before any weight is replaced."""
        return answers(self.model, self.stories)

    def quality(self, tensors: dict[str, torch.Tensor]) -> Quality:
        """Perplexity and divergence of a result: weights, answers, or nothing for the float model."""
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].numpy().tobytes())
        key = digest.hexdigest()[:16]
        if key not in self.known:
            self.known[key] = asdict(self._measured(tensors))
            self.memory.write_text(json.dumps(self.known, indent=1) + "\n")
        return Quality(**self.known[key])

    @torch.inference_mode()
    def _measured(self, tensors: dict[str, torch.Tensor]) -> Quality:
        expected = torch.cat(self.float_answers)
        found = self._answers(tensors)
        targets = torch.cat([story[0, 1:] for story in self.stories])
        loss = -found.gather(1, targets[:, None]).double().mean().item()
        divergence = (expected.exp() * (expected - found)).sum(1).double().mean().item()
        return Quality(math.exp(loss), divergence)

    def _answers(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        if ANSWERS in tensors:
            return tensors[ANSWERS]
        if not tensors:
            return torch.cat(self.float_answers)
        linears = decoder_linears(self.model)
        if different := set(linears) ^ {name.removesuffix(".weight") for name in tensors}:
            raise ValueError(f"the weights and the model's linear layers differ in {sorted(different)[:4]}")
        for name, weight in tensors.items():
            linears[name.removesuffix(".weight")].weight.copy_(weight)
        return torch.cat(answers(self.model, self.stories))


def commit() -> str:
    """The repository's commit, with a plus sign when the code measured differs from it."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(
        ["git", "diff", "--quiet", "HEAD", "--", "src", "benchmarks/peers"], cwd=ROOT, capture_output=True
    )
    return head.stdout.strip() + ("+" if changed.returncode else "")


def float_layers(tensors: dict[str, torch.Tensor], original: dict[str, torch.nn.Linear]) -> int | None:
    """How many layers a tool left as they were; unknown where it passed answers."""
    if ANSWERS in tensors:
        return None
    return sum(torch.equal(tensors[f"{name}.weight"], layer.weight) for name, layer in original.items())


def line(row: dict[str, object]) -> str:
    """One row of the printed table."""
    times = "".join(f"{row[key]:10.2f}" if row.get(key) is not None else " " * 10 for key in TIMES)
    return f"{row['peer']:15} {row['method']:20} {row['bits']:4} {row['perplexity']:10.4f} {row['kl']:9.5f}{times}"


def main() -> None:
    """Evaluate, print and write the rows."""
    options = arguments(__doc__ or "", out={"type": Path, "default": TABLE})
    evaluator = Evaluator(options.assets, options.work)
    original = decoder_linears(load_model(options.assets))
    stamp = {"commit": commit(), "date": datetime.date.today().isoformat(), "protocol": PROTOCOL}
    rows = [{"peer": "float", "method": "none", "bits": 32, **asdict(evaluator.quality({})), **stamp}]
    print(f"{'tool':15} {'method':20} bits perplexity        KL   seconds processor      load\n{line(rows[0])}")
    for result, tensors in results(options.work):
        quality = asdict(evaluator.quality(tensors))
        rows.append({**vars(result), **quality, "layers_in_float": float_layers(tensors, original), **stamp})
        print(line(rows[-1]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
