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
    no_native: Annotated[
        bool, typer.Option("--no-native", help="Do not try the compiled decoding step, which runs the model.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the tensors of a checkpoint, the kernels that serve them, or the structure of a model."""
    from bitwright.jobs.inspecting import gguf_path, inspect_gguf, inspect_structure
    from bitwright.jobs.overview import inspect_model

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
        found = inspect_model(model, native=not no_native)
        out.result(found)
        _show_model(out, found)


def _show_model(out: Output, found: dict[str, Any]) -> None:
    columns = ["module", "weight", "input", "online", "bits", "kernel", "exact"]
    rows = [
        (r["path"], r["format"], r["input"], ", ".join(r["online_kernels"]), r["bits_per_weight"], r["kernel"],
         r["kernel_exact"])
        for r in found["modules"]
    ]  # fmt: skip
    if rows:
        out.table(columns, rows, title=f"{found['model']}: {found['recipe']}")
    vectors = [f for f in found["floats"] if f["kind"] in ("bias", "vector")]
    matrices = [
        (
            " = ".join((f["name"], *f["shared"])),
            f["kind"],
            "x".join(map(str, f["shape"])),
            f["reason"],
            f["step"] or f["kernel"],
            f["kernel_exact"],
        )
        for f in found["floats"]
        if f["kind"] not in ("bias", "vector")
    ]
    if matrices:
        out.table(["float", "kind", "shape", "why", "kernel", "modules"], matrices, title="stays float")
    if vectors:
        size = sum(f["bytes"] for f in vectors)
        out.show(f"{len(vectors)} vectors (norm gains, biases) in {vectors[0]['kernel']}: {size:,} bytes in memory")
    for path in found["removed"]:
        out.show(f"removed: {path}")
    for kernel, why in _passed_over(found["modules"]):
        out.show(f"not taken: {kernel}: {why}")
    _show_decoding(out, found)
    out.show(f"{found['tensors']} tensors, {found['bytes']:,} bytes; stays float: {found['float_bytes']:,} bytes")


def _passed_over(modules: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What stopped better kernels where only the definition serves."""
    slow = [m for m in modules if m["kernel"].endswith("/reference")]
    found = ((name, why) for m in slow for name, why in m["passed_over"] if not name.endswith("/dense"))
    return list(dict.fromkeys(found))


def _show_decoding(out: Output, found: dict[str, Any]) -> None:
    attention, decoder = found["attention"], found["decoder"]
    if attention is not None:
        sides = " and ".join(f"{side}s in {attention[side] or 'floats'}" for side in ("key", "value"))
        window = f", the last {attention['window']} tokens in floats" if attention["window"] else ""
        out.show(f"cache: {sides}{window}; attention: {attention['kernel']} ({attention['why']})")
    if decoder is not None and decoder["decoder"] == "native":
        out.show(f"compiled decoding step: serves; its logits are within {decoder['error']:.1e} of the largest")
    elif decoder is not None:
        out.show(f"compiled decoding step: does not serve ({decoder['reason']}); the model's modules run")


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
