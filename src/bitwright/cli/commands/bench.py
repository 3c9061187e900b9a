"""``bitwright bench``: tokens per second beside the machine's memory bandwidth."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bitwright.cli.options import Exact, Json, NoNative, Threads, use_threads
from bitwright.cli.output import Output


def command(
    model: Annotated[str, typer.Argument(help="Folder of a language model, or `zoo`.")],
    prompt: Annotated[int, typer.Option(help="Prompt tokens.", min=1)] = 128,
    tokens: Annotated[int, typer.Option(help="New tokens.", min=1)] = 64,
    repeats: Annotated[int, typer.Option(help="Repetitions; the best is shown.", min=1)] = 3,
    roofline: Annotated[
        bool, typer.Option("--roofline", help="Show the machine's bandwidth and peak beside each kernel's share.")
    ] = False,
    exact: Exact = False,
    no_native: NoNative = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure decoding and prefill on the kernels that serve the model."""
    from bitwright.jobs.opened_model import open_runnable
    from bitwright.runtime.bench import bench
    from bitwright.runtime.roofline import roofline as measure

    with Output(json) as out:
        use_threads(threads)
        module = open_runnable(model, cache_weights=False, exact=exact).module
        result = bench(module, prompt, tokens, repeats, native=not no_native)
        limits = measure(module) if roofline else None
        out.result(result if limits is None else result | {"roofline": limits})
        out.table(
            ["", ""], [(k, v) for k, v in result.items() if k != "protocol"], title=model, note=str(result["protocol"])
        )
        if limits is not None:
            _show(out, limits)


def _show(out: Output, limits: dict[str, Any]) -> None:
    """The machine's limits, and the kernels beside them."""
    peaks = [
        (f"{name}, {threads} thread{'s' if threads != '1' else ''}", f"{value / 1e9:.1f} {unit}")
        for name, key, unit in (
            ("read bandwidth", "read_bytes_per_second", "GB/s"),
            ("products of bytes", "dot_operations_per_second", "G operations/s"),
        )
        for threads, value in limits[key].items()
    ]
    out.table(["", ""], peaks, title="machine")
    rows = [
        (
            row["kernel"], row["layers"], f"{row['bytes_per_second'] / 1e9:.1f} GB/s", f"{row['bandwidth_share']:.0%}",
            f"{row['operations_per_second'] / 1e9:.0f} G/s", f"{row['dot_share']:.0%}" if "dot_share" in row else "",
        )
        for row in limits["kernels"]
    ]  # fmt: skip
    out.table(["kernel", "layers", "one row", "of the bandwidth", "128 rows", "of the peak"], rows)
