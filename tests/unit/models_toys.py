"""Tiny random networks of many shapes for the tests of ``bitwright.models``; built offline in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_TEXT = {**_SIZES, **_IDS}
_GROUPED = {**_TEXT, "num_key_value_heads": 2}


def _vit() -> nn.Module:
    sizes = {k: v for k, v in _SIZES.items() if k not in {"vocab_size", "max_position_embeddings"}}
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, image_size=16, patch_size=4, num_channels=3, num_labels=5)
    )


_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_GROUPED)),
    "llama-tied": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**_GROUPED, tie_word_embeddings=True)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_GROUPED)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**_GROUPED, sliding_window=8)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64, **_IDS)
    ),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=32, **_IDS,
        )
    ),
    "gpt-neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**_TEXT)),
    "phi": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**_TEXT)),
    "phi3": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**_GROUPED)),
    "falcon": lambda: transformers.FalconForCausalLM(
        transformers.FalconConfig(
            vocab_size=96, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, **_IDS
        )
    ),
    "gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(**_GROUPED, head_dim=8)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**_GROUPED, head_dim=8, sliding_window=4)
    ),
    "olmo2": lambda: transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**_GROUPED)),
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**_GROUPED, num_local_experts=4)),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**_SIZES)),
    "bert-masked": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_SIZES)),
    "vit": _vit,
}  # fmt: skip


def toy_model(name: str) -> nn.Module:
    """A random network of the architecture ``name``; weights are wide, gains and biases are not trivial."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(_BUILDERS[name]())


def randomised(module: nn.Module) -> nn.Module:
    """Give every parameter and BatchNorm statistic a value that matters."""
    for name, parameter in module.named_parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return module.eval().requires_grad_(False)


class BasicBlock(nn.Module):
    """Two convolutions with BatchNorm and a skip connection."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and inside == outside
        self.skip = None if same else nn.Sequential(
            nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.skip is None else self.skip(x)))


class ResNet(nn.Module):
    """A stem, four basic blocks in two stages, pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 8, 1))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2), BasicBlock(16, 16, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(self.pool(x).flatten(1))


def conv_norm_act(inside: int, outside: int, size: int, stride: int, groups: int, act: nn.Module) -> nn.Sequential:
    """Convolution, BatchNorm, activation."""
    convolution = nn.Conv2d(inside, outside, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), act)


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, project; a skip where the shapes allow."""

    def __init__(self, inside: int, outside: int, stride: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        wide = 4 * inside
        self.skip = stride == 1 and inside == outside
        self.conv = nn.Sequential(
            conv_norm_act(inside, wide, 1, 1, 1, act()),
            conv_norm_act(wide, wide, 3, stride, wide, act()),
            nn.Conv2d(wide, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


class MobileNet(nn.Module):
    """A small MobileNetV2 with a choice of activation."""

    def __init__(self, act: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_norm_act(3, 8, 3, 2, 1, act()),
            InvertedResidual(8, 8, 1, act),
            InvertedResidual(8, 16, 2, act),
            InvertedResidual(16, 16, 1, act),
            conv_norm_act(16, 32, 1, 1, 1, act()),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


def toy_images(module_seed: int = 0) -> torch.Tensor:
    """Two random 16 x 16 images."""
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(module_seed))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Build and randomise a module with a fixed seed, leaving the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(build())


def orthogonal(dim: int, keep_ones: bool) -> torch.Tensor:
    """A random orthogonal matrix in float64; with ``keep_ones`` it maps the vector of ones to itself."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    columns[:, 0] = 1.0
    basis = torch.linalg.qr(columns)[0]
    if not keep_ones:
        return basis
    inner = torch.eye(dim, dtype=torch.float64)
    inner[1:, 1:] = torch.linalg.qr(torch.randn(dim - 1, dim - 1, generator=generator, dtype=torch.float64))[0]
    return basis @ inner @ basis.T
