"""Images and sentence pairs: normalisation, subsets, files that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bitwright.data.images import image_data, read_images
from bitwright.data.pairs import read_pairs
from bitwright.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
LABELS = np.arange(6, dtype=np.uint8)
MEAN, STD = (0.5, 0.25, 0.125), (0.5, 1.0, 2.0)


def test_pixels_are_normalised_channel_by_channel(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    data = read_images(tmp_path / "a.npz", MEAN, STD)
    assert data.images.shape == (6, 3, 4, 5)
    expected = (PIXELS[2, 1, 4, 2] / 255 - 0.125) / 2.0
    assert data.images[2, 2, 1, 4].item() == pytest.approx(expected, abs=1e-6)
    assert data.labels.tolist() == list(range(6))
    assert len(read_images(tmp_path / "a.npz", MEAN, STD, count=2)) == 2
    gray = image_data(PIXELS[..., 0], LABELS, (0.0,), (1.0,), "toy")
    assert gray.images.shape == (6, 1, 4, 5)


def test_subsets_and_batches() -> None:
    data = image_data(PIXELS, LABELS, MEAN, STD, "toy")
    assert data.first(2).labels.tolist() == [0, 1]
    drawn = data.draw(3, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.images, data.images[drawn.labels])
    assert drawn.sha256 != data.first(3).sha256
    assert [len(b["input"]) for b in data.for_module(nn.Identity()).batches(4)] == [4, 2]
    assert torch.equal(torch.cat([b["pixel_values"] for b in data.batches(4)]), data.images)


def test_wrong_image_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS)
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04")
    for name, message in [("a.npz", "no array 'labels'"), ("b.npz", "cannot be read"), ("c.npz", "cannot be read")]:
        with pytest.raises(InputError, match=message):
            read_images(tmp_path / name, MEAN, STD)
    with pytest.raises(InputError, match="store uint8"):
        image_data(PIXELS.astype(np.float32), LABELS, MEAN, STD, "toy")
    with pytest.raises(InputError, match="3 channels but 1 means"):
        image_data(PIXELS, LABELS, (0.5,), (0.5,), "toy")
    with pytest.raises(InputError, match="5 labels for 6 images"):
        image_data(PIXELS, LABELS[:5], MEAN, STD, "toy")
    with pytest.raises(InputError, match="n > 0"):
        image_data(PIXELS[:0], LABELS[:0], MEAN, STD, "toy")


def test_pairs_are_read_with_further_columns_ignored(tmp_path: Path) -> None:
    line = "captions\tMSRvid\t2012\t0024\t{}\t{}\t{}"
    lines = [line.format("2.500", 'a "quoted" girl', "a boy"), line.format("5", "a boy", "x\tmore\tcolumns")]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = read_pairs(tmp_path / "a.tsv")
    assert data.scores.tolist() == [2.5, 5.0]
    assert data.sentences == ('a "quoted" girl', "a boy", "x")
    assert len(data.first(1)) == 1
    assert data.first(1).sha256 != data.sha256
    assert data.first(7) is data


def test_wrong_pair_files_are_refused(tmp_path: Path) -> None:
    for content, message in [
        ("", "holds no pair"),
        ("a\tb\tc\td\tnumber\tx\ty", "line 1"),
        ("a\tb\tc\td\t1\tx", "line 1"),
    ]:
        (tmp_path / "a.tsv").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_pairs(tmp_path / "a.tsv")
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path / "none.tsv")
