"""Pages that come from the code say what the code says."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from bitwright.cli.main import command_names
from bitwright.recipes import all_recipes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """The script ``docs/generate.py`` as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_lists_every_recipe(generate: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme == generate.with_table(readme, all_recipes()), "the table of recipes is old; run: make readme"
    assert all(f"| `{recipe.name}` |" in readme for recipe in all_recipes())


def test_every_recipe_and_parameter_has_its_place(generate: ModuleType) -> None:
    pages = generate.pages(all_recipes())
    for recipe in all_recipes():
        page = pages[f"{recipe.family}.md"]
        assert f"## {recipe.name}\n" in page
        assert all(f"| `{name}` |" in page for name in recipe.parameters)


def test_every_command_is_described(generate: ModuleType) -> None:
    page = generate.commands_page()
    assert all(f"## bitwright {name}" in page for name in command_names())


def test_claims_page_shows_the_last_measurement(generate: ModuleType, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    assert "Nothing has been measured" in generate.claims_page(ledger)
    check = {"passed": True, "text": "8 bits are nearly lossless", "measured": 1.23456, "baseline": 2.0}
    claim = {
        "name": "rtn", "verdict": "pass", "asset": "zoo", "prepare": "as is", "seeds": [0], "commit": "abc",
        "date": "day", "protocol": "some words", "checks": [check], "note": "said so",
        "measurements": {"rtn int8": {"perplexity": 3.5, "kl": 0.1, "bits": 8.25, "seconds": 1.0}},
    }  # fmt: skip
    encoder = {
        **claim, "name": "gptq", "also": {"embedding-stsb": {"protocol": "other words"}}, "left_out": ["one check"],
        "measurements": {"gptq on embedding-stsb": {"embedding_error": 0.25, "bits": 3.25, "seconds": 2.0}},
    }  # fmt: skip
    ledger.write_text(f"{json.dumps(claim)}\n{json.dumps(encoder)}\n", "utf-8")
    page = generate.claims_page(ledger)
    assert "| rtn | pass | zoo | as is | 0 | abc | day |" in page
    assert "| pass | 8 bits are nearly lossless | 1.235 | 2 |" in page
    assert "| rtn int8 | 8.25 | 3.5 | 0.1 | 1 |" in page
    assert "| gptq on embedding-stsb | 3.25 | 0.25 | 2 |" in page
    assert "some words. And: other words." in page
    assert "asset was not there: one check." in page
    assert "said so" in page


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "_generated" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_makefile_targets_in_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        named = set(re.findall(r"(?:\$ |`)make ([a-z-]+)", page.read_text("utf-8")))
        assert named <= targets, page.name
