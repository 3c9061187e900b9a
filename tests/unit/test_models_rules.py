"""Rules override discovery: blocks, roles, groups; what a rule says is checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from bitwright.errors import InputError
from bitwright.models import Structure, WeightSite, discover, open_model
from bitwright.models.discover import block_stream
from bitwright.models.rules import Rules, parse_rules, read_rules


class _Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.gate = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.gate(x)) * self.up(x.clone()))


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Sequential(_Unit(), _Unit()) for _ in range(2)])
        self.last = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.last(x)


def _found() -> Structure:
    return discover(open_model(_Network()), torch.randn(3, 8))


def _sites(found: Structure) -> dict[str, WeightSite]:
    return {site.path: site for site in found.sites}


def test_blocks_are_those_that_the_rules_name() -> None:
    assert _found().blocks == ("stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1")
    found = discover(open_model(_Network()), torch.randn(3, 8), rules=parse_rules({"stages.[0-9]": "block"}))
    assert found.blocks == ("stages.0", "stages.1")
    assert found.chain_error == 0.0
    assert {site.block for site in found.sites if site.path.startswith("stages.1.")} == {1}


def test_classes_can_be_named_and_the_last_match_wins() -> None:
    rules = parse_rules({"class:_Unit": "inside", "stages.*.gate": "float", "stages.0.0.gate": "linear"})
    found = discover(open_model(_Network()), torch.randn(3, 8), rules=rules)
    assert found.blocks == ("stages.0", "stages.1")
    roles = {path: site.role for path, site in _sites(found).items() if path.endswith("gate")}
    assert roles.pop("stages.0.0.gate") == "block"
    assert set(roles.values()) == {"float"}


def test_groups_are_joined_and_parted() -> None:
    plain = _sites(_found())
    assert plain["stages.0.0.up"].shared_input != plain["stages.0.0.gate"].shared_input
    rules = parse_rules({"*.up": "shared:x", "*.gate": "shared:x"})
    found = _sites(discover(open_model(_Network()), torch.randn(3, 8), rules=rules))
    assert found["stages.0.0.up"].shared_input == found["stages.0.0.gate"].shared_input
    assert found["stages.0.0.up"].shared_input != found["stages.0.1.up"].shared_input


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({"stages.*": "blok"}, "did you mean 'block'"),
        ({"stagse.0": "block"}, "did you mean 'stages.0'"),
        ({"class:_Unti": "block"}, "did you mean 'class:_Unit'"),
        ({"stages.*": {"gate": "float"}}, "quotes"),
        ({"stages.*": "block"}, "which holds it"),
        ({"stages.0": "linear"}, "does not compute"),
        ({"*.up": "shared:x", "*.down": "shared:x"}, "channels"),
        ({"stages": "block"}, "calls none"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused(lines: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        discover(open_model(_Network()), torch.randn(3, 8), rules=parse_rules(lines))


def test_blocks_that_do_not_make_the_output_are_refused() -> None:
    rules = parse_rules({"stages.0.0": "block", "stages.1.1": "block"})
    with pytest.raises(InputError, match="do not hold"):
        discover(open_model(_Network()), torch.randn(3, 8), rules=rules)


class _Wrapped(nn.Module):
    """One block of which nobody else can make what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _Network()

    def forward(self, x: torch.Tensor) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.inner(x))


class _Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = _Wrapped()
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.model(x).last_hidden_state)


def test_a_module_that_returns_an_output_object_is_no_block() -> None:
    module, x = _Around(), torch.randn(3, 8)
    with pytest.raises(InputError, match="neither a tensor nor a tuple"):
        discover(open_model(module), x, rules=parse_rules({"model": "block"}))
    for proofs in (False, True):
        found = discover(open_model(module), x, proofs=proofs)
        assert "model" not in found.blocks
        stream = block_stream(open_model(module), found)
        calls = stream.prefix_inputs([x])[0]
        hidden = calls.hidden
        for index in range(len(found.blocks)):
            hidden = stream.run_block(index, calls, hidden)
        torch.testing.assert_close(stream.run_suffix(calls, hidden), module(x))


def test_files_in_both_notations(tmp_path: Path) -> None:
    expected = Rules((("stages.*", ("block",)), ("*.gate", ("float", "alone"))))
    (tmp_path / "rules.toml").write_text('"stages.*" = "block"\n"*.gate" = ["float", "alone"]\n')
    (tmp_path / "rules.json").write_text('{"stages.*": "block", "*.gate": ["float", "alone"]}')
    assert read_rules(tmp_path / "rules.toml") == expected
    assert read_rules(tmp_path / "rules.json") == expected
    (tmp_path / "torn.toml").write_text('"stages.*" = ')
    for name in ("torn.toml", "absent.toml"):
        with pytest.raises(InputError):
            read_rules(tmp_path / name)
