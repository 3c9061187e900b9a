"""``bitwright recipes``: what there is, and what one recipe does."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bitwright.cli.options import Json
from bitwright.cli.output import Output


def command(
    name: Annotated[str, typer.Argument(help="A recipe; all of them if not given.")] = "",
    json: Json = False,
) -> None:
    """List the recipes, or describe one: paper, parameters, slots, claim."""
    import inspect

    from bitwright.claims.run import describe
    from bitwright.recipes import all_recipes, recipe_info

    with Output(json) as out:
        infos = [recipe_info(name)] if name else list(all_recipes())
        rows: list[dict[str, Any]] = [
            {
                "name": i.name, "number": i.number, "family": i.family, "paper": i.paper,
                "claim": [c.text or describe(c) for c in i.claim.checks] if i.claim is not None else [],
                "parameters": {k: str(v) for k, v in i.parameters.items()},
            }
            for i in infos
        ]  # fmt: skip
        out.result(rows)
        if not name:
            out.table(["name", "family", "what"], [(i.name, i.family, i.summary.split(". ")[0]) for i in infos])
            return
        info = infos[0]
        out.show(f"{info.name} ({info.family}): {info.paper}\n")
        out.show(inspect.getdoc(info.build) or "")
        out.table(["parameter", "default"], [(k, str(v)) for k, v in info.parameters.items()])
        for text in rows[0]["claim"]:
            out.show(f"claim: {text}")
