"""The output folder: one shard per unit, untouched tensors byte for byte, an index, the manifest in config.json."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import QuantizedTensor, parse
from bitwright.jobs.journal import NAME as JOURNAL_NAME
from bitwright.jobs.journal import Entry, file_digest
from bitwright.jobs.result import ModuleResult, UnitResult
from bitwright.jobs.stored import all_finite, parameter_dtype, stored_dtype, usual_dtype
from bitwright.jobs.units import Unit
from bitwright.models import Checkpoint, Model, Structure
from bitwright.models.checkpoint import TORCH_DTYPES
from bitwright.models.experts import FusedWeight
from bitwright.models.writer import (
    RawTensor,
    TensorLayout,
    layout_of,
    sync_folder,
    tensor_bytes,
    write_index,
    write_safetensors,
    write_text,
)
from bitwright.runtime.online import online_entries, online_operations

MANIFEST_VERSION = 1
REQUEST_NAME = "job.json"
_WORKING_FILES = (JOURNAL_NAME, REQUEST_NAME)


class Output:
    """Writes the units of one job into its working folder.

    Every tensor of the source is written exactly once: coded, changed by a stage, or copied byte for byte.
    """

    def __init__(
        self, folder: Path, model: Model, structure: Structure, units: Sequence[Unit], untied: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.untied = tuple(untied)
        self.model = model
        self.units = units
        # Parameters of the network that are written expert by expert.
        self.stacks = {} if model.checkpoint is not None else {fused.path: fused for fused in model.experts}
        # Taken now: modules of a model in memory are replaced as the job proceeds.
        self._state: dict[str, Tensor] = {} if model.checkpoint is not None else dict(model.module.state_dict())
        self._layouts = self._source()
        self.assigned = self._assign(structure)
        self.weight_map: dict[str, str] = {}
        self.total_bytes = 0

    def _source(self) -> Mapping[str, TensorLayout]:
        checkpoint = self.model.checkpoint
        if checkpoint is not None:
            return {k: TensorLayout(i.dtype, i.shape) for k, i in checkpoint.tensors.items()}
        return {k: layout_of(v) for k, v in self._state.items()}

    def _assign(self, structure: Structure) -> dict[str, int]:
        """Source key to unit index."""
        owners: dict[str, int] = {}
        for unit in self.units:
            for path in unit.paths:
                owners[path] = unit.index
        last = self.units[-1].index
        found = {}
        for key in self._layouts:
            name = self._parameter(key) or key
            parts = name.split(".")
            prefixes = [".".join(parts[:n]) for n in range(len(parts) - 1, -1, -1)]
            found[key] = next((owners[p] for p in prefixes if p in owners), last)
        return found

    def _parameter(self, key: str) -> str | None:
        names = self.model.names
        return names.parameter(key) if names is not None else key

    def file_name(self, unit: Unit) -> str:
        """Shard of a unit."""
        return f"model-{unit.index + 1:05d}-of-{len(self.units):05d}.safetensors"

    def write(self, unit: Unit, result: UnitResult) -> Entry:
        """Write a unit's shard atomically and return its journal entry."""
        tensors = dict(self._tensors(unit, result))
        path = self.folder / self.file_name(unit)
        write_safetensors(path, tensors, {"format": "pt"})
        facts = {**result_facts(result), "source": self.source_digest(unit)}
        entry = Entry(unit.name, path.name, file_digest(path), facts)
        self._count(path.name, tensors)
        return entry

    def source_digest(self, unit: Unit) -> str:
        """sha256 of the source tensors that belong to a unit (headers alone do not tell two trainings apart)."""
        digest = hashlib.sha256()
        for key in self._layouts:
            if self.assigned[key] == unit.index:
                digest.update(f"{key}\0".encode())
                checkpoint = self.model.checkpoint
                digest.update(checkpoint.raw(key) if checkpoint is not None else tensor_bytes(self._state[key]))
        return digest.hexdigest()

    def unchanged(self, entries: Sequence[Entry]) -> list[Entry]:
        """The leading entries whose source tensors are still what they were made from."""
        good = []
        for unit, entry in zip(self.units, entries, strict=False):
            if entry.facts.get("source") != self.source_digest(unit):
                break
            good.append(entry)
        return good

    def _tensors(self, unit: Unit, result: UnitResult) -> Iterator[tuple[str, Tensor | RawTensor]]:
        coded: dict[str, Tensor] = {}
        for module in result.modules.values():
            coded.update(module.tensors())
        dropped = {f"{p}.weight" for p, m in result.modules.items() if m.weight is not None}
        apart = self._apart(result)
        for key, layout in self._layouts.items():
            if self.assigned[key] != unit.index:
                continue
            name = self._parameter(key) or key
            if name in dropped or name in apart or any(name.startswith(p + ".") for p in result.removed):
                continue
            if name in coded:  # a bias that the source already has keeps its dtype
                value = coded.pop(name)
                if self.model.checkpoint is not None:
                    value = value.to(stored_dtype(self.model.checkpoint, key))
                yield key, value
            elif name in result.changed:
                yield key, result.changed[name]
            else:
                yield key, self._copy(key, layout)
        for name in apart:
            if name not in dropped:
                yield name, result.changed[name] if name in result.changed else self._stored_form(name)
        for name in self.untied:
            if name in result.changed:  # a tensor of its own that the source stores under its twin's name
                yield name, result.changed[name]
        yield from coded.items()

    def _copy(self, key: str, layout: TensorLayout) -> Tensor | RawTensor:
        """A tensor that no stage touches, as it is.

        Raises:
            InputError: if it holds NaN or Inf. Whoever skips the verification has not asked for a broken model.
        """
        checkpoint = self.model.checkpoint
        known = checkpoint is None or checkpoint.tensors[key].dtype in TORCH_DTYPES
        if known and not all_finite(checkpoint.load(key) if checkpoint is not None else self._state[key]):
            source = "the model" if checkpoint is None else str(checkpoint.path)
            raise InputError(f"{source}: tensor {key!r} holds NaN or Inf; download or train the model again")
        return self._state[key] if checkpoint is None else RawTensor(layout, [checkpoint.raw(key)])

    def _apart(self, result: UnitResult) -> dict[str, FusedWeight]:
        """Experts' weights that can no longer be written as the source stores them, with the stack of each.

        Where one expert of a stack is coded or changed, all of its experts are written one by one.
        """
        touched = {f"{path}.weight" for path in result.modules} | set(result.changed)
        found: dict[str, FusedWeight] = {}
        for fused in self.model.experts:
            names = tuple(fused.names())
            if touched.intersection(names):
                self.stacks[fused.path] = fused
                if self.model.checkpoint is not None:
                    found.update(dict.fromkeys(names, fused))
        return found

    def _stored_form(self, name: str) -> Tensor:
        """An expert's float weight in the dtype in which the source stores it."""
        value = self.model.read_parameter(name).detach()
        return value.to(parameter_dtype(self.model, name) or value.dtype).contiguous()

    def _count(self, file: str, tensors: Mapping[str, Tensor | RawTensor]) -> None:
        for name, value in tensors.items():
            self.weight_map[name] = file
            self.total_bytes += value.layout.bytes if isinstance(value, RawTensor) else layout_of(value).bytes

    def restore(self, unit: Unit, entry: Entry) -> UnitResult:
        """Read a finished unit back from its shard."""
        shard = Checkpoint.open(self.folder / entry.file)
        tensors = {name: shard.load(name) for name in shard.tensors}
        for name, info in shard.tensors.items():
            self.weight_map[name] = entry.file
            self.total_bytes += info.bytes
        result = result_from_facts(entry.unit, entry.facts, tensors)
        for name in entry.facts["changed"]:
            key = name if name in self.untied else self.model.checkpoint_key(name) or name
            result.changed[name] = tensors[key].clone()
        self._apart(result)
        return result

    def stacks_manifest(self) -> dict[str, Any]:
        """The part of the manifest that says which parameters of the network are stored expert by expert."""
        if not self.stacks:
            return {}
        return {
            "experts": {
                path: {"experts": fused.experts, "shape": list(fused.shape), "transposed": fused.transposed}
                for path, fused in self.stacks.items()
            }
        }

    def finish(self, manifest: Mapping[str, Any], leave: Collection[str] = ()) -> None:
        """Write index, config with the manifest and tokenizer files; then the folder can be read.

        Files of the source that are named in ``leave`` are not copied: the job writes its own.
        """
        write_index(self.folder, self.weight_map, self.total_bytes)
        config: dict[str, Any] = dict(self.model.checkpoint.config) if self.model.checkpoint is not None else {}
        config["quantization_config"] = {**manifest, **self.stacks_manifest()}
        if self.model.checkpoint is not None and not {"dtype", "torch_dtype"} & set(config):
            # Else a reader takes the first tensor's type, which may be that of a scale.
            config["dtype"] = usual_dtype(self.model.checkpoint)
        if self.untied:
            config["tie_word_embeddings"] = False
        write_text(self.folder / "config.json", json.dumps(config, indent=2) + "\n")
        if self.model.checkpoint is not None:
            for path in self.model.checkpoint.extra_files:
                if path.name not in {"config.json", *leave}:
                    shutil.copyfile(path, self.folder / path.name)


def result_facts(result: UnitResult) -> dict[str, Any]:
    """What a journal line must say of a unit beside its tensors."""
    return {
        "modules": {path: module.manifest() for path, module in result.modules.items()},
        "errors": {path: module.error for path, module in result.modules.items()},
        "changed": sorted(result.changed),
        "removed": list(result.removed),
        "cache_online": {site: online_entries(ops) for site, ops in result.cache_online.items()},
        "tokens": dict(result.tokens),
        "seconds": round(result.seconds, 3),
        "notes": result.notes,
    }


def result_from_facts(unit: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> UnitResult:
    """Rebuild a unit's result from a journal line and the tensors of its shard."""
    result = UnitResult(unit, removed=tuple(facts["removed"]), seconds=facts["seconds"], notes=list(facts["notes"]))
    result.tokens = dict(facts.get("tokens", {}))
    result.cache_online = {site: online_operations(ops) for site, ops in facts["cache_online"].items()}
    for path, entry in facts["modules"].items():
        prefix = f"{path}.weight_"
        own = {n.removeprefix(prefix): t.clone() for n, t in tensors.items() if n.startswith(prefix)}
        weight = QuantizedTensor.from_tensors(own, entry["weight"]) if entry["weight"] is not None else None
        bias = next((t for n, t in tensors.items() if n == f"{path}.bias" or n.endswith(f".{path}.bias")), None)
        module = ModuleResult(path, entry["kind"], entry["transposed"], weight, bias if entry["bias"] else None)
        if entry["input"] is not None:
            module.input_format = parse(entry["input"]["format"])
            module.input_scale = tensors.get(f"{path}.input_scale")
            module.input_zero = tensors.get(f"{path}.input_zero")
        module.online = online_operations(entry["online"])
        module.error = facts["errors"][path]
        result.modules[path] = module
    return result


def working_folder(out: Path) -> Path:
    """Where a job works until one rename makes ``out``."""
    return out.with_name(out.name + ".partial")


def prepare_folder(out: Path) -> Path:
    """Create the working folder beside ``out``.

    Raises:
        InputError: if ``out`` exists or the place cannot be written.
    """
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out or remove it")
    work = working_folder(out)
    try:
        work.mkdir(parents=True, exist_ok=True)
        probe = work / ".write-test"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise InputError(f"{work} cannot be written ({error.strerror}); choose another --out") from error
    return work


def publish(work: Path, out: Path) -> None:
    """One rename makes the result; working files are removed first, the journal last: until then a job resumes."""
    for path in sorted(work.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name.endswith((".partial", ".new", ".lock")):
            path.unlink()
    for name in reversed(_WORKING_FILES):
        (work / name).unlink(missing_ok=True)
    os.replace(work, out)
    sync_folder(out.parent)
