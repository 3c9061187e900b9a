"""The text of the language model's card, filled with the figures of `zoo.json`."""

from __future__ import annotations

from typing import Any

_TEXT = """---
license: apache-2.0
language: [code, en]
tags: [python, llama, test-model]
---

# Bitwright zoo: a small Llama-type model of Python source text

{parameters:,} parameters, trained on {tokens:,} tokens ({ratio} per parameter). It comes with the package so that
tests, examples and comparisons of quantization methods run in seconds on one core without a network connection. It is
small but well trained, so rounding its weights costs something that can be measured.

| | |
|---|---|
| Architecture | `LlamaForCausalLM`: hidden size 128, {layers} layers, 4 query and 2 key/value heads of 32, MLP {mlp}, \
context 512, tied embeddings |
| Tokenizer | byte-level byte-pair encoding, {vocab} entries, `<|bos|>` before every text |
| Weights | bfloat16, `model.safetensors` |
| Licence of the weights | Apache-2.0 |

## Figures

Perplexity, lower is better. Float means the stored weights computed in float32; the other rows round every linear
layer of the blocks to the nearest level, one asymmetric min-max range per output row, embeddings untouched.

| Weights | `eval_tokens` | held-out source text |
|---|---|---|
{rows}

Three bits without any correction cost {rise:+.1f} % on the model's own samples and {rise_real:+.1f} % on real text.

Protocol: {protocol}.

`eval_tokens.safetensors` holds {eval_windows} windows of 512 token ids (int16) drawn from this model itself at
temperature 1 with seed {eval_seed}. The float model is by construction the best predictor of them, so a rise in
perplexity is the price of a change to the model and nothing else. It says nothing about how good the model is at
Python; for that there is the held-out text.

Held-out text: {heldout_files} whole files chosen by a hash of their names, listed in `zoo.json` with version and
SHA-256; {heldout_windows} windows. {heldout_protocol}. The text itself is not part of the package; where the installed
versions differ, `bitwright.zoo.heldout_texts()` returns the files that are still the same.

## Training

Text: {corpus_files:,} Python source files (code, comments and docstrings) of the standard library and of \
huggingface_hub, matplotlib, mpmath, networkx, numpy, scipy, scikit-learn, sympy, torch and transformers (without its \
model folders, which repeat each other), read from the installation at training time.

Windows begin with bos; they have 128 tokens for the first 80 % of the training, 256 up to 90 % and 512 after that.
{batch_tokens:,} tokens in a step. Muon for the weight matrices and AdamW for embeddings and norms, peak learning rate
{lr}; warm-up over 1.5 M tokens, constant, linear decay to zero from {decay_start:.1f} M tokens on. bfloat16 autocast,
float32 master weights, seed {seed}. `examples/train_zoo.py` and `examples/zoo_export.py` are the whole recipe; a
repetition gives an equivalent model, not the same bits.

## Limits

It continues Python source text in a plausible way and is of no use as an assistant. Held-out files come from the same
packages as the training text, so the perplexity on them is that of familiar style, not of new code. Results on a model
of this size show whether a method works; they do not carry over in size to large models, which lose less at the same
number of bits and have activation outliers that this one does not have.
"""


def readme(figures: dict[str, Any]) -> str:
    """The model card in Markdown."""
    evaluated, real = figures["eval_tokens"], figures["heldout"]
    rounded = figures["rounded_to_nearest"]
    rows = [f"| float | {evaluated['perplexity']:.3f} | {real['perplexity']:.3f} |"]
    for bits in ("4 bits", "3 bits", "2 bits"):
        rows.append(f"| {bits} | {rounded[bits]['eval_tokens']:.3f} | {rounded[bits]['heldout']:.3f} |")
    training = figures["training"]
    return _TEXT.format(
        parameters=figures["parameters"],
        tokens=figures["tokens_trained"],
        ratio=figures["tokens_per_parameter"],
        layers=training["layers"],
        mlp=training["mlp"],
        vocab=training["vocab"],
        rows="\n".join(rows),
        rise=100 * (rounded["3 bits"]["eval_tokens"] / evaluated["perplexity"] - 1),
        rise_real=100 * (rounded["3 bits"]["heldout"] / real["perplexity"] - 1),
        protocol=figures["protocol"],
        eval_windows=evaluated["windows"],
        eval_seed=evaluated["seed"],
        heldout_files=len(real["files"]),
        heldout_windows=real["windows"],
        heldout_protocol=real["protocol"][0].upper() + real["protocol"][1:],
        corpus_files=figures["corpus_files"],
        batch_tokens=training["batch"] * 512,
        lr=training["lr"],
        decay_start=(figures["decay_started_at_tokens"] or figures["tokens_trained"]) / 1e6,
        seed=figures["seed"],
    )
