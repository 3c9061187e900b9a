"""Recipes are found by file name, take typed parameters and combine slot by slot."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import bitwright.recipes
from bitwright.errors import InputError
from bitwright.formats import parse
from bitwright.recipes import Recipe, RecipeInfo, all_recipes, load_recipe, recipe_info
from bitwright.recipes.base import recipe
from bitwright.recipes.registry import combine, with_weight_format

ROOT = Path(bitwright.recipes.__file__).parent
FILES = sorted(path for path in ROOT.glob("*/*.py") if not path.name.startswith("_"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_one_complete_recipe(path: Path) -> None:
    info = recipe_info(path.stem.replace("_", "-"))
    assert isinstance(info, RecipeInfo)
    assert info.family.replace("-", "_") == path.parent.name
    assert info.paper
    assert info.summary
    assert info.claim is not None
    assert info.claim.checks
    built = load_recipe(info.name)
    assert built.name == info.name
    slots = (built.weights, built.activations, built.kv_cache, built.transforms, built.corrections, built.learn)
    assert any(slots)
    assert built == load_recipe(info.name), "a recipe is a value: two builds are equal"
    hash(built)


def test_all_recipes_are_sorted_and_unique() -> None:
    names = [info.name for info in all_recipes()]
    assert names == sorted(set(names))
    assert len(names) == len(FILES)
    numbers = [info.number for info in all_recipes() if info.number is not None]
    assert len(numbers) == len(set(numbers))


def test_recipes_are_imported_only_when_asked_for() -> None:
    code = (
        "import sys; from bitwright.recipes import recipe_info; recipe_info('rtn');"
        "print([m for m in sys.modules if m.startswith('bitwright.recipes.') and m.endswith('gptq')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_words_name_the_nearest() -> None:
    for call, words in (
        (lambda: recipe_info("gptk"), ("unknown recipe 'gptk'", "'gptq'")),
        (lambda: load_recipe("gptq", {"dampng": 1}), ("no parameter 'dampng'", "'damping'")),
        (lambda: load_recipe("gptq", {"damping": "much"}), ("gptq.damping", "float", "'much'")),
        (lambda: load_recipe("gptq", {"order": "actvation"}), ("gptq.order", "'actvation'", "'activation'")),
        (lambda: load_recipe("gptq", {"weights": "int4 g128 asim"}), ("'asim'", "'asym'")),
        (lambda: combine(load_recipe("rtn"), {"transform": "awq"}), ("no slot 'transform'", "'transforms'")),
        (lambda: combine(load_recipe("rtn"), {"transforms": "awk"}), ("unknown recipe 'awk'", "'awq'")),
        (lambda: combine(load_recipe("rtn"), {"transforms": "gptq"}), ("'gptq' leaves the slot 'transforms' empty",)),
    ):
        with pytest.raises(InputError) as caught:
            call()
        for word in words:
            assert word in str(caught.value)


def test_text_becomes_the_type_of_the_default() -> None:
    @recipe("typed", family="weight-only", paper="none")
    def typed(weights=parse("int4"), count: int = 1, share: float = 0.5, flag: bool = False, word: str = "a") -> Recipe:  # type: ignore[no-untyped-def]
        """Echo."""
        return Recipe(name=repr((str(weights), count, share, flag, word)))

    from bitwright.recipes.registry import _coerce

    defaults = typed.parameters
    given = {"weights": "int3 g64", "count": "7", "share": "0.25", "flag": "yes", "word": "b"}
    values = {key: _coerce(text, defaults[key], key) for key, text in given.items()}
    assert values == {"weights": parse("int3 g64"), "count": 7, "share": 0.25, "flag": True, "word": "b"}
    assert typed.build(**values).name == repr((str(parse("int3 g64")), 7, 0.25, True, "b"))
    with pytest.raises(InputError, match="true or false"):
        _coerce("perhaps", False, "typed.flag")


def test_parameters_are_listed_with_their_defaults() -> None:
    parameters = recipe_info("gptq").parameters
    assert parameters["damping"] == 0.01
    assert parameters["weights"] == parse("int4 g128 asym")


def test_combining_replaces_exactly_the_named_slots() -> None:
    base, donor = load_recipe("gptq"), load_recipe("quarot")
    found = combine(base, {"transforms": "quarot", "kv_cache": "quarot"})
    assert found == dataclasses.replace(
        base, transforms=donor.transforms, kv_cache=donor.kv_cache, name="gptq+transforms=quarot+kv_cache=quarot"
    )


def test_another_weight_format_keeps_everything_else() -> None:
    base = load_recipe("gptq")
    found = with_weight_format(base, parse("nf4 b64"))
    assert all(r.quantizer is None or r.quantizer.format == parse("nf4 b64") for r in found.weights)
    assert with_weight_format(found, parse("int4 g128 asym")) == base


def test_recipes_are_values_that_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_recipe("rtn").name = "x"  # type: ignore[misc]
