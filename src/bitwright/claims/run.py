"""Runs claims: measures what their checks name and judges it."""

from __future__ import annotations

import datetime
import itertools
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitwright.claims.assets import load_asset
from bitwright.claims.measure import Bench, Measured, replaced_data
from bitwright.errors import InputError, nearest_key
from bitwright.jobs.request import build_recipe
from bitwright.jobs.workers import HERE, Workers
from bitwright.recipes import Check, Claim, Recipe, RecipeInfo, recipe_info

FORMAT_VERSION = 1
QUICK_SEQUENCES = 16


@dataclass(frozen=True)
class CheckResult:
    """One check with its numbers (means over seeds); ``asset`` where it is another than the claim's."""

    text: str
    passed: bool
    measured: float
    baseline: float | None
    at: str
    metric: str
    asset: str = ""


@dataclass(frozen=True)
class ClaimResult:
    """A claim's verdict with everything needed to repeat it.

    ``asset`` to ``float_metrics`` speak of the claim's own asset; ``also`` has ``protocol`` and ``float_metrics`` of
    every other asset that a check names, ``left_out`` the checks whose asset is not there.
    """

    name: str
    verdict: str
    asset: str
    prepare: str
    protocol: str
    seeds: tuple[int, ...]
    checks: tuple[CheckResult, ...]
    measurements: Mapping[str, Mapping[str, Any]]
    float_metrics: Mapping[str, float]
    seconds: float
    commit: str
    date: str
    note: str = ""
    also: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    def as_json(self) -> dict[str, Any]:
        """The ledger's form."""
        return asdict(self)


@dataclass
class Runner:
    """Measures the variants of one claim, each once per asset and seed; ``benches[""]`` is the claim's own asset."""

    info: RecipeInfo
    claim: Claim
    benches: Mapping[str, Bench]
    quick: bool = False
    say: Callable[[str], None] = lambda text: None
    cache: dict[tuple[str, str, str, int], Measured] = field(default_factory=dict)

    def value(self, asset: str, name: str, at: str, metric: str) -> float:
        """Mean of a metric over the claim's seeds, of the variant ``name`` with the weight format ``at``."""
        seeds = self.claim.seeds[:1] if self.quick else self.claim.seeds
        values = [self.measured(asset, name, at, seed).metrics for seed in seeds]
        if metric not in values[0]:
            raise InputError(
                f"claim of {self.info.name}: {self.benches[asset].asset.name} has no metric {metric!r}; "
                f"{nearest_key(metric, values[0])}"
            )
        return sum(v[metric] for v in values) / len(values)

    def measured(self, asset: str, name: str, at: str, seed: int) -> Measured:
        """Measure once."""
        key = (asset, name, at, seed)
        if key not in self.cache:
            recipe = self.recipe(name, at)
            if self.quick:
                recipe = replaced_data(recipe, QUICK_SEQUENCES)
            self.say(f"{self.info.name}: measuring {_title(*key)}")
            self.cache[key] = self.benches[asset].measure(recipe, seed)
        return self.cache[key]

    def measurements(self) -> dict[str, dict[str, Any]]:
        """Everything that was measured, by variant, format, seed and asset in words."""
        return {
            _title(*key): {**m.metrics, "bits": m.bits, "seconds": round(m.seconds, 2), "events": m.events}
            for key, m in self.cache.items()
        }

    def recipe(self, name: str, at: str) -> Recipe:
        """The recipe of a variant: the claim's own, a named variant, or another recipe of that name."""
        variant = next((v for v in self.claim.variants if v.name == name), None)
        if variant is None:
            return build_recipe(name, (), at)
        settings = tuple((k, v if isinstance(v, str) else repr(v)) for k, v in variant.arguments)
        return build_recipe(variant.recipe, settings, at)

    def place(self, word: str) -> tuple[str, str]:
        """A word of a check as (variant, format): a variant, a recipe, or a weight format of the claim's recipe."""
        if word == "":
            return self.info.name, ""
        if any(v.name == word for v in self.claim.variants):
            return word, ""
        try:
            recipe_info(word)
            return word, ""
        except InputError:
            return self.info.name, word

    def judge(self, check: Check) -> CheckResult:
        """Measure and judge one check."""
        if check.kind == "order":
            return self._order(check)
        name, at = self.place(check.at)
        own = self.value(check.asset, name, at, check.metric)
        if check.kind == "at_most":
            return self._result(check, own <= check.margin, own, check.margin)
        other = self.place(check.baseline)[0]
        base = self.value(check.asset, other, at, check.metric)
        floor = self.benches[check.asset].float_metrics.get(check.metric, 0.0) if check.of_gap else 0.0
        if check.kind == "better_than":
            passed = own - floor < (base - floor) * (1 - check.margin) if check.margin else own < base
        elif check.kind == "equals":
            passed = abs(own - base) <= check.margin
        else:  # ablation: the variant must be worse
            passed = base - floor > (own - floor) * (1 + check.margin)
        return self._result(check, passed, own, base)

    def _order(self, check: Check) -> CheckResult:
        names = [word.strip() for word in check.baseline.split("<")]
        _, shared = self.place(check.at)
        values = []
        for word in names:
            name, at = self.place(word)
            values.append(self.value(check.asset, name, at or shared, check.metric))
        passed = all(a < b for a, b in itertools.pairwise(values))
        return self._result(check, passed, values[0], values[-1])

    def _result(self, check: Check, passed: bool, own: float, base: float | None) -> CheckResult:
        return CheckResult(check.text or describe(check), bool(passed), own, base, check.at, check.metric, check.asset)


def _title(asset: str, name: str, at: str, seed: int) -> str:
    """What was measured, in words; the claim's own asset goes without saying."""
    return " ".join(word for word in (name, at, f"seed {seed}", f"on {asset}" if asset else "") if word)


def describe(check: Check) -> str:
    """A check in words."""
    at = (f" at {check.at}" if check.at else "") + (f" on {check.asset}" if check.asset else "")
    if check.kind == "at_most":
        return f"{check.metric} at most {check.margin:g}{at}"
    if check.kind == "order":
        return f"{check.metric}: {check.baseline}{at}"
    words = {"better_than": "below", "equals": "equal to", "ablation": "worsened by"}[check.kind]
    margin = f" by {check.margin:.0%}" if check.margin else ""
    return f"{check.metric} {words} {check.baseline}{at}{margin}"


def run_claim(
    name: str, assets: Path | None, quick: bool = False, say: Callable[[str], None] = lambda text: None
) -> ClaimResult:
    """Measure the claim of one recipe.

    Without an assets folder language-model claims are measured on the embedded model and image claims on the digits,
    and checks on other assets are left out.

    Raises:
        InputError: if there is no such recipe or claim, or the folder lacks the claim's own asset.
    """
    info = recipe_info(name)
    if info.claim is None:
        raise InputError(f"recipe {name!r} has no claim")
    started = time.perf_counter()
    measured_commit = commit()  # of the code that was loaded, not of what is committed while it runs
    asset = load_asset(_substitute(info.claim.asset) if assets is None else info.claim.asset, assets)
    benches = {"": Bench(asset, info.claim.prepare, quick)}
    left_out: dict[str, str] = {}
    for other in dict.fromkeys(check.asset for check in info.claim.checks if check.asset):
        try:
            benches[other] = Bench(load_asset(other, assets), quick=quick)
        except InputError as error:
            left_out[other] = str(error)
            say(f"{name}: checks on {other} are left out: {error}")
    runner = Runner(info, info.claim, benches, quick, say)
    checks = tuple(runner.judge(check) for check in info.claim.checks if check.asset not in left_out)
    own = benches.pop("")
    return ClaimResult(
        name=name,
        verdict="pass" if all(c.passed for c in checks) else "fail",
        asset=asset.name,
        prepare=info.claim.prepare,
        protocol=own.protocol,
        seeds=info.claim.seeds,
        checks=checks,
        measurements=runner.measurements(),
        float_metrics=dict(own.float_metrics),
        seconds=time.perf_counter() - started,
        commit=measured_commit,
        note=info.claim.note,
        also={n: {"protocol": b.protocol, "float_metrics": dict(b.float_metrics)} for n, b in benches.items()},
        left_out=tuple(c.text or describe(c) for c in info.claim.checks if c.asset in left_out),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    )


@dataclass(frozen=True)
class _Task:
    name: str
    assets: Path | None
    quick: bool
    say: Callable[[str], None] | None


def _run_task(task: _Task) -> ClaimResult:
    return run_claim(task.name, task.assets, task.quick, task.say or (lambda text: None))


def run_claims(
    names: Sequence[str], assets: Path | None, quick: bool, say: Callable[[str], None], workers: Workers = HERE
) -> Iterator[ClaimResult]:
    """Measure the claims of several recipes, one task each, in the order of the names.

    Tasks on a cluster read the assets from the same folder of their own machine, and say nothing on the way.
    """
    heard = None if workers.remote else say
    assets = assets.resolve() if assets is not None else None
    yield from workers.map(_run_task, [_Task(name, assets, quick, heard) for name in names])


def _substitute(asset: str) -> str:
    return "zoo:digits" if asset.startswith("vision") else "zoo"


def commit() -> str:
    """The commit of the code that runs, or ``unknown`` outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
