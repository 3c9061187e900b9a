"""``bitwright inspect``: what a checkpoint holds, or what discovery finds in a model."""

from __future__ import annotations

from typing import Annotated

import typer

from bitwright.cli.options import Json
from bitwright.cli.output import Output


def command(
    model: Annotated[str, typer.Argument(help="Folder of a float or quantized model, or an embedded one.")],
    structure: Annotated[
        bool, typer.Option("--structure", help="Blocks, pairs and residual stream of a float model.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the tensors of a checkpoint, the kernels that serve them, or the structure of a model."""
    from bitwright.jobs.inspecting import inspect_model, inspect_structure

    with Output(json) as out:
        if structure:
            found = inspect_structure(model)
            out.result(found)
            out.show(f"{len(found['blocks'])} blocks: {', '.join(found['blocks'][:4])} ...")
            out.table(
                ["weight", "kind", "role", "shape", "reads"],
                [(s["path"], s["kind"], s["role"], s["shape"], s["shared_input"]) for s in found["sites"]],
            )
            out.table(
                ["pair", "source", "sinks", "error"],
                [(p["kind"], p["source"], ", ".join(p["sinks"]), p["error"]) for p in found["pairs"]],
            )
            for reason in found["reasons"]:
                out.show(f"not offered: {reason}")
            return
        found = inspect_model(model)
        out.result(found)
        rows = [(r["path"], r["format"], r["input"], r["bits_per_weight"], r["kernel"]) for r in found["modules"]]
        if rows:
            out.table(["module", "weight", "input", "bits", "kernel"], rows, title=f"{model}: {found['recipe']}")
        out.show(f"{found['tensors']} tensors, {found['bytes']:,} bytes; stays float: {found['float_bytes']:,} bytes")
