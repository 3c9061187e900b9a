"""Report files of a finished job."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitwright.jobs.run import JobResult


def report_files(result: JobResult) -> dict[str, str]:
    """File name to text: ``bitwright-report.json``."""
    rows = [
        {"path": p, "bits_per_weight": m.weight.bits_per_weight, "relative_error": m.error}
        for u in result.units
        for p, m in u.modules.items()
        if m.weight is not None
    ]
    report = {
        "format_version": 1,
        "recipe": result.job.recipe.name,
        "bits_per_weight": result.bits_per_weight,
        "tensors": rows,
        "units": [{"name": u.name, "seconds": round(u.seconds, 3), "notes": u.notes} for u in result.units],
        "events": [asdict(e) for e in result.events],
    }
    return {"bitwright-report.json": json.dumps(report, indent=2) + "\n"}
