"""Turn a checkpoint of `train_zoo.py` into the files of the zoo: model, tokenizer, evaluation tokens, card.

python examples/zoo_export.py --work-dir /tmp/zoo --out src/bitwright/zoo/lm
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from zoo_card import readme
from zoo_training import BOS, BOS_ID, WINDOW, make_config

from bitwright.zoo import corpus

log = logging.getLogger("zoo_export")

EVAL_SEED = 512
EVAL_WINDOWS = 128
HELDOUT_WINDOWS_PER_FILE = 2
DISTRIBUTIONS = {"sklearn": "scikit-learn"}

PROTOCOL = (
    "windows of 512 tokens that begin with bos; every token after bos is scored; exp of the mean negative log "
    "likelihood over all scored tokens; the stored bfloat16 weights computed in float32"
)
HELDOUT_PROTOCOL = (
    "each held-out file, in order of its name, is encoded without bos and cut into pieces of 511 tokens; an incomplete "
    f"last piece is dropped; the first {HELDOUT_WINDOWS_PER_FILE} pieces are scored, bos put before each"
)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, windows: Tensor) -> float:
    """Perplexity of windows `[n, 512]` by the protocol above."""
    total = 0.0
    for ids in windows.split(8):
        logits = model(ids).logits[:, :-1].double()
        total += nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
    return float(torch.tensor(total / (windows.shape[0] * (windows.shape[1] - 1))).exp())


@torch.no_grad()
def sample(model: LlamaForCausalLM, count: int, seed: int) -> Tensor:
    """`count` windows sampled from the model itself at temperature 1, int64 `[count, 512]`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((count, 1), BOS_ID)
    cache = None
    step = ids
    while ids.shape[1] < WINDOW:
        out = model(step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        step = torch.multinomial(out.logits[:, -1].float().softmax(-1), 1, generator=generator)
        ids = torch.cat((ids, step), 1)
    return ids


def heldout(tokenizer: PreTrainedTokenizerFast) -> tuple[list[dict[str, str]], Tensor]:
    """The held-out files (name, version, SHA-256) and their windows `[n, 512]`."""
    files, windows = [], []
    versions = {corpus.STDLIB: f"python {platform.python_version()}"}
    for package in corpus.PACKAGES:
        distribution = DISTRIBUTIONS.get(package, package)
        versions[package] = f"{distribution} {version(distribution).split('+')[0]}"
    for file in sorted(corpus.corpus_files(), key=lambda f: f.name):
        text = corpus.read_text(file.path) if corpus.is_held_out(file.name) else None
        if text is None:
            continue
        digest = hashlib.sha256(file.path.read_bytes()).hexdigest()
        files.append({"name": file.name, "version": versions[file.name.split(":")[0]], "sha256": digest})
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        pieces = [ids[n : n + WINDOW - 1] for n in range(0, len(ids) - WINDOW + 2, WINDOW - 1)]
        windows += [[BOS_ID, *piece] for piece in pieces[:HELDOUT_WINDOWS_PER_FILE]]
    return files, torch.tensor(windows)


@torch.no_grad()
def rounded(model: LlamaForCausalLM, bits: int) -> LlamaForCausalLM:
    """A copy whose block linears are rounded to the nearest of `bits` bits, one asymmetric min-max range per row."""
    model = copy.deepcopy(model)
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            low = module.weight.amin(1, keepdim=True)
            scale = (module.weight.amax(1, keepdim=True) - low) / (2**bits - 1)
            module.weight.copy_(((module.weight - low) / scale).round() * scale + low)
    return model


def write_model(work: Path, out: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, dict[str, Any]]:
    """Save model and tokenizer; return both as a reader of the files gets them (float32), and the checkpoint."""
    state = torch.load(work / "state.pt", weights_only=True)
    s = state["settings"]
    model = LlamaForCausalLM(make_config(s["layers"], s["mlp"], s["vocab"]))
    model.load_state_dict(state["model"])
    model.generation_config = GenerationConfig(bos_token_id=BOS_ID, eos_token_id=BOS_ID, max_length=WINDOW)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(work / "tokenizer.json"),
        bos_token=BOS,
        eos_token=BOS,
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(out)
    loaded = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    return loaded, PreTrainedTokenizerFast.from_pretrained(out), state


def main() -> None:
    """Write everything and log the card."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work-dir", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--threads", type=int, default=1)
    given = p.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)

    model, tokenizer, state = write_model(given.work_dir, given.out)
    windows = sample(model, EVAL_WINDOWS, EVAL_SEED)
    save_file({"tokens": windows.to(torch.int16)}, given.out / "eval_tokens.safetensors")
    files, real = heldout(tokenizer)
    settings = state["settings"]
    parameters = sum(p.numel() for p in model.parameters())
    trained = state["windows"] * WINDOW
    figures = {
        "architecture": "LlamaForCausalLM",
        "parameters": parameters,
        "tokens_trained": trained,
        "tokens_per_parameter": round(trained / parameters, 1),
        "seed": settings["seed"],
        "training": {k: settings[k] for k in ("layers", "mlp", "vocab", "batch", "lr", "bf16", "tokens")},
        "decay_started_at_tokens": state["decay_start"],
        "corpus_files": json.loads((given.work_dir / "corpus.json").read_text())["files"],
        "protocol": PROTOCOL,
        "eval_tokens": {
            "windows": len(windows),
            "seed": EVAL_SEED,
            "how": "sampled from the stored model at temperature 1, computed in float32, starting from bos",
            "perplexity": perplexity(model, windows),
            "perplexity_first_4_windows": perplexity(model, windows[:4]),
        },
        "heldout": {
            "protocol": HELDOUT_PROTOCOL,
            "windows": len(real),
            "perplexity": perplexity(model, real),
            "files": files,
        },
        "rounded_to_nearest": {
            "how": "every linear layer of the blocks, one asymmetric min-max range per output row",
            **{
                f"{bits} bits": {"eval_tokens": perplexity(m, windows), "heldout": perplexity(m, real)}
                for bits, m in ((bits, rounded(model, bits)) for bits in (4, 3, 2))
            },
        },
        "model_sha256": hashlib.sha256((given.out / "model.safetensors").read_bytes()).hexdigest(),
        "versions": {name: version(name).split("+")[0] for name in ("torch", "transformers", "tokenizers")},
    }
    (given.out / "zoo.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (given.out / "README.md").write_text(readme(figures), encoding="utf-8")
    shown = {k: v for k, v in figures.items() if k != "heldout"}
    log.info("%s\nheld out: %d files, %d windows", json.dumps(shown, indent=2), len(files), len(real))
    log.info("held-out perplexity %.4f", figures["heldout"]["perplexity"])


if __name__ == "__main__":
    main()
