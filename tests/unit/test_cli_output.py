"""What commands print for people and for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from bitwright.cli.output import FORMAT_VERSION, Output, bytes_text, cell_text


@dataclass(frozen=True)
class _Point:
    x: float
    place: Path


def test_json_is_alone_on_standard_output(capsys) -> None:
    with Output(json=True) as out:
        print("a library talks")
        out.table(["bits"], [[4]])
        out.result({"point": _Point(float("nan"), Path("a/b")), "bits": 4.25})
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "format_version": FORMAT_VERSION,
        "point": {"x": None, "place": "a/b"},
        "bits": 4.25,
    }
    assert said.out.count("\n") == 1
    assert "a library talks" in said.err
    assert "bits" in said.err


def test_json_lists_stay_lists(capsys) -> None:
    with Output(json=True) as out:
        out.result([{"name": "rtn"}])
    assert json.loads(capsys.readouterr().out) == [{"name": "rtn"}]


def test_one_value_only() -> None:
    with Output(json=True) as out:
        out.result([])
        with pytest.raises(RuntimeError, match="one JSON value"):
            out.result([])


def test_standard_output_comes_back_after_an_error(capsys) -> None:
    with pytest.raises(ValueError, match="stop"), Output(json=True):
        raise ValueError("stop")
    print("back")
    assert capsys.readouterr().out == "back\n"


def test_people_see_tables_and_no_json(capsys) -> None:
    with Output(json=False) as out:
        out.result({"secret": 1})
        out.table(["recipe", "bits"], [["rtn", 4.123456], ["gptq [x]", None]], title="widths", note="float is 16")
    shown = capsys.readouterr().out
    assert "4.123" in shown
    assert "gptq [x]" in shown
    assert "widths" in shown
    assert "float is 16" in shown
    assert "secret" not in shown


@pytest.mark.parametrize("json", [False, True])
def test_piped_tables_are_as_wide_as_they_need(capsys, json: bool) -> None:
    paths = [f"model.layers.{i}.self_attention.query_key_value_projection.{'x' * 60}" for i in range(2)]
    note = " ".join(f"word{i}" for i in range(40))
    with Output(json) as out:
        out.table(["tensor", "format", "why"], [[p, "int4 g128 asym", "y" * 50] for p in paths], title="t", note=note)
        out.show(" ".join(paths))
    said = capsys.readouterr()
    lines = (said.err if json else said.out).splitlines()
    assert [sum(path in line and "y" * 50 in line for line in lines) for path in paths] == [1, 1]
    assert note in lines
    assert " ".join(paths) in lines


def test_a_terminal_keeps_its_width(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    with Output(json=False) as out:
        out.console = Console(force_terminal=True, width=60, color_system=None)
        out.table(["tensor"], [["z" * 200]])
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) == 60


def test_cells() -> None:
    assert [cell_text(value) for value in (None, True, 0.000123456, 12, "a")] == ["-", "yes", "0.0001235", "12", "a"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000_000, "1.5 GB"), (2e15, "2000.0 TB")]
)
def test_bytes_text(count: float, text: str) -> None:
    assert bytes_text(count) == text
