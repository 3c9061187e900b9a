"""The digits classifier: a small convolutional network with the parts that quantizers have to handle."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsNet(nn.Module):
    """Classifies 8x8 grey images into ten digits.

    A plain convolution, a depthwise-separable stage (depthwise with stride 2, then pointwise), a residual stage, global
    average pooling and a linear layer. Every convolution is followed by batch normalization and has no bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.pointwise = nn.Conv2d(16, 32, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(32)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.relu3 = nn.ReLU()
        self.relu4 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits `[n, 10]` of images `[n, 1, 8, 8]` with values from 0 to 1."""
        x = self.relu1(self.bn1(self.conv1(images)))
        x = self.relu2(self.bn2(self.depthwise(x)))
        x = self.relu3(self.bn3(self.pointwise(x)))
        x = self.relu4(x + self.bn4(self.conv2(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits
