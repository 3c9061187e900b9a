"""Networks of other libraries and in the style of torchvision, tiny and with random weights.

diffusers is optional: its classes are listed only where it is installed. torchvision's networks are written here as
plain modules, because it has no build for every torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.architectures.mappings import Entry

Example = tuple[nn.Module, dict[str, Any]]


def noise(*shape: int) -> Tensor:
    """Reproducible noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def entries_of(mapping: str) -> list[Entry]:
    """The networks under one name: ``diffusers`` or ``cnn``."""
    if mapping == "diffusers" and importlib.util.find_spec("diffusers") is None:
        return []
    return [Entry(*key.split("/")) for key in BUILDERS if key.startswith(f"{mapping}/")]


def _diffusers(name: str, **sizes: Any) -> nn.Module:
    import diffusers

    module: nn.Module = getattr(diffusers, name)(**sizes)
    return module


_STEPS = torch.tensor([3, 5])
_UNET = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (32, 64)}


def _unet_conditioned() -> Example:
    module = _diffusers(
        "UNet2DConditionModel", **_UNET, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=8,
        norm_num_groups=8,
    )  # fmt: skip
    return module, {"sample": noise(2, 4, 8, 8), "timestep": _STEPS, "encoder_hidden_states": noise(2, 6, 32)}


def _unet_plain() -> Example:
    module = _diffusers(
        "UNet2DModel", **_UNET, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    return module, {"sample": noise(2, 4, 8, 8), "timestep": _STEPS}


def _autoencoder() -> Example:
    module = _diffusers(
        "AutoencoderKL", block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, latent_channels=4,
    )  # fmt: skip
    return module, {"sample": noise(2, 3, 16, 16)}


def _dit() -> Example:
    module = _diffusers(
        "DiTTransformer2DModel", num_attention_heads=4, attention_head_dim=16, in_channels=4, num_layers=3,
        sample_size=8, patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    return module, {"hidden_states": noise(2, 4, 8, 8), "timestep": _STEPS, "class_labels": torch.tensor([1, 2])}


def _pixart() -> Example:
    module = _diffusers(
        "PixArtTransformer2DModel", num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=8,
        num_layers=3, sample_size=8, patch_size=2, cross_attention_dim=64, caption_channels=32,
    )  # fmt: skip
    return module, {"hidden_states": noise(2, 4, 8, 8), "timestep": _STEPS, "encoder_hidden_states": noise(2, 6, 32)}


def _sd3() -> Example:
    module = _diffusers(
        "SD3Transformer2DModel", sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=64, pooled_projection_dim=32,
        out_channels=4,
    )  # fmt: skip
    return module, {"hidden_states": noise(2, 4, 8, 8), "timestep": _STEPS, "encoder_hidden_states": noise(2, 6, 32),
                    "pooled_projections": noise(2, 32)}  # fmt: skip


def _flux() -> Example:
    module = _diffusers(
        "FluxTransformer2DModel", patch_size=1, in_channels=4, num_layers=2, num_single_layers=2,
        attention_head_dim=16, num_attention_heads=4, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return module, {"hidden_states": noise(2, 16, 4), "encoder_hidden_states": noise(2, 6, 32),
                    "pooled_projections": noise(2, 32), "timestep": torch.tensor([0.3, 0.5]),
                    "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(6, 3)}  # fmt: skip


class Unit(nn.Sequential):
    """Convolution, BatchNorm, activation."""

    def __init__(
        self, inside: int, outside: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None
    ) -> None:
        parts = [nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)]
        super().__init__(*parts, nn.BatchNorm2d(outside), *([] if act is None else [act]))


class Bottleneck(nn.Module):
    """ResNet's block of three convolutions."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Unit(inside, outside // 4, 1, act=nn.ReLU()), Unit(outside // 4, outside // 4, 3, stride, act=nn.ReLU()),
            Unit(outside // 4, outside, 1),
        )  # fmt: skip
        self.downsample = Unit(inside, outside, 1, stride) if inside != outside or stride > 1 else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's map."""
        return self.relu(self.body(x) + self.downsample(x))


class Basic(nn.Module):
    """ResNet's block of two convolutions."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Unit(inside, outside, 3, stride, act=nn.ReLU()), Unit(outside, outside))
        self.downsample = Unit(inside, outside, 1, stride) if inside != outside or stride > 1 else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's map."""
        return self.relu(self.body(x) + self.downsample(x))


class Squeeze(nn.Module):
    """Squeeze and excitation: channels are weighted by what is in the whole map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The weighted map."""
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    """MobileNet's inverted residual; with ``squeeze`` as in its third version and EfficientNet."""

    def __init__(
        self, inside: int, outside: int, stride: int, act: type[nn.Module] = nn.ReLU6, squeeze: bool = False
    ) -> None:
        super().__init__()
        wide = 4 * inside
        middle: list[nn.Module] = [Squeeze(wide)] if squeeze else []
        self.body = nn.Sequential(
            Unit(inside, wide, 1, act=act()), Unit(wide, wide, 3, stride, wide, act()), *middle, Unit(wide, outside, 1)
        )
        self.skip = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """The block's map."""
        return x + self.body(x) if self.skip else self.body(x)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised along axis 1."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution and a multilayer perceptron on channels last, with a learned scale per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.layer_scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The block's map."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(nn.functional.gelu(self.up(y))).permute(0, 3, 1, 2)
        return x + self.layer_scale * y


class DenseLayer(nn.Module):
    """DenseNet's layer: what it makes is put beside what it reads."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The wider map."""
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class Classifier(nn.Module):
    """Features, the mean over the image, a linear layer."""

    def __init__(self, channels: int, *features: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 10]."""
        return self.fc(self.features(x).mean((2, 3)))


def _image(module: nn.Module) -> Example:
    return module, {"x": noise(2, 3, 32, 32)}


def _stages(block: Callable[[int, int, int], nn.Module]) -> list[nn.Module]:
    return [nn.Sequential(block(16, 16, 1), block(16, 16, 1)), nn.Sequential(block(16, 32, 2), block(32, 32, 1))]


def _resnet(block: Callable[[int, int, int], nn.Module]) -> Example:
    return _image(Classifier(32, Unit(3, 16, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1), *_stages(block)))


def _mobilenet(act: type[nn.Module], squeeze: bool) -> Example:
    def block(inside: int, outside: int, stride: int) -> nn.Module:
        return Inverted(inside, outside, stride, act, squeeze)

    return _image(Classifier(64, Unit(3, 16, 3, 2, act=act()), *_stages(block), Unit(32, 64, 1, act=act())))


def _convnext() -> Example:
    stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), LayerNorm2d(16))
    down = nn.Sequential(LayerNorm2d(16), nn.Conv2d(16, 32, 2, 2))
    blocks = [ConvNeXtBlock(16), ConvNeXtBlock(16), down, ConvNeXtBlock(32), ConvNeXtBlock(32), LayerNorm2d(32)]
    return _image(Classifier(32, stem, *blocks))


def _vgg() -> Example:
    plain = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return _image(Classifier(32, *plain, nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()))


def _densenet() -> Example:
    layers = [DenseLayer(16 + 8 * index, 8) for index in range(4)]
    return _image(Classifier(48, Unit(3, 16, 3, 2, act=nn.ReLU()), *layers, nn.BatchNorm2d(48), nn.ReLU()))


BUILDERS: dict[str, Callable[[], Example]] = {
    "diffusers/unet/UNet2DConditionModel": _unet_conditioned,
    "diffusers/unet-plain/UNet2DModel": _unet_plain,
    "diffusers/vae/AutoencoderKL": _autoencoder,
    "diffusers/dit/DiTTransformer2DModel": _dit,
    "diffusers/pixart/PixArtTransformer2DModel": _pixart,
    "diffusers/sd3/SD3Transformer2DModel": _sd3,
    "diffusers/flux/FluxTransformer2DModel": _flux,
    "cnn/resnet-basic/ResNet": lambda: _resnet(Basic),
    "cnn/resnet-bottleneck/ResNet": lambda: _resnet(Bottleneck),
    "cnn/mobilenet-v2/MobileNetV2": lambda: _mobilenet(nn.ReLU6, False),
    "cnn/mobilenet-v3/MobileNetV3": lambda: _mobilenet(nn.Hardswish, True),
    "cnn/efficientnet/EfficientNet": lambda: _mobilenet(nn.SiLU, True),
    "cnn/convnext/ConvNeXt": _convnext,
    "cnn/vgg/VGG": _vgg,
    "cnn/densenet/DenseNet": _densenet,
}
