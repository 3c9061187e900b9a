"""Network definitions for assets that come as bare weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (16, 32, 64)  # channels of the three stages
CLASSES = 10


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut (He et al. 2015, arXiv:1512.03385, figure 2).

    Where the shape changes, the shortcut has no weights (option A of section 3.3): every second pixel, and zeros
    for the new channels, half of them before and half after the old ones.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (channels - channels_in) // 2
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, channels_in, h, w]`` to ``[n, channels, h / stride, w / stride]``."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(inner + x)


class CifarResNet(nn.Module):
    """ResNet for 32x32 images (section 4.2 of the paper): depth 6 n + 2, three stages of n blocks."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STAGES[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STAGES[0])
        self.layer1 = self._stage(STAGES[0], STAGES[0], 1, blocks)
        self.layer2 = self._stage(STAGES[0], STAGES[1], 2, blocks)
        self.layer3 = self._stage(STAGES[1], STAGES[2], 2, blocks)
        self.linear = nn.Linear(STAGES[2], CLASSES)

    @staticmethod
    def _stage(channels_in: int, channels: int, stride: int, blocks: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images ``[n, 3, 32, 32]`` to logits ``[n, 10]``."""
        x = F.relu(self.bn1(self.conv1(pixel_values)))
        x = self.layer3(self.layer2(self.layer1(x)))
        pooled: Tensor = x.mean((2, 3))
        logits: Tensor = self.linear(pooled)
        return logits


def resnet20() -> CifarResNet:
    """ResNet-20: 0.27 M parameters."""
    return CifarResNet(3)


def resnet56() -> CifarResNet:
    """ResNet-56: 0.85 M parameters."""
    return CifarResNet(9)


def load_state(module: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Load weights that may lack BatchNorm's step counters; anything else missing or left over is an error.

    Raises:
        KeyError: if the names do not fit the module.
    """
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise KeyError(f"missing {missing}, unexpected {unexpected}")
    return module.eval().requires_grad_(requires_grad=False).to(torch.float32)
