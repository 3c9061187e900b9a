"""Groups of 2 bits of which those with the widest range get 4 bits, as many in every row.

"Enabling Fast 2-bit LLM on GPUs: Memory Alignment and Asynchronous Dequantization" (arXiv:2311.16442), section 3.1: the
error of a group follows its range, and a fixed count for each row keeps memory aligned. A code of 4 bits is stored as a
sum: two bits among those of all groups, at four times the scale, and two more in a term of chosen groups.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Codes, Groups, QuantizedTensor, parse


def widest_groups(w: Tensor, size: int, count: int) -> Tensor:
    """Return int32 ``[out, count]``: the groups of each row of ``w[out, in]`` with the widest range, ascending.

    Raises:
        InputError: groups that do not divide a row, or a count that a row does not have.
    """
    groups = w.shape[1] // max(size, 1)
    if size < 1 or w.shape[1] % size or not 1 <= count <= groups:
        raise InputError(
            f"{count} groups of {size} are not in rows of {w.shape[1]}; choose a divisor and a lower count"
        )
    g = w.view(len(w), groups, size).float()
    spread = g.amax(-1).clamp(min=0) - g.amin(-1).clamp(max=0)
    return spread.topk(count, dim=1).indices.sort(dim=1).values.to(torch.int32)


def promoted(w: Tensor, size: int, count: int, which: Tensor | None = None) -> QuantizedTensor:
    """Round ``w[out, in]`` to groups of 2 bits, ``count`` of every row to 4 bits: those with the widest range.

    Args:
        size: inputs of a group. count: groups of a row with 4 bits.
        which: other groups to choose, int32 ``[out, count]``.

    Raises:
        InputError: as :func:`widest_groups`; NaN or Inf in ``w``; a scale beyond fp16.
    """
    chosen = widest_groups(w, size, count) if which is None else which
    place = chosen.long()
    index = place.unsqueeze(-1).expand(-1, -1, size)
    base, four = parse(f"int2 g{size} asym"), parse(f"int4 g{size} asym")
    plain = base.quantize(w)
    picked = w.view(len(w), -1, size).gather(1, index).reshape(len(w), -1)
    fine = four.quantize(picked)
    assert plain.zero is not None
    assert fine.zero is not None
    scale = base.store_scale(plain.scale.effective.scatter(1, place, 4 * fine.scale.effective))
    zero = plain.zero.scatter(1, place, fine.zero >> 2)
    upper = (fine.codes >> 2).view(len(w), count, size)
    codes = plain.codes.view(len(w), -1, size).scatter(1, index, upper).view(w.shape)
    rest = Codes(fine.codes & 3, base, fine.scale, fine.zero & 3)
    main = replace(plain, codes=codes, scale=scale, zero=zero)
    return QuantizedTensor((main, Groups(rest, chosen, size, (int(w.shape[0]), int(w.shape[1])))))
