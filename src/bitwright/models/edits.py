"""Scale the output or input channels of a stored weight, whatever its orientation, kind and groups.

All functions take the parameter as it is stored and return a new tensor of the same shape and dtype.
"""

from __future__ import annotations

import torch

from bitwright.models.structure import NormSite, WeightSite


def scale_outputs(weight: torch.Tensor, site: WeightSite, scale: torch.Tensor) -> torch.Tensor:
    """Multiply output channel j by ``scale[j]`` (``scale``: [out])."""
    return weight * _along(scale.to(weight), weight, 1 if site.transposed else 0)


def scale_inputs(weight: torch.Tensor, site: WeightSite, scale: torch.Tensor) -> torch.Tensor:
    """Multiply input channel j by ``scale[j]`` (``scale``: [in], or [in channels] of a convolution with groups)."""
    scale = scale.to(weight)
    if site.kind != "conv" or site.groups == 1:
        return weight * _along(scale, weight, 0 if site.transposed else 1)
    # Group g holds rows g*out/G .. and reads channels g*in/G ..: every row sees the scales of its own group.
    per_group = scale.reshape(site.groups, 1, -1)
    rows = per_group.expand(site.groups, weight.shape[0] // site.groups, per_group.shape[-1])
    factors = rows.reshape(weight.shape[0], per_group.shape[-1])
    return weight * factors.reshape(*factors.shape, *[1] * (weight.dim() - 2))


def turn_outputs(weight: torch.Tensor, site: WeightSite, matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Turn the output channels ``rows`` head by head: v becomes ``matrix`` · v for each run of [head] of them.

    A bias [out] is turned alike.
    """
    turned = weight.clone()
    view = turned.T if site.transposed and weight.dim() == 2 else turned
    part = view[rows].reshape(-1, matrix.shape[0], *view.shape[1:])
    view[rows] = torch.einsum("ij,hj...->hi...", matrix.to(weight), part).reshape(len(rows), *view.shape[1:])
    return turned


def turn_inputs(weight: torch.Tensor, site: WeightSite, matrix: torch.Tensor) -> torch.Tensor:
    """Undo :func:`turn_outputs` in a linear layer that reads the turned channels, head after head."""
    moved = weight.T if site.transposed else weight
    heads = moved.reshape(moved.shape[0], -1, matrix.shape[0])
    turned = (heads @ matrix.to(weight).T).reshape(moved.shape)
    return (turned.T if site.transposed else turned).contiguous()


def input_channels(site: WeightSite, weight_shape: tuple[int, ...]) -> int:
    """Channels that a site reads."""
    if site.kind == "conv":
        return weight_shape[1] * site.groups
    return site.shape[1]


def scale_gain(weight: torch.Tensor, norm: NormSite, scale: torch.Tensor) -> torch.Tensor:
    """Multiply the gain of a norm by ``scale`` in the form in which it is stored (minus its offset)."""
    return (weight + norm.offset) * scale.to(weight) - norm.offset


def _along(scale: torch.Tensor, weight: torch.Tensor, axis: int) -> torch.Tensor:
    shape = [1] * weight.dim()
    shape[axis] = -1
    return scale.reshape(shape)
