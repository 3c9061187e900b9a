"""Claims as they are judged: other assets, what is left out, and the command's JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bitwright.claims import run as run_file
from bitwright.claims.ledger import read_ledger, write_ledger
from bitwright.claims.measure import Measured
from bitwright.claims.run import run_claim
from bitwright.cli.main import run
from bitwright.errors import InputError
from bitwright.evaluation.embedding import embedding_error
from bitwright.recipes import Check, Claim, Recipe, recipe_info

LEDGER = Path(__file__).parents[2] / "claims" / "ledger.jsonl"
DIGITS = Check("at_most", "kl", margin=0.2, at="int8 channel sym")
ROW_KEYS = {"name", "verdict", "measured", "baseline", "bits", "seconds"}


def _claim(monkeypatch: pytest.MonkeyPatch, claim: Claim) -> None:
    """Let ``rtn`` have another claim."""
    info = dataclasses.replace(recipe_info("rtn"), claim=claim)
    monkeypatch.setattr(run_file, "recipe_info", lambda name: info if name == "rtn" else recipe_info(name))


class _Bench:
    """Stands for an opened asset: figures by the widths of a recipe, without any model."""

    def __init__(self, asset: SimpleNamespace, prepare: str = "as is", quick: bool = False) -> None:
        self.asset = asset
        self.protocol = f"{asset.name}, {prepare}"
        self.float_metrics: Mapping[str, float] = {"loss": 0.0}
        self.scale = 10.0 if asset.name == "embedding-stsb" else 1.0

    def measure(self, recipe: Recipe, seed: int = 0) -> Measured:
        quantizer = recipe.weights[0].quantizer
        assert quantizer is not None
        bits = quantizer.format.grid.bits
        return Measured({"loss": self.scale * 2.0**-bits}, float(bits), 0.25, "protocol", 0)


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, folder: Path | None) -> SimpleNamespace:
        if name == "lm-bitnet-stories-1m":
            raise InputError("it is not there; give the folder that holds it")
        return SimpleNamespace(name=name)

    monkeypatch.setattr(run_file, "load_asset", load)
    monkeypatch.setattr(run_file, "Bench", _Bench)


def test_json_of_claims_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _claim(monkeypatch, Claim("vision-resnet-cifar10", (DIGITS,)))
    assert run(["claims", "run", "rtn", "--quick", "--json"]) == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert row.keys() >= ROW_KEYS
    assert (row["name"], row["verdict"], row["asset"]) == ("rtn", "pass", "zoo:digits")
    assert 0 < row["measured"] <= row["baseline"] == 0.2
    assert 8 < row["bits"] < 9
    assert row["seconds"] > 0
    assert row["protocol"].endswith("quick")
    assert "measuring rtn int8 channel sym seed 0" in said.err


def test_a_failed_claim_is_printed_and_exits_with_one(
    benches: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checks = (Check("at_most", "loss", margin=0.2, at="int2"), Check("better_than", "loss", baseline="int3", at="int4"))
    _claim(monkeypatch, Claim("lm-stories260k", checks))
    assert run(["claims", "run", "rtn", "--json", "--assets", str(tmp_path)]) == 1
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert row["verdict"] == "fail"
    assert row["measured"] == 0.25
    assert "1 of 1 claims fail: rtn" in said.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rtn", "--quick", "--ledger", "x"], "too little for a ledger"),
        ([], "name the recipes"),
        (["rtm"], "did you mean 'rtn'?"),
    ],
)
def test_claims_run_refuses(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["claims", "run", *words, "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err


def test_a_check_may_name_another_asset(benches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = (
        Check("at_most", "loss", margin=0.3, at="int2"),
        Check("at_most", "loss", margin=0.3, at="int2", asset="embedding-stsb"),
        Check("at_most", "loss", margin=0.3, at="int2", asset="lm-bitnet-stories-1m", text="not to be had"),
    )
    _claim(monkeypatch, Claim("lm-stories260k", checks, prepare="plant outliers"))
    said: list[Any] = []
    result = run_claim("rtn", Path("assets"), say=said.append)
    own, other = result.checks
    assert (own.asset, own.measured, own.passed) == ("", 0.25, True)
    assert (other.asset, other.measured, other.passed) == ("embedding-stsb", 2.5, False)
    assert other.text == "loss at most 0.3 at int2 on embedding-stsb"
    assert set(result.measurements) == {"rtn int2 seed 0", "rtn int2 seed 0 on embedding-stsb"}
    assert result.protocol == "lm-stories260k, plant outliers"
    also = {"protocol": "embedding-stsb, as is", "float_metrics": {"loss": 0.0}}
    assert result.also == {"embedding-stsb": also}
    assert result.left_out == ("not to be had",)
    assert any("lm-bitnet-stories-1m are left out: it is not there" in text for text in said)


def test_a_metric_that_an_asset_lacks_is_an_error(benches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _claim(monkeypatch, Claim("lm-stories260k", (Check("at_most", "los", at="int2"),)))
    with pytest.raises(InputError, match=r"lm-stories260k has no metric 'los'; did you mean 'loss'\?"):
        run_claim("rtn", Path("assets"))


def test_ledger_rows_of_before_stay_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first rows knew no asset of a check."""
    old = {
        "format_version": 1, "name": "rtn", "verdict": "pass", "asset": "zoo", "seeds": [0], "measurements": {},
        "checks": [{"at": "int8", "baseline": 2.0, "measured": 1.5, "metric": "kl", "passed": True, "text": "as said"}],
    }  # fmt: skip
    write_ledger(tmp_path / "ledger.jsonl", {"rtn": old})
    assert read_ledger(tmp_path / "ledger.jsonl") == {"rtn": old}
    assert run(["claims", "show", "--ledger", str(tmp_path / "ledger.jsonl")]) == 0
    assert "as said" in capsys.readouterr().out
    assert all(row["format_version"] == 1 for row in read_ledger(LEDGER).values())


def test_embedding_error_is_the_mean_of_one_less_cosine() -> None:
    a = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    b = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    assert embedding_error(a, b) == pytest.approx(0.5)
    assert embedding_error(a, a) == pytest.approx(0.0, abs=1e-7)
