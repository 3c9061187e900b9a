"""Build a tiny random model of a class and find a batch that it runs on, by trying."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bitwright.models.calling import call_module
from bitwright.models.record import flat_tensors
from tests.architectures.batches import Batch, Trials
from tests.architectures.mappings import Entry
from tests.architectures.others import BUILDERS
from tests.architectures.shrinking import STRATEGIES, Strategy, tiny_config

MAX_PARAMETERS = 16_000_000
_USUAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0}


class NotBuilt(Exception):
    """No strategy gave a model that runs; the message is the last reason."""


@dataclass(frozen=True)
class Built:
    """A model in evaluation mode, a batch that it runs on, and how it was made."""

    module: nn.Module
    batch: Batch
    strategy: Strategy


def build(entry: Entry, seed: int = 0) -> Built:
    """The first strategy whose model is small enough, can be built and runs on a batch to a finite output.

    Raises:
        NotBuilt: with the reasons of the last strategy.
    """
    if entry.key in BUILDERS:
        return _other(entry, seed)
    config_class, model_class = entry.classes()
    reasons: list[str] = []
    names = set(getattr(config_class, "__dataclass_fields__", ()))
    fixed: dict[str, Any] = {"is_decoder": True} if entry.mapping == "causal" and "is_decoder" in names else {}
    sections: dict[tuple[int, ...], int] = {}
    waiting = list(reversed(STRATEGIES))
    for _ in range(4 * len(STRATEGIES)):
        if not waiting:
            break
        strategy = waiting.pop()
        try:
            with quiet():
                module = _module(model_class, config_class, strategy, seed, fixed, sections)
        except Exception as error:
            demanded = demands(str(error))
            reasons.append(_said("building", error))
            if demanded.items() <= fixed.items():
                continue
            fixed.update(demanded)
            waiting.append(strategy)
            continue
        trials = Trials(module, seed)
        for batch in trials:
            try:
                with quiet(), torch.no_grad():
                    output = call_module(module, batch)
            except Exception as error:
                reasons.append(_said("running", error))
                trials.said(str(error))
                parted = _parted(str(error))
                if parted is not None and parted[0] not in sections:
                    sections[parted[0]] = parted[1]
                    waiting.append(strategy)
                    break
                continue
            if all(bool(torch.isfinite(t).all()) for t in flat_tensors(output) if t.is_floating_point()):
                return Built(module, batch, strategy)
            reasons.append("its output is not finite")
    first = reasons[0] if reasons else "no batch is known for what it reads"
    last = reasons[-1] if reasons else first
    raise NotBuilt(first if first == last else f"{first}; at last {last}")


def _other(entry: Entry, seed: int) -> Built:
    """A network that is no class of transformers.

    Raises:
        NotBuilt: when it cannot be built, or does not run.
    """
    try:
        with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            module, batch = BUILDERS[entry.key]()
            call_module(randomised(module), batch)
    except Exception as error:
        raise NotBuilt(_said("building", error)) from error
    return Built(module, batch, STRATEGIES[0])


def demands(message: str) -> dict[str, Any]:
    """What a config's own check demands of a field, by the words in which such checks are written.

    ``*.name`` is meant wherever the field is.
    """
    number = r"`?([\w.]+)`? \(\d+\) must %s `?[\w.]+`? \((\d+)\)"
    found = re.search(r"(\w+) must be (\d+), got", message) or re.search(r"requires (\w+)=(\d+)", message)
    found = found or re.search(number % "(?:match|be divisible by|equal)", message)
    found = found or re.search(r"`([\w.]+)` must be a multiple of [^(]*\((\d+)\)", message)
    smaller = re.search(number % "be smaller than", message)
    if found is None and smaller is None:
        return {}
    name, value = (found[1], int(found[2])) if found is not None else (smaller[1], int(smaller[2]) // 2)
    return {name if "." in name else f"*.{name}": value}


def _parted(message: str) -> tuple[tuple[int, ...], int] | None:
    """Sections that a model parts the channels of a head into, and what they have to sum up to."""
    found = re.search(r"sum exactly to (\d+) .*got split_sizes=\[([\d, ]+)\]", message)
    if found is None:
        return None
    sizes = tuple(int(size) for size in found[2].split(","))
    half = sizes[: len(sizes) // 2]
    return (half, int(found[1]) // 2) if half + half == sizes else (sizes, int(found[1]))


def _resized(config: Any, sections: dict[tuple[int, ...], int]) -> None:
    """Exchange lists of sections in every part of a config by ones in proportion that have the right sum.

    Where a config leaves them to the model they are written down beside what else is said of rotary embeddings.
    """
    for sizes in sections:
        for part in _parts(config):
            table = vars(part).get("rope_parameters")
            if isinstance(table, dict):
                table.setdefault("mrope_section", list(sizes))
    for part in _parts(config):
        for value in vars(part).values():
            for table in (value, *value.values()) if isinstance(value, dict) else ():
                for name, item in table.items() if isinstance(table, dict) else ():
                    if isinstance(item, list) and tuple(item) in sections:
                        wanted = sections[tuple(item)]
                        small = [max(1, size * wanted // sum(item)) for size in item]
                        table[name] = [*small[:-1], wanted - sum(small[:-1])]


def _module(
    model_class: Any, config_class: type, strategy: Strategy, seed: int, fixed: dict[str, Any],
    sections: dict[tuple[int, ...], int],
) -> nn.Module:  # fmt: skip
    config = tiny_config(config_class, strategy, **fixed)
    _resized(config, sections)
    failure: Exception | None = None
    for part in _candidates(model_class, config):
        try:
            count = _parameters(model_class, part)
            if count > MAX_PARAMETERS:
                raise ValueError(f"{count:,} parameters although its config was shrunk")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                part.dtype = torch.float32
                return randomised(_constructed(model_class, part).float())
        except Exception as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _candidates(model_class: Any, config: Any) -> list[Any]:
    """The config, or the part of it that a text model listed under the config of the whole takes."""
    own = getattr(model_class, "config_class", None)
    parts = _parts(config)
    exact = [part for part in parts if own is not None and type(part) is own]
    text: list[Any] = []
    with contextlib.suppress(ValueError):  # several parts may be the text's
        text = [config.get_text_config()] if hasattr(config, "get_text_config") else []
    found = [*exact, config, *text, *parts] if exact else [*text, *parts]
    return [part for i, part in enumerate(found) if all(part is not other for other in found[:i])][:4]


def _constructed(model_class: Any, config: Any, tries: int = 3) -> nn.Module:
    """The model; an attribute that a part of the config lacks is taken from another part, or is the usual one."""
    for _ in range(tries):
        try:
            module: nn.Module = model_class(config)
        except AttributeError as error:
            missing = re.search(r"'(\w+Config)' object has no attribute '(\w+)'", str(error))
            if missing is None:
                raise
            for part in _parts(config):
                if type(part).__name__ == missing[1]:
                    setattr(part, missing[2], vars(config).get(missing[2], _USUAL.get(missing[2])))
        else:
            return module
    return model_class(config)  # type: ignore[no-any-return]


def _parts(config: Any) -> list[Any]:
    inner = [value for value in vars(config).values() if hasattr(value, "sub_configs")]
    return [config, *(part for value in inner for part in _parts(value))]


def _parameters(model_class: Any, config: Any) -> int:
    """Parameters of the model, counted without memory (0 where that is not possible)."""
    with contextlib.suppress(Exception), torch.device("meta"):
        return sum(p.numel() for p in model_class(config).parameters())
    return 0


def randomised(module: nn.Module) -> nn.Module:
    """Give every parameter a value that matters: wide weights, uneven gains, biases that are not zero.

    Three-dimensional parameters outside convolutions hold a matrix per expert.
    """
    kernels = {id(m.weight) for m in module.modules() if hasattr(m, "kernel_size") and hasattr(m, "weight")}
    done: set[int] = set()
    for name, parameter in module.named_parameters():
        if id(parameter) in done:
            continue
        done.add(id(parameter))
        if parameter.dim() >= 2:
            inside = parameter[0].numel() if id(parameter) in kernels or parameter.dim() == 2 else parameter.shape[-1]
            nn.init.normal_(parameter, std=max(1, inside) ** -0.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
        elif parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return module.eval().requires_grad_(False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Odd sizes make libraries warn; here they are meant."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _said(doing: str, error: BaseException) -> str:
    return f"{doing}: {type(error).__name__}: {' '.join(str(error).split())[:240]}"
