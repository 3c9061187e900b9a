"""What a user asks for, in words; turned into a job."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from bitwright.data import calibration
from bitwright.data.images import zoo_digits
from bitwright.errors import InputError, nearest_key
from bitwright.events import Events
from bitwright.formats import parse
from bitwright.jobs.opening import Calibration, Job
from bitwright.models import Checkpoint
from bitwright.models.rules import NO_RULES, read_rules
from bitwright.recipes import Recipe, load_recipe, recipe_info
from bitwright.recipes.registry import combine, with_weight_format
from bitwright.zoo import lm_path, load_digits_model

EMBEDDED = ("zoo", "zoo:digits")
ID_FILES = (".safetensors", ".npz")


@dataclass(frozen=True)
class Request:
    """A quantization as asked for on the command line; JSON round trip.

    ``model`` is a folder or one of the embedded models (``zoo``, ``zoo:digits``). ``settings`` are ``key=value`` pairs:
    parameters of the recipe, or slots that take another recipe's stages. ``data`` is a text file, a jsonl file, stored
    token ids, ``zoo`` (text of the installed Python packages) or ``none``; by default ``zoo`` where the recipe reads
    activations. ``rules`` is the path of a rule file (:mod:`bitwright.models.rules`).
    """

    model: str
    recipe: str = "gptq"
    settings: tuple[tuple[str, str], ...] = ()
    weights: str = ""
    data: str = ""
    sequences: int = 0
    length: int = 0
    out: str = ""
    seed: int = 0
    max_memory: int = 0
    strict: bool = False
    batch_size: int = 8
    rules: str = ""
    engine: str = ""
    parallel: int = 1

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: for unknown keys, or what is no request.
        """
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the request is no JSON ({error}); remove the folder and start the job anew") from error
        if not isinstance(found, dict):
            raise InputError("the request is no JSON object; remove the folder and start the job anew")
        valid = {f.name for f in dataclasses.fields(cls)}
        for key in found:
            if key not in valid:
                raise InputError(f"a request has no key {key!r}; {nearest_key(key, valid)}")
        try:
            found["settings"] = tuple((str(k), str(v)) for k, v in found.get("settings", ()))
            return TypeAdapter(cls).validate_python(found)
        except (TypeError, ValueError) as error:
            raise InputError("the request has a value of the wrong type; remove the folder and start anew") from error


def parse_settings(pairs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """``["transforms=quarot", "damping=0.02"]`` as pairs.

    Raises:
        InputError: if an entry has no ``=``.
    """
    found = []
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key or not value:
            raise InputError(f"--set takes key=value, not {pair!r}; e.g. --set transforms=quarot or --set damping=0.02")
        found.append((key.strip(), value.strip()))
    return tuple(found)


def build_recipe(name: str, settings: Sequence[tuple[str, str]] = (), weights: str = "") -> Recipe:
    """The recipe with its parameters, slots taken from other recipes, and another weight format.

    Raises:
        InputError: for unknown recipes, parameters, slots or formats.
    """
    info = recipe_info(name)
    slots = {f.name for f in dataclasses.fields(Recipe)} - {"name"}
    # A word may be a parameter and a slot ("weights"); a parameter wins, since the recipe's author named it.
    arguments = {k: v for k, v in settings if k in info.parameters}
    taken = {k: v for k, v in settings if k not in info.parameters}
    for key in taken:
        if key not in slots:
            raise InputError(
                f"recipe {name!r} has no parameter or slot {key!r}; {nearest_key(key, {*info.parameters, *slots})}"
            )
    if weights and "weights" in info.parameters:
        arguments["weights"] = weights
        weights = ""
    recipe = combine(load_recipe(name, arguments), taken) if taken else load_recipe(name, arguments)
    return with_weight_format(recipe, parse(weights)) if weights else recipe


def model_source(name: str) -> str | Path | nn.Module:
    """A folder, or the embedded model of that name."""
    if name == "zoo":
        return lm_path()
    if name == "zoo:digits":
        return load_digits_model()
    if not Path(name).exists():
        raise InputError(
            f"{name}: no such folder; give a folder with config.json and safetensors, or one of {EMBEDDED}"
        )
    return Path(name)


def calibration_data(request: Request, recipe: Recipe, events: Events) -> Calibration:
    """The data that the request names, in the amount that it or the recipe asks for.

    Raises:
        InputError: if the text is empty or too short.
    """
    if request.data == "none":
        return None
    sequences = request.sequences or recipe.data.sequences
    if request.model == "zoo:digits":
        return zoo_digits("train").first(sequences).for_module(load_digits_model())
    source = request.data or "zoo"
    folder = lm_path() if request.model == "zoo" else Path(request.model)
    length = min(request.length or recipe.data.length, context_length(folder))
    tokenizer = None if Path(source).suffix in ID_FILES else _tokenizer(folder)
    data = calibration(tokenizer, source, sequences, length, seed=request.seed, events=events)
    config = Checkpoint.open(folder).config
    inner = config.get("text_config")
    vocabulary = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    if isinstance(vocabulary, int):
        data.check_vocabulary(vocabulary)
    return data


def context_length(folder: Path) -> int:
    """Longest sequence that the model's config allows (a large number where it does not say)."""
    config = Checkpoint.open(folder).config
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return 1 << 30


def _tokenizer(folder: Path) -> Any:
    from bitwright.models import open_model

    return open_model(folder, stream=True).tokenizer()


def build_job(request: Request, reads_data: bool | None = None) -> Job:
    """The job of a request; data are read only for recipes that use them.

    Raises:
        InputError: for anything wrong in the request.
    """
    recipe = build_recipe(request.recipe, request.settings, request.weights)
    source = model_source(request.model)
    wanted = recipe_reads_data(recipe) if reads_data is None else reads_data
    events = Events(request.strict)
    data = calibration_data(request, recipe, events) if wanted else None
    if data is None and isinstance(source, nn.Module):
        data = zoo_digits("train").first(8).for_module(source)
    return Job(
        model=source,
        recipe=recipe,
        data=data,
        out=Path(request.out) if request.out else None,
        seed=request.seed,
        strict=request.strict,
        max_memory=request.max_memory or None,
        batch_size=request.batch_size,
        rules=read_rules(request.rules) if request.rules else NO_RULES,
        engine=request.engine,
        parallel=request.parallel,
        request=request.to_json(),
        events=tuple(events.entries),
    )


def recipe_reads_data(recipe: Recipe) -> bool:
    """Whether any slot of a recipe reads activations."""
    if recipe.learn or recipe.corrections or any(t.scope == "block" for t in recipe.transforms):
        return True
    for rule in (*recipe.weights, *recipe.activations):
        if rule.quantizer is None:
            continue
        if rule.quantizer.needs or (rule in recipe.activations and rule.quantizer.format.time == "static"):
            return True
    return False


def default_out(request: Request) -> Path:
    """A name for the output folder: model, recipe, format."""
    stem = Path(request.model).name.replace(":", "-")
    parts = [stem, request.recipe, *(f"{k}-{v}" for k, v in request.settings), request.weights]
    name = "-".join(p for p in parts if p)
    return Path("".join(c if c.isalnum() or c in "-_." else "-" for c in name))
