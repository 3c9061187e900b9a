"""Report files of a finished job: JSON for programs, one HTML page for people."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bitwright.errors import InputError
from bitwright.jobs.experts import expert_tokens

if TYPE_CHECKING:
    from bitwright.jobs.run import JobResult

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
REPORT, PAGE = "bitwright-report.json", "report.html"


def report_values(result: JobResult) -> dict[str, Any]:
    """Everything the report says, as JSON values: per tensor, per unit, events, what stayed float and why.

    Times are left out: the same job writes the same bytes, interrupted or not.
    """
    families = {s.path: s.family for s in result.opened.structure.sites if s.family}
    tensors = [
        {
            "path": path,
            "format": facts.format,
            "terms": facts.terms,
            "input": None if module.input_format is None else str(module.input_format),
            "bits_per_weight": facts.bits_per_weight,
            "relative_error": module.error,
            **({"family": families[path]} if path in families else {}),
        }
        for unit in result.units
        for path, module in unit.modules.items()
        if (facts := module.describe()) is not None
    ]
    kept = [
        {"path": path, "reason": choice.reason}
        for path, choice in result.opened.choices.items()
        if choice.weight is None
    ]
    counts = {path: count for unit in result.units for path, count in unit.tokens.items()}
    return {
        "format_version": FORMAT_VERSION,
        "recipe": result.job.recipe.name,
        "bits_per_weight": result.bits_per_weight,
        "tensors": tensors,
        "kept_float": kept,
        "experts": expert_tokens(result.opened.structure.sites, counts),
        "not_offered": list(result.opened.structure.reasons),
        "units": [{"name": u.name, "notes": u.notes} for u in result.units],
        "events": [asdict(e) for e in result.events],
        "verification": result.verification,
    }


def report_files(result: JobResult) -> dict[str, str]:
    """File name to text; the page is left out where its libraries are not installed."""
    values = report_values(result)
    files = {REPORT: json.dumps(values, indent=2) + "\n"}
    try:
        from bitwright.jobs.page import job_page

        files[PAGE] = job_page(values)
    except InputError as error:
        logger.info("no report page: %s", error)
    return files
