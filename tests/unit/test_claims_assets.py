"""Assets by name, their manifest, the networks that come as bare weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from bitwright.claims.assets import FROM_FOLDER, ImageAsset, load_asset
from bitwright.claims.manifest import check_files, read_manifest
from bitwright.claims.networks import load_state, resnet20, resnet56
from bitwright.errors import InputError
from bitwright.evaluation import image_scores

MANIFEST = Path(__file__).parents[2] / "claims" / "assets.toml"


def test_every_asset_is_listed_with_licence_and_source() -> None:
    manifest = read_manifest(MANIFEST)
    assert set(FROM_FOLDER) <= set(manifest)
    for entry in manifest.values():
        assert entry.licence
        assert entry.source
        assert all(len(value) == 64 for value in entry.files.values())


def test_files_are_those_that_are_listed(assets: Path) -> None:
    manifest = read_manifest(MANIFEST)
    for name in FROM_FOLDER:
        check_files(manifest, name, assets)


def listed(tmp_path: Path, **changes: str) -> Path:
    fields = {"name": '"a"', "kind": '"lm"', "title": '"t"', "licence": '"l"', "source": '"s"', **changes}
    lines = ["format_version = 1", "[[asset]]", *(f"{key} = {value}" for key, value in fields.items())]
    digest = hashlib.sha256(b"content").hexdigest()
    path = tmp_path / "assets.toml"
    path.write_text("\n".join([*lines, "[asset.files]", f'"a/x" = "{digest}"']), encoding="utf-8")
    return path


def test_changed_and_missing_files_are_found(tmp_path: Path) -> None:
    manifest = read_manifest(listed(tmp_path))
    with pytest.raises(InputError, match="cannot be read"):
        check_files(manifest, "a", tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"content")
    check_files(manifest, "a", tmp_path)
    (tmp_path / "a" / "x").write_bytes(b"contend")
    with pytest.raises(InputError, match="not the file that is listed"):
        check_files(manifest, "a", tmp_path)
    with pytest.raises(InputError, match="no asset 'b' is listed"):
        check_files(manifest, "b", tmp_path)


def test_wrong_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"entry 0\.title is wrong"):
        read_manifest(listed(tmp_path, title="3"))
    with pytest.raises(InputError, match="a uses 'c', which is not listed"):
        read_manifest(listed(tmp_path, uses='["c"]'))
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(tmp_path / "none.toml")
    (tmp_path / "old.toml").write_text("format_version = 0")
    with pytest.raises(InputError, match="format_version 0"):
        read_manifest(tmp_path / "old.toml")


def test_unknown_names_and_absent_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'lm-stories260k'"):
        load_asset("lm-stories260", tmp_path)
    with pytest.raises(InputError, match="--assets"):
        load_asset("lm-stories260k")
    with pytest.raises(InputError, match="does not exist"):
        load_asset("vision-vit-cifar10", tmp_path)


def test_embedded_digits_need_no_folder() -> None:
    asset = load_asset("zoo:digits")
    assert isinstance(asset, ImageAsset)
    model = asset.open()
    scores = image_scores(model.module, asset.evaluation(model))
    assert scores.top1 == pytest.approx(asset.figure.value, abs=0.23)  # one of 450 images
    assert len(asset.calibration(model, 32)) == 32


def test_calibration_images_are_drawn_by_seed(assets: Path) -> None:
    asset = load_asset("vision-resnet-cifar10", assets)
    assert isinstance(asset, ImageAsset)
    model = asset.open()
    one, same, other = (asset.calibration(model, 16, seed) for seed in (0, 0, 1))
    assert torch.equal(one.images, same.images)
    assert one.sha256 == same.sha256 != other.sha256


def test_resnets_have_the_papers_size_and_shapes() -> None:
    network = resnet20().eval()
    assert sum(p.numel() for p in network.parameters()) == 269_722  # 0.27 M in table 6
    assert sum(p.numel() for p in resnet56().parameters()) == 853_018  # 0.85 M
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert network.layer3(network.layer2(network.layer1(torch.zeros(2, 16, 32, 32)))).shape == (2, 64, 8, 8)
    assert network(x).shape == (2, 10)


def test_shortcut_takes_every_second_pixel_between_zero_channels() -> None:
    block = resnet20().layer2[0].eval()
    with torch.no_grad():
        block.conv2.weight.zero_()
        x = torch.rand(1, 16, 8, 8)
        y = block(x)
    torch.testing.assert_close(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().max() == 0
    assert y[:, 24:].abs().max() == 0


def test_bare_weights_must_fit_the_network() -> None:
    state = {k: v for k, v in resnet20().state_dict().items() if not k.endswith("num_batches_tracked")}
    assert not load_state(resnet20(), dict(state)).training
    del state["conv1.weight"]
    with pytest.raises(KeyError, match=r"conv1\.weight"):
        load_state(resnet20(), state)
