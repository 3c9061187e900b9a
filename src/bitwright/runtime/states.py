"""Coded keys or values of one attention layer: packed tokens that only grow at their end, and a float tail."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Format, granularity, pack, unpack
from bitwright.formats.scales import load
from bitwright.runtime.dispatch import Table
from bitwright.runtime.manifest import CacheSide
from bitwright.runtime.online import run_online

# The names of a packed chunk's tensors; each is [batch, heads, places, ...], a place is a token or a group of tokens.
_PARTS = ("codes", "scale", "zero")


@dataclass(frozen=True)
class StateCoder:
    """Codes runs of tokens ``x[batch, heads, tokens, head_dim]`` by a format.

    A head's ``[tokens, head_dim]`` is the matrix that the format sees: ``token`` (or ``channel``) gives every token
    its scale, ``gN`` every N neighbours along ``head_dim``, ``gN axis=0`` every channel over N tokens, which are coded
    together once the last of them is there. Scales of two levels have no place in a growing tensor: the outer scale of
    NVFP4 is 1 here.

    Raises:
        InputError: for a granularity that would need all tokens at once, naming those that do not.
    """

    side: CacheSide
    table: Table

    def __post_init__(self) -> None:
        form = self.format.granularity
        ends_on_tokens = (
            isinstance(form, granularity.Token)
            or (isinstance(form, granularity.Channel) and form.axis == 0)
            or isinstance(form, granularity.Group)
        )
        if not ends_on_tokens or self.format.scale.storage in ("none", "uint8"):
            raise InputError(
                f"the format '{self.format}' cannot code a cache that grows token by token; "
                "use 'token', 'g64' or 'g32 axis=0'"
            )

    @property
    def format(self) -> Format:
        """The number format."""
        return self.side.format

    @property
    def group(self) -> int:
        """Tokens that are coded together."""
        form = self.format.granularity
        return form.size if isinstance(form, granularity.Group) and form.axis == 0 else 1

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """Code ``x``, whose tokens fill whole groups: ``codes``, ``scale``, and ``zero`` for asymmetric formats."""
        batch, heads, tokens, dim = x.shape
        x = run_online(x.float(), self.side.online, self.table)
        lines = x.reshape(batch, heads, -1, self.group, dim)
        rows = (lines.transpose(-1, -2) if self.group > 1 else lines).reshape(-1, self._row(dim))
        layout = self._format().granularity.layout((rows.shape[0], rows.shape[1]))
        groups = layout.split(rows)
        low, high = torch.aminmax(groups, dim=-1)
        raw, zero = self.format.scale_from_range(low, high)
        scale = self.format.store_scale(raw, self._outer(x.device))
        stored_zero = self.format.store_zero(zero)
        codes = layout.join(self.format.encode(groups, scale.effective, stored_zero))
        found = {"codes": pack(codes, self.format.grid.bits), "scale": scale.stored}
        if stored_zero is not None:
            found["zero"] = stored_zero
        places = tokens // self.group
        return {name: part.reshape(batch, heads, places, -1, part.shape[-1]) for name, part in found.items()}

    def decode(self, parts: dict[str, Tensor], dim: int, dtype: torch.dtype) -> Tensor:
        """Return ``[batch, heads, tokens, dim]`` of everything that :meth:`encode` coded."""
        batch, heads, places = parts["codes"].shape[:3]
        flat = {name: part.reshape(-1, part.shape[-1]) for name, part in parts.items()}
        width = self._row(dim)
        codes = unpack(flat["codes"], self.format.grid.bits, width)
        layout = self._format().granularity.layout((codes.shape[0], width))
        outer = self._outer(codes.device)
        scale = load(self.format.scale, flat["scale"], self.format.step_exponent, outer, None)
        values = self.format.decode(layout.split(codes), scale.effective, flat.get("zero"))
        rows = layout.join(values)
        if self.group > 1:
            lines = rows.reshape(batch, heads, places, dim, self.group).transpose(-1, -2)
        else:
            lines = rows.reshape(batch, heads, places, 1, dim)
        x = lines.reshape(batch, heads, places * self.group, dim)
        return run_online(x, self.side.online, self.table, inverse=True).to(dtype)

    def _row(self, dim: int) -> int:
        return self.group if self.group > 1 else dim

    def _format(self) -> Format:
        """The format as rows see it: a group of tokens of one channel is a row with one scale."""
        fmt = self.format
        return Format(fmt.grid, granularity.Channel(), fmt.scale, fmt.zero, fmt.time) if self._by_channel else fmt

    @property
    def _by_channel(self) -> bool:
        form = self.format.granularity
        return isinstance(form, granularity.Group) and form.axis == 0

    def _outer(self, device: torch.device) -> Tensor | None:
        return None if self.format.scale.outer is None else torch.ones(1, device=device)


@dataclass
class States:
    """The keys or the values of one layer: coded tokens first, then the float ones.

    ``coder`` is ``None`` where this side stays float. The last ``window`` tokens, and those of a group that is not
    complete, are float.
    """

    coder: StateCoder | None
    window: int
    coded: dict[str, Tensor] | None = None
    tail: Tensor | None = None

    @property
    def coded_tokens(self) -> int:
        """Tokens that are coded."""
        if self.coded is None or self.coder is None:
            return 0
        return self.coded["codes"].shape[2] * self.coder.group

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.coded_tokens + (0 if self.tail is None else self.tail.shape[2])

    def append(self, x: Tensor) -> Tensor:
        """Take ``x[batch, heads, new tokens, dim]``, code what is due, and return all tokens as attention sees them."""
        self.take(x)
        return self.values(x.dtype)

    def take(self, x: Tensor) -> None:
        """Take ``x[batch, heads, new tokens, dim]`` and code what is due."""
        tail = x if self.tail is None else torch.cat([self.tail, x], dim=2)
        if self.coder is not None:
            group = self.coder.group
            due = max(self.coded_tokens + tail.shape[2] - self.window, 0) // group * group - self.coded_tokens
            if due > 0:
                self._extend(self.coder.encode(tail[:, :, :due]))
                # A copy: a view would keep the memory of the tokens that were just coded.
                tail = tail[:, :, due:].clone()
        self.tail = tail

    def values(self, dtype: torch.dtype) -> Tensor:
        """All tokens ``[batch, heads, tokens, dim]``, coded ones dequantized."""
        assert self.tail is not None
        if self.coded is None or self.coder is None:
            return self.tail
        return torch.cat([self.coder.decode(self.coded, self.tail.shape[-1], dtype), self.tail.to(dtype)], dim=2)

    def drop(self, count: int) -> None:
        """Forget the last ``count`` tokens; what is left of a coded group becomes float."""
        if count <= 0 or self.tail is None:
            return
        kept = max(self.tokens - count, 0)
        if kept >= self.coded_tokens or self.coder is None:
            self.tail = self.tail[:, :, : kept - self.coded_tokens]
            return
        places = kept // self.coder.group
        rest = kept - places * self.coder.group
        self.tail = self.tail[:, :, :0]
        if rest:
            assert self.coded is not None
            group = {name: part[:, :, places : places + 1] for name, part in self.coded.items()}
            self.tail = self.coder.decode(group, self.tail.shape[-1], self.tail.dtype)[:, :, :rest].clone()
        assert self.coded is not None
        self.coded = {name: part[:, :, :places].clone() for name, part in self.coded.items()} if places else None

    def select(self, index: Tensor) -> None:
        """Keep the batch entries ``index``, in that order (repeats allowed)."""
        if self.tail is not None:
            self.tail = self.tail.index_select(0, index.to(self.tail.device))
        if self.coded is not None:
            self.coded = {name: part.index_select(0, index.to(part.device)) for name, part in self.coded.items()}

    def to(self, device: torch.device | str) -> None:
        """Move everything to a device."""
        if self.tail is not None:
            self.tail = self.tail.to(device, non_blocking=True)
        if self.coded is not None:
            self.coded = {name: part.to(device, non_blocking=True) for name, part in self.coded.items()}

    def clear(self) -> None:
        """Forget all tokens."""
        self.coded = self.tail = None

    def bytes(self) -> int:
        """Bytes of what is stored."""
        tensors = [*(self.coded or {}).values(), *([] if self.tail is None else [self.tail])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _extend(self, chunk: dict[str, Tensor]) -> None:
        if self.coded is None:
            self.coded = chunk
        else:
            self.coded = {name: torch.cat([self.coded[name], part], dim=2) for name, part in chunk.items()}
