"""Finds recipes by file name, imports only the one that is asked for."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from bitwright.errors import InputError, nearest_key
from bitwright.formats import Format, parse
from bitwright.recipes.base import Recipe, RecipeInfo


def _files() -> dict[str, str]:
    root = Path(__file__).parent
    found = {}
    for path in sorted(root.glob("*/*.py")):
        if not path.name.startswith("_"):
            found[path.stem.replace("_", "-")] = f"bitwright.recipes.{path.parent.name}.{path.stem}"
    return found


def recipe_info(name: str) -> RecipeInfo:
    """Return the recipe called ``name``.

    Raises:
        InputError: if there is none; the nearest name is given.
    """
    files = _files()
    if name not in files:
        raise InputError(f"unknown recipe {name!r}; {nearest_key(name, files)}")
    module = importlib.import_module(files[name])
    infos = [v for v in vars(module).values() if isinstance(v, RecipeInfo) and v.name == name]
    if len(infos) != 1:
        raise TypeError(f"{files[name]} must define exactly one recipe named {name!r}")
    return infos[0]


def all_recipes() -> tuple[RecipeInfo, ...]:
    """Every recipe, sorted by name."""
    return tuple(recipe_info(name) for name in sorted(_files()))


def load_recipe(name: str, arguments: Mapping[str, object] | None = None) -> Recipe:
    """Build the recipe ``name`` with ``arguments``; text given for a format is parsed.

    Raises:
        InputError: for an unknown recipe, argument or slot.
    """
    info = recipe_info(name)
    values = {}
    types = get_type_hints(info.build)
    for key, value in (arguments or {}).items():
        if key not in info.parameters:
            raise InputError(f"recipe {name!r} has no parameter {key!r}; {nearest_key(key, info.parameters)}")
        values[key] = _coerce(value, info.parameters[key], f"{name}.{key}")
        if get_origin(types[key]) is Literal and values[key] not in get_args(types[key]):
            words = map(str, get_args(types[key]))
            raise InputError(f"{name}.{key} cannot be {value!r}; {nearest_key(str(value), words)}")
    return dataclasses.replace(info.build(**values), name=name)


def _coerce(value: object, default: object, where: str) -> object:
    if not isinstance(value, str) or isinstance(default, str):
        return value
    if isinstance(default, Format):
        return parse(value)
    if isinstance(default, bool):
        if value.lower() in ("true", "yes", "1", "false", "no", "0"):
            return value.lower() in ("true", "yes", "1")
        raise InputError(f"{where} takes true or false, not {value!r}")
    if not isinstance(default, int | float):
        return value
    try:
        number = type(default)(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where} takes a {type(default).__name__}, not {value!r}")
    return number


def combine(base: Recipe, slots: Mapping[str, str]) -> Recipe:
    """Replace slots of ``base`` by those of other recipes: ``{"transforms": "quarot"}``.

    Raises:
        InputError: for an unknown slot or recipe, or a slot that the other recipe leaves empty.
    """
    valid = {f.name for f in dataclasses.fields(Recipe)} - {"name"}
    changes = {}
    for slot, donor in slots.items():
        if slot not in valid:
            raise InputError(f"a recipe has no slot {slot!r}; {nearest_key(slot, valid)}")
        value = getattr(load_recipe(donor), slot)
        if value == ():
            raise InputError(f"recipe {donor!r} leaves the slot {slot!r} empty; choose one that fills it")
        changes[slot] = value
    name = base.name + "".join(f"+{slot}={donor}" for slot, donor in slots.items())
    return dataclasses.replace(base, **changes, name=name)


def with_weight_format(base: Recipe, format: Format) -> Recipe:
    """The same recipe with another weight format in every weight rule."""
    rules = tuple(
        r if r.quantizer is None else dataclasses.replace(r, quantizer=dataclasses.replace(r.quantizer, format=format))
        for r in base.weights
    )
    return dataclasses.replace(base, weights=rules)
