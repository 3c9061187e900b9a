"""``bitwright inspect``: what a checkpoint holds, or what discovery finds in a model."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from bitwright.cli.options import Json, RuleFile
from bitwright.cli.output import Output


def command(
    model: Annotated[str, typer.Argument(help="Folder of a float or quantized model, embedded model, or GGUF file.")],
    structure: Annotated[
        bool, typer.Option("--structure", help="Blocks, pairs and residual stream of a float model.")
    ] = False,
    rules: RuleFile = None,
    json: Json = False,
) -> None:
    """Show the tensors of a checkpoint, the kernels that serve them, or the structure of a model."""
    from bitwright.jobs.inspecting import gguf_path, inspect_gguf, inspect_model, inspect_structure

    with Output(json) as out:
        if not structure and (file := gguf_path(model)) is not None:
            found = inspect_gguf(file)
            out.result(found)
            _show_gguf(out, found)
            return
        if structure:
            found = inspect_structure(model, str(rules) if rules else "")
            out.result(found)
            _show_structure(out, found)
            return
        found = inspect_model(model)
        out.result(found)
        rows = [(r["path"], r["format"], r["input"], r["bits_per_weight"], r["kernel"]) for r in found["modules"]]
        if rows:
            out.table(["module", "weight", "input", "bits", "kernel"], rows, title=f"{model}: {found['recipe']}")
        out.show(f"{found['tensors']} tensors, {found['bytes']:,} bytes; stays float: {found['float_bytes']:,} bytes")


def _show_gguf(out: Output, found: dict[str, Any]) -> None:
    out.table(["key", "value"], [(key, str(value)) for key, value in found["metadata"].items()], title=found["format"])
    rows = [(t["name"], t["type"], "x".join(map(str, t["shape"])), t["bytes"]) for t in found["tensors"]]
    out.table(["tensor", "type", "shape", "bytes"], rows)
    out.show(f"{len(rows)} tensors, {found['bytes']:,} bytes")


def _show_structure(out: Output, found: dict[str, Any]) -> None:
    blocks = found["blocks"]
    out.show(f"{len(blocks)} blocks: {_ends(blocks)}" if blocks else "no chain of blocks: the model is one unit")
    out.table(
        ["weight", "kind", "role", "shape", "reads"],
        [(s["path"], s["kind"], _role(s), s["shape"], s["shared_input"] if s["seen"] else "") for s in found["sites"]],
    )
    if found["norms"]:
        out.table(["norm", "kind", "width"], [(n["path"], n["kind"], n["dim"]) for n in found["norms"]])
    out.table(
        ["pair", "source", "sinks", "error"],
        [(p["kind"], p["source"], ", ".join(p["sinks"]), p["error"]) for p in found["pairs"]],
    )
    if found["rotary"]:
        out.table(
            ["queries", "keys", "rotary layout", "channels", "error"],
            [
                (r["query"], r["key"], r["layout"], f"{r['size']} of {r['head_dim']}", r["error"])
                for r in found["rotary"]
            ],
        )
        for allowed in dict.fromkeys(r["allowed"] for r in found["rotary"]):
            out.show(f"queries and keys may take {allowed}")
    stream = found["residual"]
    if stream is not None:
        out.show(
            f"residual stream of {stream['dim']} channels ({stream['norm_kind']} norms): {len(stream['writers'])} "
            f"writers, {len(stream['readers'])} readers, head {stream['head']}; proved to {stream['error']:.0e}"
        )
    families = Counter(s["family"] for s in found["sites"] if s["family"])
    for family, count in families.items():
        out.show(f"experts: {family} ({count})")
    for name, owner in found["ties"]:
        out.show(f"tied: {name} is {owner}")
    for name, why in found["exceptions"]:
        out.show(f"no site: {name}: {why}")
    for name in found["unaccounted"]:
        out.show(f"not accounted for: {name} (a rule file can name its role)")
    for reason in found["reasons"]:
        out.show(f"not offered: {reason}")


def _ends(paths: list[str]) -> str:
    return ", ".join(paths) if len(paths) <= 4 else f"{paths[0]}, {paths[1]} ... {paths[-1]}"


def _role(site: dict[str, Any]) -> str:
    words = [site["role"]]
    if site["block"] is not None:
        words.append(str(site["block"]))
    if not site["whole"]:
        words.append("(float: its module does more)")
    if not site["seen"]:
        words.append("(not reached)")
    return " ".join(words)
