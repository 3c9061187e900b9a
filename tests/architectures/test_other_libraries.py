"""Networks of diffusers, timm and in torchvision's style; what is not installed is skipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.architectures.building import Built, randomised
from tests.architectures.mappings import Entry
from tests.architectures.measuring import Row, measure, measure_built
from tests.architectures.others import entries_of, noise
from tests.architectures.page import keeps, quantizes
from tests.architectures.shrinking import STRATEGIES


def _check(row: dict[str, Any]) -> None:
    assert quantizes(row), (row["reason"], row["rtn"], row["gptq"], row["unaccounted"])
    assert keeps(row), row["kept"]
    assert row["blocks"] > 1


@pytest.mark.parametrize("key", ["cnn/resnet-basic/ResNet", "cnn/mobilenet-v3/MobileNetV3", "cnn/convnext/ConvNeXt"])
def test_a_convolutional_network(key: str) -> None:
    row = vars(measure(Entry(*key.split("/"))))
    _check(row)
    assert row["pairs"] > 0


@pytest.mark.parametrize(
    ("key", "blocks"), [("diffusers/unet/UNet2DConditionModel", 4), ("diffusers/dit/DiTTransformer2DModel", 3)]
)
def test_a_network_of_diffusers(key: str, blocks: int) -> None:
    pytest.importorskip("diffusers", exc_type=ImportError)
    row = vars(measure(Entry(*key.split("/"))))
    _check(row)
    assert row["blocks"] == blocks
    assert row["kept"]["smoothing"]["error"] is not None


def test_what_is_not_installed_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert entries_of("diffusers") == []
    assert len(entries_of("cnn")) == 8


def _row(module: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    return vars(measure_built(Row("other/module", True), Built(randomised(module), batch, STRATEGIES[0])))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "efficientnet_b0"])
def test_a_convolutional_network_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    _check(_row(timm.create_model(name, pretrained=False), {"x": noise(2, 3, 64, 64)}))
