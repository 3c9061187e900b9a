"""Load native checkpoints into models that run on packed weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.models.checkpoint import Checkpoint
from bitwright.models.limits import check_config
from bitwright.models.model import no_progress_bar
from bitwright.runtime.dispatch import Table
from bitwright.runtime.install import install
from bitwright.runtime.kernels.table import TABLE
from bitwright.runtime.manifest import Manifest, read_manifest
from bitwright.runtime.module import QuantModule


def read_native(folder: str | Path) -> tuple[Manifest, Checkpoint]:
    """Open a native checkpoint: its checked manifest and its tensors (mapped, not read).

    Raises:
        InputError: if the folder is damaged or was not written by bitwright.
    """
    checkpoint = Checkpoint.open(folder)
    raw = checkpoint.config.get("quantization_config")
    if not isinstance(raw, Mapping):
        raise InputError(f"{checkpoint.path}: has no quantization_config; quantize it, or open it as a float model")
    return read_manifest(raw), checkpoint


def load(
    folder: str | Path,
    module: nn.Module | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    cache_weights: bool = False,
    exact: bool = True,
    table: Table = TABLE,
) -> nn.Module:
    """Load a native checkpoint in evaluation mode.

    Args:
        folder: a transformers folder with a bitwright manifest, or one that was written for a plain module.
        module: the float network of a plain checkpoint, with any weights; it is copied and stays as it is.
        dtype: dtype of what is not packed, and of the results.
        cache_weights: keep one dequantized copy per weight: fast evaluation of small models.
        exact: activations are multiplied as they are; ``False`` lets kernels round them to 8 bits where the recipe
            leaves them float, which is faster.
        table: kernels to choose from.

    Raises:
        InputError: if the folder is damaged, is not native, or does not fit the network.
    """
    manifest, checkpoint = read_native(folder)
    if module is not None:
        model = _load_plain(copy.deepcopy(module), manifest, checkpoint, dtype)
    else:
        model = _load_transformers(checkpoint, dtype)
    return configure(model, cache_weights=cache_weights, exact=exact, table=table)


def configure(model: nn.Module, *, cache_weights: bool = False, exact: bool = True, table: Table = TABLE) -> nn.Module:
    """Set how all quantized modules of a model run; see :class:`bitwright.runtime.module.Options`."""
    for module in model.modules():
        if isinstance(module, QuantModule):
            module.cache_weights, module.exact, module.table = cache_weights, exact, table
            module.forget_prepared()
    return model


def keep_slow_weights(model: nn.Module) -> nn.Module:
    """Let modules keep a dequantized copy where, for want of a kernel, every call would dequantize the weight."""
    coded = (m for m in model.modules() if isinstance(m, QuantModule) and m.weight_meta is not None)
    for module in coded:
        if module.op != "embedding" and module.served(module.dtype, rows=1).kernel.name == f"{module.op}/reference":
            module.cache_weights = True
            module.forget_prepared()
    return model


def _load_transformers(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise InputError("loading a model folder needs transformers; install bitwright[hf]") from error
    from bitwright.runtime.hf import register

    register()
    check_config(checkpoint)
    kind: Any = transformers.AutoModel
    for name in checkpoint.config.get("architectures") or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            kind = found
            break
    if "model_type" not in checkpoint.config:
        raise InputError(f"{checkpoint.path}: was written for a plain module; give that module to load(folder, module)")
    try:
        with no_progress_bar():
            model, info = kind.from_pretrained(
                str(checkpoint.path),
                dtype=dtype,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except InputError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{checkpoint.path}: cannot be loaded ({lines[0][:300]}); check the folder") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(f"{checkpoint.path}: has no tensor for {missing[0]} ({len(missing)} such); quantize again")
    loaded: nn.Module = model.eval()
    return loaded


def _load_plain(
    module: nn.Module,
    manifest: Manifest,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
) -> nn.Module:
    tensors = {name: checkpoint.load(name).clone() for name in checkpoint.tensors}
    install(module, manifest, tensors)
    packed = _packed_names(module)
    wanted = module.state_dict(keep_vars=True)
    found: dict[str, Tensor] = {}
    for name in wanted:
        if name in tensors:
            value = tensors[name]
            found[name] = value.to(dtype) if value.is_floating_point() and name not in packed else value
    found.update(_shared(wanted, found))
    missing = [name for name in wanted if name not in found]
    if missing:
        raise InputError(f"{checkpoint.path}: has no tensor for {missing[0]} ({len(missing)} such); quantize again")
    for name, value in found.items():
        if wanted[name].shape != value.shape:
            raise InputError(
                f"{checkpoint.path}: {name} is {tuple(value.shape)}, the network has {tuple(wanted[name].shape)}; "
                "give the network that was quantized"
            )
    module.load_state_dict(found, strict=False, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.to(dtype).eval()


def _packed_names(module: nn.Module) -> set[str]:
    names: set[str] = set()
    for path, item in module.named_modules():
        if isinstance(item, QuantModule):
            names.update(f"{path}.{name}" for name, _ in item.named_buffers())
    return names


def _shared(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values for tied names that the checkpoint stores once, under another name."""
    owners = {id(wanted[name]): name for name in found}
    shared: dict[str, Tensor] = {}
    for name, value in wanted.items():
        if name not in found and id(value) in owners:
            shared[name] = found[owners[id(value)]]
    return shared
