"""Opens any model for running: a float folder, a native checkpoint, or an embedded one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bitwright.errors import InputError
from bitwright.jobs.request import model_source
from bitwright.models import Checkpoint, open_model
from bitwright.models.checkpoint import inside, read_json
from bitwright.models.model import load_tokenizer
from bitwright.runtime.load import keep_slow_weights, load
from bitwright.zoo import load_digits_model


@dataclass(frozen=True)
class RunnableModel:
    """A module in evaluation mode with its tokenizer's folder and, for native checkpoints, their manifest."""

    name: str
    module: nn.Module
    folder: Path | None
    manifest: Mapping[str, Any] | None

    @property
    def cache_factory(self) -> Callable[[], Any] | None:
        """Makes the quantized key-value cache that the checkpoint asks for."""
        return getattr(self.module, "bitwright_cache_factory", None)

    def tokenizer(self) -> Any:
        """The tokenizer beside the weights.

        Raises:
            InputError: if there is none.
        """
        if self.folder is None:
            raise InputError(f"{self.name} has no tokenizer")
        return load_tokenizer(Checkpoint.open(self.folder))

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored tensors (of the module where there is no folder)."""
        if self.folder is not None:
            return sum(p.stat().st_size for p in self.folder.glob("*.safetensors"))
        return sum(t.nbytes for t in self.module.state_dict().values())

    @property
    def stored_bits_per_parameter(self) -> float:
        """Bits of the stored tensors over all parameters (a tied one counts once)."""
        if self.folder is not None:
            tensors = Checkpoint.open(self.folder).tensors.values()
            stored = sum(info.bytes for info in tensors)
        else:
            stored = self.stored_bytes
        return 8.0 * stored / max(1, sum(p.numel() for p in self.module.parameters()))

    @property
    def bits_per_weight(self) -> float | None:
        """Stored bits over weights of the coded matrices; ``None`` for a float model."""
        from bitwright.runtime import QuantModule

        bits = weights = 0
        for module in self.module.modules():
            if isinstance(module, QuantModule) and (quantized := module.quantized()) is not None:
                bits += quantized.storage_bits()
                weights += quantized.shape[0] * quantized.shape[1]
        return bits / weights if weights else None


def open_decoding(name: str, *, exact: bool = False) -> RunnableModel:
    """Open a model to draw text from: packed weights wherever a kernel reads them as they are.

    Args:
        name: folder or embedded name.
        exact: activations are multiplied as they are; otherwise kernels may round them to 8 bits.

    Raises:
        InputError: if the folder is missing or damaged.
    """
    opened = open_runnable(name, cache_weights=False, exact=exact)
    keep_slow_weights(opened.module)
    return opened


def open_runnable(name: str, cache_weights: bool = True, exact: bool = True) -> RunnableModel:
    """Open a model by folder or embedded name; quantized ones run on their packed weights.

    Raises:
        InputError: if the folder is missing or damaged.
    """
    source = model_source(name)
    if isinstance(source, nn.Module):
        return RunnableModel(name, source.eval(), None, None)
    folder = Path(source)
    manifest = _manifest(folder)
    if manifest is None:
        return RunnableModel(name, open_model(folder).module, folder, None)
    plain = not read_json(inside(folder, "config.json")).get("architectures")
    module = load(folder, load_digits_model() if plain else None, cache_weights=cache_weights, exact=exact)
    return RunnableModel(name, module, folder, manifest)


def _manifest(folder: Path) -> Mapping[str, Any] | None:
    if not (folder / "config.json").is_file():
        return None
    found = read_json(inside(folder, "config.json")).get("quantization_config")
    return found if isinstance(found, dict) and found.get("quant_method") == "bitwright" else None
