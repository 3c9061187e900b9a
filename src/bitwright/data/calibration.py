"""Calibration sequences of one length from any text: joined, cut into windows, drawn by seed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from bitwright.data.sampling import self_generated
from bitwright.data.seeds import stream
from bitwright.data.sources import Documents, Source, read_documents, read_ids, zoo_documents
from bitwright.data.tokenizing import Tokenizer, begin_tokens, check_length, encode
from bitwright.data.tokens import TokenData, token_data
from bitwright.errors import InputError
from bitwright.events import Events

logger = logging.getLogger(__name__)

Joining = Literal["pack", "cut"]


def calibration(
    tokenizer: Tokenizer | None,
    source: Source | Documents,
    sequences: int = 128,
    length: int = 512,
    seed: int = 0,
    joining: Joining = "pack",
    separator: str | None = None,
    events: Events | None = None,
    module: nn.Module | None = None,
) -> TokenData:
    """Make ``sequences`` token sequences of ``length`` tokens.

    ``pack`` (the default) tokenises everything into one long row and cuts it into windows that do not overlap; every
    window begins with BOS where the tokenizer has one, followed by ``length - 1`` tokens of the row. In the row, lines
    of a running text are joined by newlines; independent documents are separated by EOS (or BOS, or nothing, whichever
    the tokenizer has). ``cut`` takes documents that are at least ``length`` tokens long, each alone from its
    beginning. If there are more windows than asked for, ``seed`` draws which, in the order of the text.

    Args:
        tokenizer: a transformers tokenizer; may be None for stored ids (``.safetensors``, ``.npz``), which are
            drawn from as they are.
        source: see :func:`bitwright.data.sources.read_documents`; or a path of stored ids; or ``self``, text that
            ``module`` writes itself after BOS (EOS where there is none).
        events: where a shortage of text is recorded (fewer sequences than asked for); logged if None.
        module: the model, only for the source ``self``.

    Raises:
        InputError: if the text is empty or shorter than one sequence.
    """
    check_length(length)
    if sequences < 1:
        raise InputError("calibration needs at least one sequence; ask for 1 or more")
    if isinstance(source, str | Path) and Path(source).suffix in (".safetensors", ".npz"):
        return _from_ids(Path(source), sequences, length, seed, events)
    if isinstance(source, str) and source == "self":
        return _from_model(tokenizer, module, sequences, length, seed)
    if tokenizer is None:
        raise InputError("text cannot be tokenised without a tokenizer; give one, or a file of token ids")
    if isinstance(source, str) and source == "zoo":
        source = zoo_documents(source, seed, max(8, sequences // 2))
    documents = source if isinstance(source, Documents) else read_documents(source, separator)
    rows = _packed(tokenizer, documents, length) if joining == "pack" else _cut(tokenizer, documents, length)
    rows = _draw(rows, sequences, seed, documents.source, events)
    begin = "BOS + " if begin_tokens(tokenizer) else ""
    how = f"windows of {begin}{length - len(begin_tokens(tokenizer))} tokens of the joined text"
    if joining == "cut":
        how = f"beginnings of documents, {length} tokens with {begin.strip(' +') or 'no begin token'}"
    protocol = f"calibration on {documents.source}: {len(rows)} x {length} tokens, {how}, drawn with seed {seed}"
    return token_data(rows, documents.source, protocol)


def _from_model(
    tokenizer: Tokenizer | None, module: nn.Module | None, sequences: int, length: int, seed: int
) -> TokenData:
    if tokenizer is None or module is None:
        raise InputError("calibration text from the model itself needs the model and its tokenizer; give both")
    begin = begin_tokens(tokenizer) or ([] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)])
    if not begin:
        raise InputError("the tokenizer has neither BOS nor EOS to begin text with; call self_generated with a token")
    return self_generated(module, begin[0], sequences, length, seed, end=tokenizer.eos_token_id)


def _packed(tokenizer: Tokenizer, documents: Documents, length: int) -> list[list[int]]:
    begin = begin_tokens(tokenizer)
    body = length - len(begin)
    if documents.kind == "lines":
        row = encode(tokenizer, ["\n".join(documents.texts)])[0]
    else:
        ends = [t for t in (tokenizer.eos_token_id, tokenizer.bos_token_id) if t is not None][:1]
        row = [token for ids in encode(tokenizer, list(documents.texts)) for token in (*ids, *ends)]
    if len(row) < body:
        raise InputError(
            f"{documents.source} has {len(row)} tokens, fewer than one context of {length}; "
            f"give a longer text or a length of at most {len(row) + len(begin)}"
        )
    return [begin + row[start : start + body] for start in range(0, len(row) - body + 1, body)]


def _cut(tokenizer: Tokenizer, documents: Documents, length: int) -> list[list[int]]:
    begin = begin_tokens(tokenizer)
    rows = [begin + ids for ids in encode(tokenizer, list(documents.filled))]
    longest = max(len(row) for row in rows)
    if longest < length:
        raise InputError(
            f"the longest document of {documents.source} has {longest} tokens, fewer than the context of {length}; "
            "give longer documents, a smaller length, or joining='pack'"
        )
    return [row[:length] for row in rows if len(row) >= length]


def _draw(rows: list[list[int]], sequences: int, seed: int, source: str, events: Events | None) -> list[list[int]]:
    if len(rows) < sequences:
        message = f"only {len(rows)} of {sequences} calibration sequences can be made from {source}"
        if events is None:
            logger.warning("%s", message)
        else:
            events.record("calibration-short", source, message)
        return rows
    chosen = torch.randperm(len(rows), generator=stream(seed, "calibration"))[:sequences].sort().values
    return [rows[i] for i in chosen.tolist()]


def _from_ids(path: Path, sequences: int, length: int, seed: int, events: Events | None) -> TokenData:
    stored = read_ids(path)
    rows = [row[keep][:length].tolist() for row, keep in zip(stored.ids, stored.mask, strict=True)]
    rows = [row for row in rows if len(row) == length]
    if not rows:
        raise InputError(
            f"the stored sequences of {path.name} have at most {int(stored.lengths.max())} tokens, fewer than the "
            f"context of {length}; ask for a smaller length"
        )
    rows = _draw(rows, sequences, seed, path.name, events)
    return token_data(rows, path.name, f"calibration on {path.name}: {len(rows)} x {length} stored ids, seed {seed}")
