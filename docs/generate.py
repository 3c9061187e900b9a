"""Write the pages that come from the code: recipes by family, formats, commands, claims, and the README's table.

python docs/generate.py            write docs/_generated/
python docs/generate.py --readme   write the table of recipes in README.md
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import typer

from bitwright.cli.main import app
from bitwright.formats import parse
from bitwright.recipes import RecipeInfo, all_recipes

DOCS = Path(__file__).parent
ROOT = DOCS.parent
GENERATED = DOCS / "_generated"
README_TABLE = re.compile(r"(<!-- recipes -->\n).*?(<!-- /recipes -->)", re.DOTALL)

# Formats shown with their exact size on a matrix that every group divides.
SHOWN_SHAPE = (4096, 4096)
SHOWN_FORMATS = (
    "int8 channel", "int4 channel", "int4 g128", "int4 g128 asym", "int3 g64 asym", "int2 g32 asym", "e4m3 tensor",
    "e4m3 channel", "nf4 b64", "nf4 b64 scale=double", "fp4-bnb b64", "lut4 channel", "pot4 channel", "ternary channel",
    "mxfp4", "mxfp6_e2m3", "mxfp8_e4m3", "mxint8", "nvfp4", "int4 block128x128", "e8p", "e8p4 g128", "vq2x8d8",
    "vq1x16d8", "trellis2", "trellis3-3inst g256",
)  # fmt: skip


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A pipe table; `|` inside cells is escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def readme_table(recipes: tuple[RecipeInfo, ...]) -> str:
    """The recipes, one line each."""
    rows = [[f"`{recipe.name}`", recipe.family, first_sentence(recipe), recipe.paper] for recipe in recipes]
    return markdown_table(["recipe", "family", "what it does", "source"], rows)


def first_sentence(recipe: RecipeInfo) -> str:
    """The first sentence of the recipe's docstring, on one line."""
    text = " ".join(recipe.summary.split())
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0].rstrip(".")


def family_page(family: str, recipes: list[RecipeInfo]) -> str:
    """All recipes of one family: docstring, parameters with defaults, and the claim."""
    parts = [f"# {family.replace('-', ' ').capitalize()} recipes\n"]
    for recipe in recipes:
        number = f" (number {recipe.number} of the catalogue)" if recipe.number else ""
        parts += [f"## {recipe.name}\n", f"*{recipe.paper}*{number}\n", inspect.getdoc(recipe.build) or "", ""]
        rows = [[f"`{name}`", f"`{value}`"] for name, value in recipe.parameters.items()]
        parts.append(markdown_table(["parameter", "default"], rows))
        if recipe.claim is not None:
            parts.append(f"Claim, measured on `{recipe.claim.asset}`:\n")
            parts += [f"- {check_text(check)}" for check in recipe.claim.checks]
        parts.append("")
    return "\n".join(parts)


def check_text(check: Any) -> str:
    """One check of a claim as a sentence."""
    place = f" at `{check.at}`" if check.at else ""
    by = f" by {check.margin:.0%} or more" if check.margin else ""
    texts = {
        "better_than": f"{check.metric} is lower than that of `{check.baseline}`{by}{place}",
        "at_most": f"{check.metric} is at most {check.margin:g}{place}",
        "equals": f"{check.metric} equals that of `{check.baseline}` within {check.margin:g}{place}",
        "order": f"{check.metric} rises in the order {check.baseline}{place}",
        "ablation": f"{check.metric} of `{check.baseline}` is worse{by}{place}",
    }
    return texts.get(check.kind, check.kind) + (f" ({check.text})" if check.text else "")


def formats_table() -> str:
    """Exact stored bits of well-known formats on one matrix."""
    rows = [[f"`{text}`", f"{parse(text).bits_per_weight(SHOWN_SHAPE):.4f}"] for text in SHOWN_FORMATS]
    size = " × ".join(map(str, SHOWN_SHAPE))
    head = f"Bits per weight of a matrix of {size}, scales, zero points and codebooks included:\n\n"
    return head + markdown_table(["format", "bits per weight"], rows)


def commands_page() -> str:
    """Every command with its arguments and options, read from the command line itself."""
    root: Any = typer.main.get_command(app)
    parts = ["# Commands\n", "`bitwright COMMAND --help` shows the same text.\n"]
    for name in root.list_commands(None):
        parts += command_part(f"bitwright {name}", root.get_command(None, name))
    return "\n".join(parts)


def command_part(name: str, command: Any) -> list[str]:
    """The section of one command, or of each command of a group."""
    if hasattr(command, "commands"):
        return [line for child, sub in command.commands.items() for line in command_part(f"{name} {child}", sub)]
    rows = []
    for parameter in command.params:
        label = ", ".join(parameter.opts) if parameter.param_type_name == "option" else (parameter.name or "").upper()
        default = parameter.default
        shown = "" if callable(default) or default in (None, False, "") else f"`{default}`"
        rows.append([f"`{label}`", "required" if parameter.required else shown, getattr(parameter, "help", "") or ""])
    return [f"## {name}\n", inspect.cleandoc(command.help or ""), "", markdown_table(["", "default", ""], rows)]


METRICS = {
    "perplexity": "perplexity", "kl": "KL", "error": "error", "spearman": "Spearman", "embedding_error": "1 - cosine",
}  # fmt: skip
"""Metrics of the ledger that the page shows, with their headings."""


def claims_page(ledger: Path) -> str:
    """The last measurement of every claim: verdicts, then every check with its numbers and the protocol."""
    head = "# Claims\n\nEach recipe states what it can do; `bitwright claims run NAME` measures it again.\n\n"
    entries = [json.loads(line) for line in ledger.read_text("utf-8").splitlines() if line] if ledger.exists() else []
    if not entries:
        return head + "Nothing has been measured yet.\n"
    rows = [
        [e["name"], e["verdict"], e["asset"], e["prepare"], ", ".join(map(str, e["seeds"])), e["commit"], e["date"]]
        for e in entries
    ]
    columns = ["recipe", "verdict", "asset", "prepared", "seeds", "commit", "date"]
    parts = [head, markdown_table(columns, rows)]
    for entry in entries:
        checks = [
            ["pass" if c["passed"] else "**fail**", c["text"], cell(c["measured"]), cell(c["baseline"])]
            for c in entry["checks"]
        ]
        metrics = [k for k in METRICS if any(k in m for m in entry["measurements"].values())]
        measured = [
            [name, cell(m["bits"]), *(cell(m.get(k)) for k in metrics), cell(m["seconds"])]
            for name, m in entry["measurements"].items()
        ]
        protocols = [entry["protocol"], *(other["protocol"] for other in entry.get("also", {}).values())]
        parts += [
            f"\n## {entry['name']}\n\nProtocol: {'. And: '.join(protocols)}.\n\n",
            markdown_table(["verdict", "check", "measured", "baseline or limit"], checks),
            "\n",
            markdown_table(["what", "bits", *(METRICS[k] for k in metrics), "seconds"], measured),
        ]
        if entry.get("left_out"):
            parts.append(f"\nNot measured, since the asset was not there: {'; '.join(entry['left_out'])}.\n")
        if entry.get("note"):
            parts.append(f"\n{entry['note']}\n")
    return "".join(parts)


def cell(value: object) -> str:
    """Text of one value of the ledger."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def pages(recipes: tuple[RecipeInfo, ...]) -> dict[str, str]:
    """File name (in ``_generated``) to text."""
    families: dict[str, list[RecipeInfo]] = defaultdict(list)
    for recipe in recipes:
        families[recipe.family].append(recipe)
    names = sorted(families)
    index = ["# Recipes\n", readme_table(recipes), "```{toctree}", ":maxdepth: 1", "", *names, "```", ""]
    return {
        "recipes.md": "\n".join(index),
        **{f"{name}.md": family_page(name, families[name]) for name in names},
        "formats-table.md": formats_table(),
        "commands.md": commands_page(),
        "claims.md": claims_page(ROOT / "claims" / "ledger.jsonl"),
    }


def with_table(readme: str, recipes: tuple[RecipeInfo, ...]) -> str:
    """The text of the README with its table of recipes up to date."""
    return README_TABLE.sub(lambda found: found[1] + readme_table(recipes) + found[2], readme)


def main() -> None:
    """Write the generated pages, or the README's table under ``--readme``."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--readme", action="store_true", help="write the table in README.md instead of the pages")
    recipes = all_recipes()
    if options.parse_args().readme:
        readme = ROOT / "README.md"
        readme.write_text(with_table(readme.read_text("utf-8"), recipes), "utf-8")
        return
    GENERATED.mkdir(exist_ok=True)
    for old in GENERATED.glob("*.md"):
        old.unlink()
    for name, text in pages(recipes).items():
        (GENERATED / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
