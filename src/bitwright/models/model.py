"""Open a model: a checkpoint folder (in memory or streamed unit by unit) or any ``nn.Module`` of the caller.

A streamed model is a skeleton whose parameters have shapes but no memory; :meth:`Model.load_unit` fills a submodule
from the checkpoint and :meth:`Model.free_unit` empties it again. For a module in memory both do nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bitwright.errors import InputError
from bitwright.models.checkpoint import Checkpoint
from bitwright.models.hub import local_folder
from bitwright.models.limits import BoundedTables, check_config
from bitwright.models.naming import NameMap, match_names, read_source

if TYPE_CHECKING:
    from bitwright.models.experts import FusedWeight

logger = logging.getLogger(__name__)

# The largest in use have 35 MB.
MAX_TOKENIZER_BYTES = 128 * 2**20
_TEXT_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".spm", ".vocab", ".bpe", ".codes", ".tiktoken"})


KEPT_BYTES = 64 * 2**20


@dataclass
class Model:
    """A module, the checkpoint behind it (if any), the map between their names, and the fused experts it has open.

    ``kept_bytes`` bounds the parameters that stay in memory after a use where a streamed model is run unloaded.
    """

    module: nn.Module
    checkpoint: Checkpoint | None = None
    dtype: torch.dtype = torch.float32
    streamed: bool = False
    names: NameMap | None = None
    experts: tuple[FusedWeight, ...] = ()
    kept_bytes: int = KEPT_BYTES
    _uses: Counter[str] = field(default_factory=Counter, repr=False)
    _places: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Checkpoint tensors that no parameter takes (they are copied untouched by writers)."""
        return self.names.unmatched if self.names else ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Parameters that the checkpoint does not give."""
        return self.names.missing if self.names else ()

    def checkpoint_key(self, parameter: str) -> str | None:
        """The checkpoint's name of a parameter (its own name without a checkpoint; None where several make it)."""
        return self.names.key(parameter) if self.names else parameter

    def load_unit(self, path: str) -> None:
        """Fill the parameters and buffers under submodule ``path`` ("" is the whole model) from the checkpoint.

        Calls nest: what was loaded twice must be freed twice. Tied parameters stay one tensor.

        Raises:
            InputError: for an unknown path, or a parameter that the checkpoint does not have.
        """
        if not self.streamed:
            return
        ready: dict[str, torch.Tensor] = {}
        for name in self._parameters_under(path):
            self._uses[name] += 1
            if self._uses[name] == 1:
                self._place(name, nn.Parameter(self._read(name, ready), requires_grad=False))

    def free_unit(self, path: str) -> None:
        """Give the memory of submodule ``path`` back; its parameters keep their shapes only."""
        if not self.streamed:
            return
        for name in self._parameters_under(path):
            if self._uses[name] > 0:
                self._uses[name] -= 1
            if self._uses[name] == 0:
                current = self.module.get_parameter(name)
                if not current.is_meta:
                    self._place(name, nn.Parameter(torch.empty_like(current, device="meta"), requires_grad=False))

    def read_parameter(self, name: str) -> torch.Tensor:
        """The values of one parameter in the compute dtype; the module is not changed."""
        owner = self.names.aliases.get(name, name) if self.names else name
        current = self.module.get_parameter(owner)
        return self._read(owner, {}) if current.is_meta else current

    def read_rows(self, name: str, rows: torch.Tensor) -> torch.Tensor | None:
        """Some rows of an empty table in the compute dtype, [*rows.shape, ...]; None where they are not stored so."""
        key = self.checkpoint_key(name)
        if key is None or self.checkpoint is None:
            return None
        stored = self.checkpoint.load(key)
        return stored[rows].to(self.dtype) if stored.is_floating_point() else None

    @contextmanager
    def unit(self, path: str) -> Iterator[nn.Module]:
        """The submodule ``path``, loaded while the context lasts."""
        self.load_unit(path)
        try:
            yield self.module.get_submodule(path)
        finally:
            self.free_unit(path)

    def tokenizer(self) -> Any:
        """The tokenizer that lies beside the weights (no remote code).

        Raises:
            InputError: when the model has no folder, no tokenizer, or an absurdly large one.
        """
        if self.checkpoint is None:
            raise InputError("a module in memory has no tokenizer; give token ids instead of text")
        return load_tokenizer(self.checkpoint)

    def _parameters_under(self, path: str) -> list[str]:
        """Owning names of the distinct parameters under ``path``."""
        try:
            unit = self.module.get_submodule(path)
        except AttributeError as error:
            raise InputError(f"the model has no submodule {path!r}; check the name") from error
        prefix = f"{path}." if path else ""
        owners = self.names.aliases if self.names else {}
        found = {owners.get(prefix + name, prefix + name): None for name, _ in unit.named_parameters()}
        return list(found)

    def _read(self, name: str, ready: dict[str, torch.Tensor]) -> torch.Tensor:
        assert self.names is not None
        assert self.checkpoint is not None
        if name in ready:
            return ready.pop(name)
        owner = next((place for place in self._places.get(name, (name,)) if place in self.names.sources), None)
        if owner is None:
            raise InputError(f"{self.checkpoint.path}: has no tensor for the parameter {name!r}; download it again")
        source = self.names.sources[owner]
        for target, value in read_source(source, self.checkpoint.load, self.module).items():
            # The map of the file is read-only in spirit: a parameter always owns its memory.
            ready[target or owner] = value.to(self.dtype, copy=True) if value.is_floating_point() else value.clone()
        return ready.pop(owner)

    def _place(self, name: str, parameter: nn.Parameter) -> None:
        for place in self._places.get(name, (name,)):
            parent, _, leaf = place.rpartition(".")
            setattr(self.module.get_submodule(parent), leaf, parameter)


def open_model(source: str | Path | nn.Module, dtype: torch.dtype = torch.float32, stream: bool = False) -> Model:
    """Open ``source`` in evaluation mode.

    Args:
        source: a folder with config.json and safetensors, a name on the hub (``owner/model``, downloaded where it is
            not in the local cache), or a module (used as it is, in its own dtype).
        dtype: compute dtype of the parameters.
        stream: build a skeleton without memory; fill it by :meth:`Model.load_unit`.

    Raises:
        InputError: when the folder is wrong, its architecture is unknown, or needs remote code.
    """
    if isinstance(source, nn.Module):
        return Model(source.eval(), dtype=dtype)
    checkpoint = Checkpoint.open(local_folder(source))
    _check_config(checkpoint, stream)
    kind, config = _model_class(checkpoint)
    module = _skeleton(kind, config, dtype, checkpoint)
    if not stream:
        names = match_names(module, {name: info.shape for name, info in checkpoint.tensors.items()})
        module = _loaded(kind, checkpoint, dtype)
        return Model(module, checkpoint, dtype, False, names)
    return streamed_model(module, checkpoint, dtype)


def skeleton_of(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network that a folder's config describes, with empty parameters.

    Raises:
        InputError: when the architecture is unknown or needs remote code.
    """
    check_config(checkpoint)
    kind, config = _model_class(checkpoint)
    if hasattr(config, "quantization_config"):  # what fills the network decides, not the library's own quantizers
        del config.quantization_config
    return _skeleton(kind, config, dtype, checkpoint)


def streamed_model(module: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Model:
    """A skeleton with the folder that its empty parameters are read from."""
    names = match_names(module, {name: info.shape for name, info in checkpoint.tensors.items()})
    _untie_different(module, checkpoint, names)
    names = match_names(module, {name: info.shape for name, info in checkpoint.tensors.items()})
    places: dict[str, tuple[str, ...]] = {}
    for alias, owner in names.aliases.items():
        places[owner] = (*places.get(owner, (owner,)), alias)
    model = Model(module, checkpoint, dtype, True, names, _places=places)
    _load_buffers(model)
    if names.unmatched:
        logger.info("%d tensors of the checkpoint feed no parameter, e.g. %s", len(names.unmatched), names.unmatched[0])
    return model


def _check_config(checkpoint: Checkpoint, stream: bool) -> None:
    """Refuse sizes that no stored tensor can back, before a skeleton of them is built; also quantized weights."""
    if not checkpoint.config:
        raise InputError(
            f"{checkpoint.path}: has no config.json, so the network is unknown; build the nn.Module and give that"
        )
    quantized = checkpoint.config.get("quantization_config")
    if stream and isinstance(quantized, dict):
        raise InputError(
            f"{checkpoint.path}: is already quantized ({quantized.get('quant_method', 'unknown method')}); give the "
            "float model that it was made from"
        )
    check_config(checkpoint)


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer in a checkpoint's folder (no remote code).

    Raises:
        InputError: when there is none, or a file that it may read is absurdly large.
    """
    folder = checkpoint.path
    for item in checkpoint.extra_files:
        if item.suffix in _TEXT_SUFFIXES and item.stat().st_size > MAX_TOKENIZER_BYTES:
            raise InputError(f"{item}: is larger than {MAX_TOKENIZER_BYTES} bytes; no tokenizer is, check the file")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizer's Rust code is no Exception
        reason = _first_line(error)
        raise InputError(f"{folder}: its tokenizer cannot be loaded ({reason}); give token ids") from error


def _model_class(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """The model class that config.json names, and the config object."""
    try:
        import transformers
    except ImportError as error:
        raise InputError("opening a model folder needs transformers; install bitwright[hf]") from error
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(checkpoint.path), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise InputError(
            f"{checkpoint.path}: its config is not one that the installed transformers can build without remote code "
            f"({_first_line(error)}); update transformers, or build the nn.Module and give that"
        ) from error
    for name in checkpoint.config.get("architectures") or ():
        kind = getattr(transformers, str(name), None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            return kind, config
    return transformers.AutoModel, config


def _skeleton(kind: Any, config: Any, dtype: torch.dtype, checkpoint: Checkpoint) -> nn.Module:
    """The module with empty parameters; its buffers (rotary frequencies, masks) are computed as usual."""
    from accelerate import init_empty_weights

    build = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    try:
        with BoundedTables(), init_empty_weights(include_buffers=False):
            module: nn.Module = build(config, dtype=dtype)
    except InputError as error:
        raise InputError(f"{checkpoint.path}: {error}") from error
    except Exception as error:
        raise InputError(
            f"{checkpoint.path}: its config cannot be built ({_first_line(error)}); check config.json"
        ) from error
    tie = getattr(module, "tie_weights", None)
    if callable(tie):
        tie()  # emptying made every parameter its own object
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def _loaded(kind: Any, checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    try:
        with no_progress_bar():
            module: nn.Module = kind.from_pretrained(
                str(checkpoint.path), dtype=dtype, trust_remote_code=False, local_files_only=True, use_safetensors=True
            )
    except Exception as error:
        raise InputError(f"{checkpoint.path}: cannot be loaded ({_first_line(error)}); check the folder") from error
    return module.eval()


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """The caller has its own; the library's setting is put back."""
    from transformers.utils import logging as library

    before = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            library.enable_progress_bar()


def _untie_different(module: nn.Module, checkpoint: Checkpoint, names: NameMap) -> None:
    """Separate parameters that the config ties while the checkpoint stores different values for them."""
    for alias, owner in names.aliases.items():
        first, second = names.sources.get(owner), names.sources.get(alias)
        if first is None or second is None or first.keys == second.keys:
            continue
        if checkpoint.raw(first.keys[0]) != checkpoint.raw(second.keys[0]):
            parent, _, leaf = alias.rpartition(".")
            tied = module.get_parameter(alias)
            setattr(module.get_submodule(parent), leaf, nn.Parameter(torch.empty_like(tied), requires_grad=False))


def _load_buffers(model: Model) -> None:
    """Fill persistent buffers (BatchNorm statistics); they are small and stay."""
    assert model.names is not None
    assert model.checkpoint is not None
    for name, buffer in model.module.named_buffers():
        source = model.names.sources.get(name)
        if source is not None and source.plain:
            value = model.checkpoint.load(source.keys[0])
            parent, _, leaf = name.rpartition(".")
            setattr(model.module.get_submodule(parent), leaf, value.to(buffer.dtype, copy=True))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
