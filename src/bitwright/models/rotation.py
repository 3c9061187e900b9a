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
MAX_TURN = 32


class Turn:
    """A random orthogonal matrix that is cheap to apply: one small matrix on every run of neighbouring channels.

    With ``keep_ones`` the vector of ones is mapped to itself. All channels change by as much as they weigh, so a
    forgotten reader or writer cannot hide.
    """

    def __init__(self, dim: int, keep_ones: bool, seed: int = 0) -> None:
        sizes = [size for size in range(4, MAX_TURN + 1) if dim % size == 0]
        self.size = sizes[-1] if sizes else dim
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(self.size, self.size, generator=generator, dtype=torch.float64)
        if keep_ones:
            draw[:, 0] = 1.0  # the first axis of the basis lies along the ones, the turn leaves it alone
        basis = torch.linalg.qr(draw)[0]
        matrix = basis
        if keep_ones:
            inner = torch.eye(self.size, dtype=torch.float64)
            free = torch.randn(self.size - 1, self.size - 1, generator=generator, dtype=torch.float64)
            inner[1:, 1:] = torch.linalg.qr(free)[0]
            matrix = basis @ inner @ basis.T
        self.matrix = matrix.float()

    def turn(self, vectors: torch.Tensor) -> torch.Tensor:
        """Q·v for the vectors along the last axis."""
        return self._times(vectors, self.matrix.T)

    def back(self, vectors: torch.Tensor) -> torch.Tensor:
        """Qᵀ·v for the vectors along the last axis."""
        return self._times(vectors, self.matrix)

    def _times(self, vectors: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return (vectors.reshape(-1, self.size) @ matrix.to(vectors)).reshape(vectors.shape)


class RotationProof:
    """Collects the errors of a rotation by one random orthogonal matrix; a piece that fails ends the proof."""

    def __init__(self, model: Model, flow: Flow, stream: ResidualStream) -> None:
        self.model = model
        self.flow = flow
        self.stream = stream
        self.rotation = Turn(stream.dim, stream.norm_kind == "layer")
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
        turned = prover.prefix(self._edits("writes", blocks))
        self._keep(self.rotation.back(turned), prover.hidden[0], "the embeddings")
        turned = prover.output(SUFFIX, self._edits("reads", blocks), self.rotation.turn(prover.hidden[-1]))
        self._keep(turned, prover.output(SUFFIX), "the layers behind the blocks")
        return replace(self.stream, error=max(self.errors))

    def _edits(self, side: str, skip: tuple[str, ...]) -> dict[str, torch.Tensor]:
        return stream_edits(self.model, self.flow.norms, self.stream, self.rotation.turn, skip=skip, side=side)

    def _keep(self, value: torch.Tensor, reference: torch.Tensor, where: str) -> None:
        error = relative_error(value, reference)
        self.errors.append(error)
        if not error <= TOLERANCE:
            short = value.dtype in {torch.float16, torch.bfloat16}
            hint = f" in {str(value.dtype).removeprefix('torch.')}; open the model in float32" if short else ""
            raise NotOffered(f"rotating {where} moves its output by {error:.1e}{hint}")
