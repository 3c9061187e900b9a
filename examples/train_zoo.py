"""Train the zoo's small language model on the Python source files of this installation.

    python examples/train_zoo.py --work-dir /tmp/zoo --tokens 50e6 --threads 2

The same command resumes from the last checkpoint. The learning rate stays constant and falls linearly to zero over
the last part of the token budget; to begin that decay at any moment, stop the run (Ctrl-C or SIGTERM, which saves)
and resume with a smaller `--tokens`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaForCausalLM
from zoo_training import (
    BOS,
    BOS_ID,
    LeanLlama,
    Muon,
    Windows,
    learning_rate,
    make_config,
    save_atomically,
    shorten,
    window_length,
)

from bitwright.zoo.corpus import corpus_files, is_held_out, read_text

log = logging.getLogger("train_zoo")


@dataclass(frozen=True)
class Settings:
    """What a run is made of; `tokens` is the budget after which the learning rate is zero."""

    tokens: float
    threads: int
    seed: int
    layers: int
    mlp: int
    vocab: int
    batch: int
    lr: float
    decay: float
    bf16: bool
    compile: bool
    save_minutes: float


def training_texts() -> tuple[list[str], list[str]]:
    """Names and texts of the training files, each text once."""
    names, texts, seen = [], [], set()
    for file in corpus_files():
        if is_held_out(file.name):
            continue
        text = read_text(file.path)
        if text is None:
            continue
        digest = hashlib.sha256(text.encode()).digest()
        if digest not in seen:
            seen.add(digest)
            names.append(file.name)
            texts.append(text)
    return names, texts


def train_tokenizer(texts: list[str], vocab: int, seed: int) -> Tokenizer:
    """Byte-level byte-pair encoding with a bos token, which the tokenizer puts before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    sample = random.Random(seed).sample(texts, min(2_000, len(texts)))
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def prepare_data(work: Path, settings: Settings) -> NDArray[np.int16]:
    """The training stream, from the work directory or made there: texts in random order, bos before each."""
    stream_file = work / "stream.npy"
    if not stream_file.exists():
        names, texts = training_texts()
        log.info("%d training files, %.1f MB", len(texts), sum(map(len, texts)) / 1e6)
        tokenizer = train_tokenizer(texts, settings.vocab, settings.seed)
        tokenizer.save(str(work / "tokenizer.json"))
        random.Random(settings.seed).shuffle(texts)
        parts = []
        for first in range(0, len(texts), 256):
            for encoding in tokenizer.encode_batch_fast(texts[first : first + 256]):
                parts.append(np.asarray(encoding.ids, dtype=np.int16))
        np.save(stream_file, np.concatenate(parts))
        (work / "corpus.json").write_text(json.dumps({"files": len(names), "names": names}))
    stream: NDArray[np.int16] = np.load(stream_file, mmap_mode="r")
    log.info("training stream of %.1f M tokens", len(stream) / 1e6)
    return stream


class Run:
    """Model, optimizers and progress of one training run, with its checkpoint."""

    def __init__(self, work: Path, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.path = work / "state.pt"
        self.model = LlamaForCausalLM(make_config(settings.layers, settings.mlp, settings.vocab))
        matrices = [p for n, p in self.model.model.layers.named_parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(others, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.windows = 0
        self.seconds = 0.0
        self.decay_start: float | None = None
        self.history: list[tuple[float, float]] = []
        if self.path.exists():
            self._load()

    @property
    def tokens(self) -> float:
        """Tokens seen, each window counted with its bos."""
        return self.windows * 512.0

    def rate(self) -> float:
        """The learning rate now; fixes the beginning of the decay when it is reached."""
        s = self.settings
        planned = (1 - s.decay) * s.tokens
        if self.decay_start is None and self.tokens >= planned:
            self.decay_start = self.tokens
            log.info("decay begins at %.2f M tokens", self.tokens / 1e6)
        start = planned if self.decay_start is None else self.decay_start
        return learning_rate(self.tokens + 1, peak=s.lr, warmup=1.5e6, decay_start=start, total=s.tokens)

    def save(self) -> None:
        """Write the checkpoint."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "windows": self.windows,
            "seconds": self.seconds,
            "decay_start": self.decay_start,
            "history": self.history,
            "settings": asdict(self.settings),
        }
        save_atomically(state, self.path)

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.windows, self.seconds = state["windows"], state["seconds"]
        self.decay_start, self.history = state["decay_start"], state["history"]
        log.info("resumed at %.2f M tokens", self.tokens / 1e6)


@torch.no_grad()
def check_agreement(model: LlamaForCausalLM) -> None:
    """Stop where the lean forward pass, which is what gets trained, is not the saved model's function."""
    ids = torch.randint(0, model.config.vocab_size, (2, 96), generator=torch.Generator().manual_seed(0))
    difference = (LeanLlama(model).logits(ids) - model(ids).logits).abs().max().item()
    if difference > 1e-3:
        raise SystemExit(f"the lean forward pass differs from transformers' by {difference:.2g} in a logit")


def train(run: Run, data: Windows) -> bool:
    """Train to the end of the budget; False where a signal stopped it earlier. Saves in both cases."""
    s = run.settings
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: stop.append(n))
    lean = LeanLlama(run.model)
    forward = torch.compile(lean, dynamic=False) if s.compile else lean
    saved = began = time.monotonic()
    losses: list[torch.Tensor] = []
    begin_tokens, base_seconds = run.tokens, run.seconds
    while run.tokens < s.tokens and not stop:
        rate = run.rate()
        with torch.autocast("cpu", torch.bfloat16, enabled=s.bf16):
            loss = forward(shorten(data.batch(run.windows, s.batch), window_length(run.tokens / s.tokens)))
        loss.backward()
        for group in run.adam.param_groups:
            group["lr"] = rate
        run.adam.step()
        run.muon.step(rate)
        run.model.zero_grad(set_to_none=True)
        run.windows += s.batch
        losses.append(loss.detach())
        now = time.monotonic()
        run.seconds = base_seconds + now - began
        if len(losses) == 100 or run.tokens >= s.tokens or stop:
            mean = torch.stack(losses).mean().item()
            run.history.append((run.tokens, mean))
            speed = (run.tokens - begin_tokens) / (now - began)
            log.info("%7.2f M tokens  loss %.4f  lr %.2e  %.0f tokens/s", run.tokens / 1e6, mean, rate, speed)
            losses = []
        if now - saved > 60 * s.save_minutes:
            run.save()
            saved = now
    run.save()
    return not stop


def parse() -> tuple[Path, Settings]:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work-dir", type=Path, required=True, help="tokens, checkpoint and log of the run")
    p.add_argument("--tokens", type=float, default=50e6, help="token budget; the decay ends here")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=20)
    p.add_argument("--layers", type=int, default=2)
    p.add_argument("--mlp", type=int, default=256)
    p.add_argument("--vocab", type=int, default=1024)
    p.add_argument("--batch", type=int, default=16, help="windows of 512 tokens in one update")
    p.add_argument("--lr", type=float, default=6e-3)
    p.add_argument("--decay", type=float, default=0.22, help="last share of the budget, where the rate falls")
    p.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast to bfloat16")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="use torch.compile")
    p.add_argument("--save-minutes", type=float, default=3.0)
    given = vars(p.parse_args())
    return given.pop("work_dir"), Settings(**given)


def main() -> None:
    """Prepare the data, then train or resume."""
    work, settings = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings.threads)
    data = Windows(prepare_data(work, settings), settings.seed)
    run = Run(work, settings)
    check_agreement(run.model)
    finished = train(run, data)
    log.info("%s at %.2f M tokens", "finished" if finished else "stopped", run.tokens / 1e6)


if __name__ == "__main__":
    main()
