"""Prove piece by piece that a residual stream can be rotated: what makes it, every block, and what reads its end."""

from __future__ import annotations

from dataclasses import replace

import torch

from bitwright.models.flow import Flow
from bitwright.models.model import Model
from bitwright.models.prove import SUFFIX, Prover, relative_error
from bitwright.models.residual import NotOffered, stream_edits
from bitwright.models.structure import ResidualStream

TOLERANCE = 1e-4


class Reflections:
    """A random orthogonal matrix, cheap to apply: two Householder reflections and a permutation.

    With ``keep_ones`` the vector of ones is mapped to itself.
    """

    def __init__(self, dim: int, keep_ones: bool, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        mirrors = torch.randn(2, dim, generator=generator)
        if keep_ones:
            mirrors -= mirrors.mean(-1, keepdim=True)
        self._mirrors = mirrors / mirrors.norm(dim=-1, keepdim=True)
        self._order = torch.randperm(dim, generator=generator)

    def turn(self, vectors: torch.Tensor) -> torch.Tensor:
        """Q·v for the vectors along the last axis."""
        first, second = self._mirrors.to(vectors.dtype)
        return _reflect(_reflect(vectors, first)[..., self._order], second)

    def back(self, vectors: torch.Tensor) -> torch.Tensor:
        """Qᵀ·v for the vectors along the last axis."""
        first, second = self._mirrors.to(vectors.dtype)
        return _reflect(_reflect(vectors, second)[..., self._order.argsort()], first)


def _reflect(vectors: torch.Tensor, mirror: torch.Tensor) -> torch.Tensor:
    return vectors - 2 * (vectors @ mirror).unsqueeze(-1) * mirror


class RotationProof:
    """Collects the errors of a rotation by one random orthogonal matrix; a piece that fails ends the proof."""

    def __init__(self, model: Model, flow: Flow, stream: ResidualStream) -> None:
        self.model = model
        self.flow = flow
        self.stream = stream
        self.rotation = Reflections(stream.dim, stream.norm_kind == "layer")
        self.errors: list[float] = []

    def block(self, prover: Prover, index: int) -> None:
        """Rotate block ``index`` alone: rotated in, rotated out."""
        path = prover.stream.blocks[index]
        edits = stream_edits(self.model, self.flow.norms, self.stream, self.rotation.turn, f"{path}.")
        turned = prover.output(index, edits, self.rotation.turn(prover.hidden[index]))
        self._keep(self.rotation.back(turned), prover.output(index), path)

    def ends(self, prover: Prover) -> ResidualStream:
        """Rotate what makes the stream and what reads it behind the last block; the proved stream.

        Raises:
            NotOffered: when the output moves.
        """
        blocks = tuple(f"{path}." for path in prover.stream.blocks)
        edits = stream_edits(self.model, self.flow.norms, self.stream, self.rotation.turn, skip=blocks)
        writes = {item.name for item in self.stream.writes}
        before = {name: value for name, value in edits.items() if name in writes}
        behind = {name: value for name, value in edits.items() if name not in writes or name in self._read_names()}
        self._keep(self.rotation.back(prover.prefix(before)), prover.hidden[0], "the embeddings")
        turned = prover.output(SUFFIX, behind, self.rotation.turn(prover.hidden[-1]))
        self._keep(turned, prover.output(SUFFIX), "the layers behind the blocks")
        return replace(self.stream, error=max(self.errors))

    def _read_names(self) -> set[str]:
        return {item.name for item in self.stream.reads}

    def _keep(self, value: torch.Tensor, reference: torch.Tensor, where: str) -> None:
        error = relative_error(value, reference)
        self.errors.append(error)
        if not error <= TOLERANCE:
            raise NotOffered(f"rotating {where} moves its output by {error:.1e}")
