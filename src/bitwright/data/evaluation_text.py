"""Evaluation sequences: each document alone, or windows over a running text; the protocol is written down."""

from __future__ import annotations

from pathlib import Path

from bitwright.data.sources import Documents, Source, read_documents, read_ids
from bitwright.data.tokenizing import Tokenizer, begin_tokens, check_length, encode
from bitwright.data.tokens import TokenData, token_data
from bitwright.errors import InputError

HELDOUT_PIECES = 2  # of each held-out file of the zoo


def documents_alone(
    tokenizer: Tokenizer,
    source: Source | Documents,
    count: int | None = None,
    length: int = 512,
    separator: str | None = None,
) -> TokenData:
    """Score every document alone: BOS + document, cut at ``length`` tokens, every token after the first scored.

    Args:
        count: take the first ``count`` documents (None: all).
        separator: as for :func:`bitwright.data.sources.read_documents`.

    Raises:
        InputError: if there are fewer documents than ``count``.
    """
    check_length(length)
    documents = source if isinstance(source, Documents) else read_documents(source, separator)
    if count is not None and count > len(documents.filled):
        raise InputError(f"{documents.source} has {len(documents.filled)} documents, not {count}; ask for fewer")
    texts = list(documents.filled[:count])
    begin = begin_tokens(tokenizer)
    rows = [(begin + ids)[:length] for ids in encode(tokenizer, texts)]
    long = [row for row in rows if len(row) > 1]
    if not long:
        raise InputError(f"no document of {documents.source} has two tokens; give longer documents")
    which = f"first {count}" if count is not None else f"all {len(texts)}"
    start = "BOS + document" if begin else "the document (no BOS in this tokenizer)"
    dropped = f" ({len(rows) - len(long)} without a second token left out)" if len(long) < len(rows) else ""
    protocol = (
        f"{documents.source}, {which} documents{dropped}, each alone: {start}, the model's own tokenizer, "
        f"context {length} (cut, no stride), every token after the first scored"
    )
    return token_data(long, documents.source, protocol)


def windows(
    tokenizer: Tokenizer,
    source: Source | Documents,
    length: int = 512,
    stride: int | None = None,
    count: int | None = None,
    separator: str | None = None,
) -> TokenData:
    """Score a running text in windows: BOS + ``length - 1`` tokens, the next window ``stride`` tokens later.

    Without ``stride`` the windows do not overlap and every token after the first of each window is scored. With a
    smaller stride only the tokens that no earlier window has scored are. The tail that fills no window is left out.

    Raises:
        InputError: if the text is shorter than one window or the stride does not fit.
    """
    check_length(length)
    documents = source if isinstance(source, Documents) else read_documents(source, separator)
    begin = begin_tokens(tokenizer)
    body = length - len(begin)
    step = body if stride is None else stride
    if not 1 <= step <= body:
        raise InputError(f"a stride of {step} does not fit a window of {body} tokens; use 1 to {body}")
    joint = "\n" if documents.kind == "lines" else "\n\n"
    row = encode(tokenizer, [joint.join(documents.texts)])[0]
    if len(row) < body:
        raise InputError(
            f"{documents.source} has {len(row)} tokens, fewer than the context of {length}; "
            f"give a longer text or a context of at most {len(row) + len(begin)}"
        )
    starts = list(range(0, len(row) - body + 1, step))[:count]
    rows = [begin + row[s : s + body] for s in starts]
    score_from = [1] + [length - step] * (len(rows) - 1)
    left = len(row) - (starts[-1] + body)
    overlap = "not overlapping" if step == body else f"stride {step}, only new tokens scored"
    first = "BOS + " if begin else "no BOS, "
    protocol = (
        f"{documents.source}, {len(rows)} windows of the running text ({first}{body} tokens, {overlap}; the last "
        f"{left} tokens left out), the model's own tokenizer, context {length}, every token after the first scored"
    )
    return token_data(rows, documents.source, protocol, score_from)


def pieces(
    tokenizer: Tokenizer, source: Source | Documents, length: int = 512, per_document: int | None = None
) -> TokenData:
    """Score each document in pieces of its own: BOS + ``length - 1`` tokens, not overlapping, incomplete ones dropped.

    Args:
        per_document: at most this many pieces from the beginning of a document (None: all), so that none dominates.

    Raises:
        InputError: if no document fills a piece.
    """
    check_length(length)
    documents = source if isinstance(source, Documents) else read_documents(source)
    begin = begin_tokens(tokenizer)
    body = length - len(begin)
    rows = []
    for ids in encode(tokenizer, list(documents.filled)):
        starts = range(0, len(ids) - body + 1, body)[:per_document]
        rows += [begin + ids[start : start + body] for start in starts]
    if not rows:
        raise InputError(f"no document of {documents.source} has {body} tokens; give longer ones or a smaller context")
    most = "all" if per_document is None else f"at most {per_document}"
    protocol = (
        f"{documents.source}, {len(documents.filled)} documents, {most} whole pieces of each, {len(rows)} pieces of "
        f"{'BOS + ' if begin else ''}{body} tokens, not overlapping, the model's own tokenizer, context {length}, "
        "every token after the first scored"
    )
    return token_data(rows, documents.source, protocol)


def evaluation(
    tokenizer: Tokenizer | None,
    source: Source | Documents,
    length: int = 512,
    count: int | None = None,
    separator: str | None = None,
) -> TokenData:
    """Pick the protocol by the source: stored ids as they are, documents each alone, a running text in windows.

    ``zoo`` is the embedded model's committed token ids; ``zoo:heldout`` its real held-out files, tokenised here and cut
    as the figure on its card was measured.

    Raises:
        InputError: as the functions above, or if text comes without a tokenizer.
    """
    if isinstance(source, str) and source == "zoo":
        return _zoo_ids(count)
    if isinstance(source, str | Path) and Path(source).suffix in (".safetensors", ".npz"):
        stored = read_ids(source)
        return stored if count is None else stored.first(count)
    if tokenizer is None:
        raise InputError("text cannot be tokenised without a tokenizer; give one, or a file of token ids")
    documents = source if isinstance(source, Documents) else read_documents(source, separator)
    if source == "zoo:heldout":
        data = pieces(tokenizer, documents, length, HELDOUT_PIECES)
        return data if count is None else data.first(count)
    if documents.kind == "lines":
        return windows(tokenizer, documents, length, count=count)
    return documents_alone(tokenizer, documents, count, length)


def _zoo_ids(count: int | None) -> TokenData:
    from bitwright import zoo  # reads files: only when it is asked for

    ids = zoo.eval_tokens()
    protocol = (
        f"zoo evaluation tokens: {ids.shape[0]} sequences of {ids.shape[1]} ids sampled once from the float model "
        "(committed), every token after the first scored"
    )
    data = token_data(list(ids), "zoo", protocol)
    return data if count is None else data.first(count)
