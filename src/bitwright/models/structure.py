"""What discovery reports about a model: frozen values, no tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightSite:
    """One weight that enters a product: where it rests and what role it plays.

    Attributes:
        path: module that owns the parameter; ``parameter`` is its name there.
        kind: ``linear``, ``conv`` or ``embedding``.
        role: ``block``, ``head``, ``embedding``, ``outside`` or ``router`` (its output is what experts are chosen by).
        block: number of its block, or None.
        shape: (out, in) of the weight as a matrix (convolutions flattened to in/groups * kernel; experts per expert).
        shared_input: sites with an equal number read the very same tensor, convolutions the same windows of it (-1: not
            seen in the example run).
        tied_to: full name of the parameter that this one is, or None.
        transposed: the stored matrix is [in, out].
        whole: a call of the module is this product (plus bias) and nothing else, so the module can be replaced.
        bias: full name of the bias parameter that belongs to the product, or None.
        groups: groups of a convolution; ``axes`` counts the axes that its kernel moves along (0: no convolution).
        seen: the example run used it (an expert without tokens is listed but not seen).
        expert: number of the expert that the weight belongs to, or None.
        family: the path with ``*`` for the expert's number: the same weight of all experts of a layer.
    """

    path: str
    parameter: str
    kind: str
    role: str
    block: int | None
    shape: tuple[int, int]
    shared_input: int
    tied_to: str | None = None
    transposed: bool = False
    whole: bool = True
    bias: str | None = None
    groups: int = 1
    seen: bool = True
    expert: int | None = None
    family: str = ""
    axes: int = 0

    @property
    def name(self) -> str:
        """Full name of the weight parameter."""
        return f"{self.path}.{self.parameter}" if self.path else self.parameter


@dataclass(frozen=True)
class NormSite:
    """A normalisation found by experiment: y = gain * normalised(x) + shift.

    ``kind`` is ``rms``, ``layer`` or ``batch``; the gain is ``weight + offset`` (offset 1 where a library stores the
    gain minus one); ``weight`` and ``bias`` are parameter names in the module, or None.
    """

    path: str
    kind: str
    dim: int
    block: int | None
    weight: str | None = "weight"
    bias: str | None = None
    offset: float = 0.0


@dataclass(frozen=True)
class Pair:
    """A proved equivalence: scaling the source's output channels by s and the sinks' input channels by 1/s.

    Kinds: ``norm_linear`` (source: norm, sinks: every linear that reads it), ``linear_linear`` (source rows, sink
    columns), ``conv_conv`` (through a positively homogeneous activation), ``batchnorm_conv`` (source: the BatchNorm,
    sinks: the one convolution or linear it can be folded into).

    Attributes:
        repeat: each source row serves this many sink columns (grouped queries).
        head_dim: rows per head where the channels lie in heads (attention), else 0.
        rows: rows of the source that take part, in channel order (None: all rows, in order).
        through: norms on the way whose gain and shift are scaled together with the source (BatchNorm), in order.
        error: largest relative change of the output in the proof.
        turns: proved as well that one orthogonal matrix may turn the channels of every head.
    """

    kind: str
    source: str
    sinks: tuple[str, ...]
    repeat: int = 1
    head_dim: int = 0
    error: float = 0.0
    rows: tuple[int, ...] | None = None
    through: tuple[str, ...] = ()
    block: int | None = None
    turns: bool = False


@dataclass(frozen=True)
class RotaryPair:
    """Two projections whose outputs meet a rotary position embedding, found by turning their rows.

    The first ``size`` of every ``head_dim`` rows are turned with the position, channel i with i + size / 2 (layout
    ``half``) or 2i with 2i + 1 (``interleaved``); the others are left alone. So queries and keys may be turned together
    in these planes, and freely in the rest, before the embedding, and by any matrix behind it; ``norms`` on their heads
    allow that only where the gains of the turned channels are equal.

    Attributes:
        query, key: paths of the projections, with the output rows that take part (head after head).
        error: largest relative change of the block's output in the proof.
        allowed: which rotations of queries and keys may be folded into the two projections, in a sentence.
    """

    query: str
    key: str
    layout: str
    size: int
    head_dim: int
    query_rows: tuple[int, ...]
    key_rows: tuple[int, ...]
    norms: tuple[str, ...] = ()
    error: float = 0.0
    block: int | None = None
    allowed: str = ""


@dataclass(frozen=True)
class StreamParameter:
    """A parameter that touches the residual stream along ``axis``; ``norm`` is the norm folded into a reader."""

    name: str
    axis: int
    norm: str | None = None


@dataclass(frozen=True)
class ResidualStream:
    """The residual stream of a pre-norm network; rotating every write and read by one orthogonal matrix is proved.

    ``norm_kind`` is ``rms`` (any orthogonal matrix) or ``layer`` (one that keeps the all-ones vector, or any after
    the writers were centred and the norms turned into rms). Module paths: ``embeddings, norms, readers, writers,
    head``; the complete edits: ``writes`` (embeddings, writers and their biases) and ``reads`` with their norms.
    """

    dim: int
    embeddings: tuple[str, ...]
    norms: tuple[str, ...]
    readers: tuple[str, ...]
    writers: tuple[str, ...]
    head: str | None
    error: float
    norm_kind: str = "rms"
    writes: tuple[StreamParameter, ...] = ()
    reads: tuple[StreamParameter, ...] = ()


@dataclass(frozen=True)
class Structure:
    """Everything that was found; ``reasons`` says in sentences what was not offered and why.

    ``ties`` maps a parameter name to the parameter it shares; ``exceptions`` are parameters of two or more
    dimensions that are no weight of a linear layer, with a sentence that says what uses them, ``unaccounted`` those
    that neither a site nor an exception covers; ``chain_error`` is the relative change of the output when the model is
    run block by block; ``returns`` counts the items of each block's output tuple (0: a bare tensor); ``rotary`` are the
    queries and keys that meet a rotary position embedding; ``aside`` are blocks that hand more than the hidden state to
    later ones, with the place among their arguments from which each item of their output tuple comes (see
    :class:`bitwright.models.chain.Chain`).
    """

    blocks: tuple[str, ...]
    sites: tuple[WeightSite, ...]
    norms: tuple[NormSite, ...] = ()
    pairs: tuple[Pair, ...] = ()
    residual: ResidualStream | None = None
    ties: tuple[tuple[str, str], ...] = ()
    reasons: tuple[str, ...] = ()
    exceptions: tuple[tuple[str, str], ...] = ()
    unaccounted: tuple[str, ...] = ()
    chain_error: float = 0.0
    returns: tuple[int, ...] = ()
    rotary: tuple[RotaryPair, ...] = ()
    aside: tuple[tuple[int, tuple[int | str | None, ...]], ...] = ()
