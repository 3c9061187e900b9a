"""Self-contained HTML pages: the report of a job and the comparison of several recipes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from bitwright.errors import InputError


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> dict[str, Any]:
    """A table for :func:`page`; floats get four digits, columns of numbers are aligned right."""
    numeric = {i for i in range(len(columns)) if rows and all(isinstance(row[i], int | float) for row in rows)}
    cells = [[f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    return {"title": title, "columns": columns, "rows": cells, "numeric": numeric}


def page(
    title: str,
    note: str,
    facts: Sequence[tuple[str, object]] = (),
    figures: Sequence[Mapping[str, str]] = (),
    tables: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Render a page; everything is inside it, nothing is loaded.

    Raises:
        InputError: if the extra ``report`` is not installed.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise InputError("pages need jinja2 and matplotlib; pip install 'bitwright[report]'") from error
    text = resources.files("bitwright.jobs").joinpath("page.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True).from_string(text)
    return template.render(title=title, note=note, facts=facts, figures=figures, tables=tables)


def _figure(draw: Any, width: float = 8.0, height: float = 3.6) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # A fixed salt gives the shapes the same names every time: equal reports are equal bytes.
    with rc_context({"svg.hashsalt": "bitwright"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def pareto_plot(rows: Sequence[Mapping[str, Any]], quality: str) -> str:
    """Quality against bits per weight, one point per row; the lower envelope is joined."""

    def draw(axes: Any) -> None:
        points = [r for r in rows if r["recipe"] != "float"]
        for row in points:
            axes.scatter(row["bits_per_weight"], row[quality], s=28)
            axes.annotate(f"{row['recipe']} {row['format']}", (row["bits_per_weight"], row[quality]),
                          textcoords="offset points", xytext=(5, 4), fontsize=7)  # fmt: skip
        front, best = [], float("inf")
        for row in sorted(points, key=lambda r: (r["bits_per_weight"], r[quality])):
            if row[quality] < best:
                best = row[quality]
                front.append(row)
        axes.plot([r["bits_per_weight"] for r in front], [r[quality] for r in front], linewidth=1, color="#888888")
        axes.set_xlabel("stored bits per quantized weight")
        axes.set_ylabel(quality)
        if points and min(r[quality] for r in points) > 0:
            axes.set_yscale("log")

    return _figure(draw)


def bars(labels: Sequence[str], values: Sequence[float], name: str) -> str:
    """One bar per layer, in the order of the network."""

    def draw(axes: Any) -> None:
        axes.bar(range(len(values)), values, width=0.8, color="#4477aa")
        axes.set_ylabel(name)
        step = max(1, len(labels) // 24)
        axes.set_xticks(
            range(0, len(labels), step),
            [_short(label) for label in labels[::step]],
            rotation=60,
            ha="right",
            fontsize=7,
        )

    return _figure(draw)


def _short(path: str) -> str:
    parts = path.split(".")
    return ".".join(parts[-3:]) if len(parts) > 3 else path


def comparison_page(result: Mapping[str, Any]) -> str:
    """The page of ``bitwright compare``: table and Pareto plot."""
    rows = list(result["rows"])
    quality = "kl"
    columns = [
        c
        for c in (
            "recipe",
            "format",
            "bits_per_weight",
            "bytes",
            "perplexity",
            "accuracy",
            "kl",
            "top1_agreement",
            "seconds",
        )
        if c in rows[0]
    ]
    figures = [{"title": "KL to the float model against bits", "svg": pareto_plot(rows, quality)}]
    body = [table("Recipes", columns, [[row[c] for c in columns] for row in rows])]
    return page(f"Bitwright: {result['model']}", str(result["protocol"]), figures=figures, tables=body)


def _verdict(verification: Mapping[str, Any] | None) -> str:
    return "no" if verification is None else f"{verification['text']} (read back in {verification['process']})"


def _bundles(tensors: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Tensors by what a bar stands for: one layer, or the experts of a family (there may be thousands)."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for tensor in tensors:
        found.setdefault(tensor.get("family") or tensor["path"], []).append(tensor)
    return found


def _mean(bundle: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(float(tensor[key]) for tensor in bundle) / len(bundle)


def _tokens(families: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    return [[f["family"], min(f["tokens"]), max(f["tokens"]), f["tokens"].count(0)] for f in families]


def job_page(report: Mapping[str, Any]) -> str:
    """The report of one job: facts, error and bits per layer, events."""
    tensors = list(report["tensors"])
    bundles = _bundles(tensors)
    labels = list(bundles)
    figures = []
    if tensors:
        figures = [
            {
                "title": "Relative error per layer",
                "svg": bars(labels, [_mean(b, "relative_error") for b in bundles.values()], "|W - Q| / |W|"),
            },
            {
                "title": "Bits per weight per layer",
                "svg": bars(labels, [_mean(b, "bits_per_weight") for b in bundles.values()], "bits"),
            },
        ]
    facts = [
        ("recipe", report["recipe"]), ("bits per quantized weight", f"{report['bits_per_weight']:.4f}"),
        ("quantized tensors", len(tensors)), ("kept float", len(report["kept_float"])),
        ("events", len(report["events"])),
        ("verified", _verdict(report["verification"])),
    ]  # fmt: skip
    coded = [[t["path"], t["format"], t["bits_per_weight"], t["relative_error"]] for t in tensors]
    tables = [
        table("Events", ["kind", "where", "what"], [[e["kind"], e["where"], e["message"]] for e in report["events"]]),
        table("Calibration tokens of experts", ["family", "fewest", "most", "without"], _tokens(report["experts"])),
        table("Tensors", ["path", "format", "bits", "relative error"], coded),
        table("Kept float", ["path", "why"], [[k["path"], k["reason"]] for k in report["kept_float"]]),
    ]  # fmt: skip
    return page(
        f"Bitwright report: {report['recipe']}",
        "Errors are of weights, relative to their norm.",
        facts,
        figures,
        tables,
    )
