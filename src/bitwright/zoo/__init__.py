"""Two small trained networks that come with the package, and the data to measure them on.

The language model is a Llama-type model of 0.43 million parameters trained on Python source text; the image
classifier is a convolutional network on scikit-learn's bundled digits. Both are there so that tests, examples and
comparisons run in seconds and without a network connection. Importing this module loads nothing.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitwright.errors import InputError
from bitwright.zoo import corpus

if TYPE_CHECKING:
    from torch import Tensor

    from bitwright.zoo.digits.network import DigitsNet

__all__ = [
    "calibration_texts",
    "card",
    "digits_data",
    "digits_path",
    "eval_tokens",
    "heldout_texts",
    "lm_path",
    "load_digits_model",
]

_ROOT = Path(__file__).parent
# The split of the digits is part of the published accuracy, so neither number is an argument.
_DIGITS_SEED = 0
_DIGITS_TEST = 450


def lm_path() -> Path:
    """The folder of the language model, in the layout that transformers reads."""
    return _existing(_ROOT / "lm")


def digits_path() -> Path:
    """The folder of the digits classifier: `model.safetensors`, `zoo.json`, the network's source."""
    return _existing(_ROOT / "digits")


def card(name: Literal["lm", "digits"]) -> dict[str, Any]:
    """The machine-readable model card `zoo.json`: size, training, float figures, hashes."""
    path = (lm_path() if name == "lm" else digits_path()) / "zoo.json"
    found: dict[str, Any] = json.loads(_existing(path).read_text(encoding="utf-8"))
    return found


def load_digits_model() -> DigitsNet:
    """The trained digits classifier, in evaluation mode, float32 on the CPU."""
    from safetensors.torch import load_file

    from bitwright.zoo.digits.network import DigitsNet

    net = DigitsNet()
    net.load_state_dict(load_file(_existing(digits_path() / "model.safetensors")))
    return net.eval()


def digits_data(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Images and labels of one split: float32 `[n, 1, 8, 8]` from 0 to 1, int64 `[n]`.

    The split is fixed: 1,347 images for training and 450 for the test.

    Raises:
        InputError: if scikit-learn, which carries the images, is not installed, or `split` is neither name.
    """
    if split not in ("train", "test"):
        raise InputError(f"the digits have the splits 'train' and 'test', not {split!r}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "the digits images are part of scikit-learn, which is not installed; pip install 'bitwright[vision]'"
        ) from error
    import numpy as np
    import torch

    bunch = load_digits()
    order = np.random.default_rng(_DIGITS_SEED).permutation(len(bunch.target))
    rows = order[:_DIGITS_TEST] if split == "test" else order[_DIGITS_TEST:]
    images = torch.from_numpy(bunch.images[rows].astype(np.float32) / 16.0).unsqueeze(1)
    return images, torch.from_numpy(bunch.target[rows].astype(np.int64))


def eval_tokens() -> Tensor:
    """Token ids sampled from the float language model itself, int64 `[128, 512]`; every window begins with bos.

    A model's own samples need no text on disk, and on them the float model is the best predictor there is.
    """
    import torch
    from safetensors.torch import load_file

    return load_file(_existing(lm_path() / "eval_tokens.safetensors"))["tokens"].to(torch.int64)


def heldout_texts() -> list[tuple[str, str]]:
    """Names and texts of the held-out source files that this installation has unchanged.

    A file counts only if its SHA-256 is the one in the model card, so a figure measured on these texts is about the
    text that was held out. Other versions of Python or of the packages have fewer such files, possibly none.
    """
    found = []
    for entry in card("lm")["heldout"]["files"]:
        path = corpus.locate(entry["name"])
        if path is None:
            continue
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == entry["sha256"]:
            found.append((entry["name"], data.decode("utf-8")))
    return found


def calibration_texts(seed: int, count: int) -> list[str]:
    """`count` source files of the kind the language model was trained on, read from this installation.

    Never a held-out file. The same seed gives the same files as long as the installation does not change.

    Raises:
        InputError: if `count` is not positive or the installation has fewer files.
    """
    if count < 1:
        raise InputError(f"the number of calibration texts must be positive, not {count}")
    files = [file for file in corpus.corpus_files() if not corpus.is_held_out(file.name)]
    random.Random(seed).shuffle(files)
    texts: list[str] = []
    for file in files:
        text = corpus.read_text(file.path)
        if text is not None:
            texts.append(text)
        if len(texts) == count:
            return texts
    raise InputError(f"{count} calibration texts asked for, this installation has {len(texts)}")


def _existing(path: Path) -> Path:
    """The path itself.

    Raises:
        InputError: if it is not there, which means the installation is incomplete.
    """
    if not path.exists():
        raise InputError(f"the model zoo lacks {path.name} ({path}); reinstall bitwright")
    return path
