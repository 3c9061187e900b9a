"""Prove piece by piece that a residual stream can be rotated: what makes it, every block, and what reads its end."""

from __future__ import annotations

from dataclasses import replace

import torch

from bitwright.models.flow import Flow
from bitwright.models.model import Model
from bitwright.models.prove import SUFFIX, Prover, relative_error
from bitwright.models.residual import NotOffered, random_rotation, stream_edits
from bitwright.models.structure import ResidualStream

TOLERANCE = 1e-4


class RotationProof:
    """Collects the errors of a rotation by one random orthogonal matrix; a piece that fails ends the proof."""

    def __init__(self, model: Model, flow: Flow, stream: ResidualStream) -> None:
        self.model = model
        self.flow = flow
        self.stream = stream
        self.rotation = random_rotation(stream.dim, stream.norm_kind == "layer")
        self.errors: list[float] = []

    def block(self, prover: Prover, index: int) -> None:
        """Rotate block ``index`` alone: rotated in, rotated out."""
        path = prover.stream.blocks[index]
        edits = stream_edits(self.model, self.flow.norms, self.stream, self.rotation, f"{path}.")
        turned = prover.output(index, edits, self._turn(prover.hidden[index]))
        self._keep(self._back(turned), prover.output(index), path)

    def ends(self, prover: Prover) -> ResidualStream:
        """Rotate what makes the stream and what reads it behind the last block; the proved stream.

        Raises:
            NotOffered: when the output moves.
        """
        blocks = tuple(f"{path}." for path in prover.stream.blocks)
        edits = stream_edits(self.model, self.flow.norms, self.stream, self.rotation, skip=blocks)
        writes = {item.name for item in self.stream.writes}
        before = {name: value for name, value in edits.items() if name in writes}
        behind = {name: value for name, value in edits.items() if name not in writes or name in self._read_names()}
        self._keep(self._back(prover.prefix(before)), prover.hidden[0], "the embeddings")
        turned = prover.output(SUFFIX, behind, self._turn(prover.hidden[-1]))
        self._keep(turned, prover.output(SUFFIX), "the layers behind the blocks")
        return replace(self.stream, error=max(self.errors))

    def _read_names(self) -> set[str]:
        return {item.name for item in self.stream.reads}

    def _turn(self, hidden: torch.Tensor) -> torch.Tensor:
        return (hidden.double() @ self.rotation.T).to(hidden.dtype)

    def _back(self, hidden: torch.Tensor) -> torch.Tensor:
        return (hidden.double() @ self.rotation).to(hidden.dtype)

    def _keep(self, value: torch.Tensor, reference: torch.Tensor, where: str) -> None:
        error = relative_error(value, reference)
        self.errors.append(error)
        if not error <= TOLERANCE:
            raise NotOffered(f"rotating {where} moves its output by {error:.1e}")
