"""Networks of diffusers and timm with random weights; skipped where the libraries are not installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.architectures.building import Built, randomised
from tests.architectures.measuring import Row, measure_built
from tests.architectures.page import keeps, quantizes
from tests.architectures.shrinking import STRATEGIES


def _row(module: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    return vars(measure_built(Row("other/module", True), Built(randomised(module), batch, STRATEGIES[0])))


def _check(row: dict[str, Any]) -> None:
    assert quantizes(row), (row["reason"], row["rtn"], row["gptq"], row["unaccounted"])
    assert keeps(row), row["kept"]
    assert row["blocks"] > 1


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_unet_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", exc_type=ImportError)
    module = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    row = _row(module, {"sample": _noise(2, 4, 8, 8), "timestep": torch.tensor([3, 5]),
                        "encoder_hidden_states": _noise(2, 6, 32)})  # fmt: skip
    _check(row)
    assert row["kept"]["smoothing"]["error"] is not None


def test_a_diffusion_transformer_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", exc_type=ImportError)
    module = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, num_layers=3, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    steps, labels = torch.tensor([3, 5]), torch.tensor([1, 2])
    batch = {"hidden_states": _noise(2, 4, 8, 8), "timestep": steps, "class_labels": labels}
    row = _row(module, batch)
    _check(row)
    assert row["blocks"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "efficientnet_b0"])
def test_a_convolutional_network_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    _check(_row(timm.create_model(name, pretrained=False), {"x": _noise(2, 3, 64, 64)}))
