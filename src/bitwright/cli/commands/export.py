"""``bitwright export``: a quantized folder in the format of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitwright.cli.options import Json
from bitwright.cli.output import Output, bytes_text


def command(
    folder: Annotated[Path, typer.Argument(help="Folder made by `bitwright quantize`.")],
    to: Annotated[str, typer.Option("--to", help="Format of the result: compressed-tensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the result.")],
    json: Json = False,
) -> None:
    """Write a quantized model in the format of another program, without rounding anything again."""
    from bitwright.jobs.exporting import export

    with Output(json) as output:
        summary = export(folder, to, out)
        output.result(summary)
        rows = [("folder", summary["out"]), ("format", summary["format"]), ("size", bytes_text(summary["bytes"]))]
        output.table(["", ""], rows)
        for note in summary["notes"]:
            output.show(f"note: {note}")
