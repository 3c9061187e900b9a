"""Experts: found in a run, opened without moving the output, joined with their siblings."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from bitwright.errors import InputError
from bitwright.models import Structure, discover, open_model
from bitwright.models.expert_stack import ExpertStack
from bitwright.models.experts import FusedWeight, open_experts
from tests.unit.expert_toys import NAMES, SeparateModel, expert_model, token_batches

BATCH = token_batches(1)[0]


@cache
def _opened(name: str) -> tuple[Structure, float]:
    """What discovery says of an opened model, and how far opening moved its output."""
    model = open_model(expert_model(name))
    with torch.no_grad():
        before = model.module(**BATCH).logits
        open_experts(model, BATCH)
        after = model.module(**BATCH).logits
    return discover(model, BATCH), float((after - before).abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_opening_moves_nothing_and_every_expert_is_a_site(name: str) -> None:
    found, moved = _opened(name)
    assert moved <= 1e-6
    assert [s.path for s in found.sites if s.role == "router"]
    assert all(s.expert is None for s in found.sites if s.role == "router")
    families: dict[str, set[int]] = {}
    for site in found.sites:
        if site.expert is not None:
            assert site.family.replace("*", str(site.expert)) == site.path
            families.setdefault(site.family, set()).add(site.expert)
    assert len(families) == (3 if name == "Dbrx" else 2)
    assert all(numbers == {0, 1, 2, 3} for numbers in families.values())
    assert not any(".experts." in name and "bias" not in name for name in found.unaccounted)


@pytest.mark.parametrize("name", ["Mixtral", "GptOss", "DeepseekV3"])
def test_an_opened_checkpoint_is_read_expert_by_expert(name: str, tmp_path: Path) -> None:
    module = expert_model(name)
    module.save_pretrained(tmp_path)
    model = open_model(tmp_path, stream=True)
    found = open_experts(model, BATCH)
    assert not model.unmatched
    assert not model.missing
    state = module.state_dict()
    for fused in found:
        for expert, parameter in enumerate(fused.names()):
            assert torch.equal(model.read_parameter(parameter), state[fused.path][expert])
            assert model.checkpoint_key(parameter) is None  # it has no tensor of its own name


def test_a_gated_pair_is_proved_in_every_expert() -> None:
    found, _ = _opened("Qwen3Moe")
    inside = {p.source: p.sinks for p in found.pairs if ".experts." in p.source}
    stack = "model.layers.0.mlp.experts"
    assert inside == {f"{stack}.gate_up_proj.{e}": (f"{stack}.down_proj.{e}",) for e in range(4)}


def test_experts_without_tokens_take_their_siblings_places() -> None:
    model = open_model(expert_model("Qwen3Moe", num_experts_per_tok=1))
    two = {"input_ids": BATCH["input_ids"][:1, :2]}
    open_experts(model, two)
    found = discover(model, two)
    stack = "model.layers.0.mlp.experts"
    idle = {s.path for s in found.sites if not s.seen}
    assert idle
    assert {p.source for p in found.pairs} >= {f"{stack}.gate_up_proj.{e}" for e in range(4)}
    for pair in found.pairs:
        if pair.source.startswith(f"{stack}.gate_up_proj."):
            assert pair.sinks == (pair.source.replace("gate_up_proj", "down_proj"),)
    norm = next(p for p in found.pairs if p.source == "model.layers.0.post_attention_layernorm")
    assert set(norm.sinks) >= {f"{stack}.gate_up_proj.{e}" for e in range(4)}
    assert found.residual is not None
    assert {t.name for t in found.residual.writes} >= {f"{stack}.down_proj.{e}.weight" for e in range(4)}
    assert {t.name for t in found.residual.reads} >= {f"{stack}.gate_up_proj.{e}.weight" for e in range(4)}


def test_experts_in_a_list_are_a_family_and_their_chooser_a_router() -> None:
    model = open_model(SeparateModel())
    x = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(0))
    assert open_experts(model, x) == ()
    found = discover(model, x)
    assert [s.path for s in found.sites if s.role == "router"] == [f"blocks.{b}.mixture.gate" for b in range(2)]
    families = {s.family for s in found.sites if s.expert is not None}
    assert families == {f"blocks.{b}.mixture.experts.*.{layer}" for b in range(2) for layer in (0, 2)}
    assert sum(s.expert is not None for s in found.sites) == 12
    assert any(not s.seen for s in found.sites)


def test_one_expert_alone_is_no_list_of_blocks() -> None:
    model = open_model(expert_model("Qwen3Moe", num_hidden_layers=2, num_experts=1, num_experts_per_tok=1))
    open_experts(model, BATCH)
    experts = {s.path for s in discover(model, BATCH).sites if s.expert is not None}
    assert experts == {f"model.layers.{b}.mlp.experts.{p}.0" for b in range(2) for p in ("gate_up_proj", "down_proj")}


def test_a_router_may_choose_from_a_part_of_its_scores() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.other = nn.Linear(8, 6), nn.Linear(8, 8)
            self.table = nn.Parameter(torch.randn(4, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            chosen = self.gate(x)[..., :4].sigmoid().topk(1, dim=-1)[1][..., 0]
            y: torch.Tensor = self.other(x) * self.table[chosen]
            return y

    found = discover(open_model(Model()), torch.randn(2, 5, 8))
    assert {s.path: s.role for s in found.sites if s.kind == "linear"} == {"gate": "router", "other": "head"}


def test_a_fixed_table_of_three_axes_is_no_stack() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 5, 8))
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.linear(x + self.table)
            return y

    model = open_model(Model())
    assert open_experts(model, torch.randn(2, 5, 8)) == ()
    assert model.experts == ()


def _stack(transposed: bool) -> tuple[ExpertStack, torch.Tensor, list[int]]:
    """A stack of three experts [4, 6], its parameter as [experts, out, in], and the experts that were called."""
    torch.manual_seed(0)
    w = torch.randn(3, 4, 6)
    stack = ExpertStack.of(w.transpose(1, 2).contiguous() if transposed else w, transposed, 3)
    called: list[int] = []
    for number, expert in enumerate(stack.children()):
        expert.register_forward_pre_hook(lambda *_, number=number: called.append(number))
    return stack, w, called


@pytest.mark.parametrize("transposed", [False, True])
def test_products_with_an_expert_call_its_layer(transposed: bool) -> None:
    stack, w, called = _stack(transposed)
    x, bias = torch.randn(5, 6), torch.randn(4)
    second = stack[torch.tensor(1)]
    turned = second if transposed else second.T
    straight = second.t() if transposed else second
    results = [
        functional.linear(x, straight, bias) - bias,
        functional.linear(x, weight=straight),
        x @ turned,
        torch.matmul(x, turned),
        torch.addmm(bias, x, turned) - bias,
        x @ turned.to(torch.float32),
        functional.linear(x, turned.transpose(0, 1)),
    ]
    assert called == [1] * len(results)
    for result in results:
        assert torch.allclose(result, x @ w[1].T, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_batched_product_calls_every_expert(transposed: bool) -> None:
    stack, w, called = _stack(transposed)
    x = torch.randn(3, 5, 6)
    y = torch.bmm(x, stack if transposed else stack.transpose(1, 2))
    assert called == [0, 1, 2]
    assert torch.allclose(y, torch.bmm(x, w.transpose(1, 2)), atol=1e-6)


def test_everything_else_gets_the_dense_tensor() -> None:
    stack, w, called = _stack(transposed=False)
    assert stack.shape == w.shape
    assert (len(stack), stack.ndim, stack.dtype) == (3, 3, torch.float32)
    assert torch.equal(stack[[0, 2]], w[[0, 2]])
    assert torch.equal(torch.einsum("eoi->eio", stack), w.transpose(1, 2))
    assert torch.equal(stack[-1].abs(), w[2].abs())
    assert torch.equal(stack.sum(0), w.sum(0))
    assert torch.equal(torch.stack([expert + 0 for expert in (e.dense() for e in stack)]), w)
    assert called == []
    with pytest.raises(InputError, match="expert 7 of 3"):
        stack[7]


def test_a_flat_stack_is_a_matrix_until_it_is_viewed() -> None:
    """[experts * out, in] as DBRX keeps it: a view with three axes gives the experts, all else the dense matrix."""
    torch.manual_seed(0)
    w, x = torch.randn(12, 6), torch.randn(5, 6)
    stack = ExpertStack.of(w, False, 3)
    called: list[int] = []
    for number, expert in enumerate(stack.children()):
        expert.register_forward_pre_hook(lambda *_, number=number: called.append(number))
    assert (stack.shape, stack.ndim) == (w.shape, 2)
    for shape in ((-1, 4, 6), (3, 4, -1)):
        torch.testing.assert_close(x.matmul(stack.view(shape)[1].T), x @ w[4:8].T)
    torch.testing.assert_close(torch.nn.functional.linear(x, stack.reshape(3, 4, 6)[2]), x @ w[8:].T)
    assert called == [1, 1, 2]
    assert torch.equal(stack[7], w[7])
    assert torch.equal(stack.view(4, 18), w.view(4, 18))
    assert torch.equal(stack.transpose(0, 1), w.T)
    torch.testing.assert_close(torch.matmul(x, stack.t()), x @ w.T)


def test_names_of_an_opened_parameter() -> None:
    fused = FusedWeight("a.b", 2, (4, 6), transposed=True)
    assert list(fused.names()) == ["a.b.0.weight", "a.b.1.weight"]


def test_a_pair_of_one_listed_expert_holds_in_all() -> None:
    model = open_model(SeparateModel())
    found = discover(model, torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(0)))
    inside = {p.source: p.sinks for p in found.pairs if ".experts." in p.source}
    lists = [f"blocks.{b}.mixture.experts" for b in range(2)]
    assert inside == {f"{path}.{e}.0": (f"{path}.{e}.2",) for path in lists for e in range(3)}


def test_a_stack_may_hold_more_experts_than_the_next() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.gate = nn.Linear(8, 2)
            self.up, self.down = nn.Parameter(torch.randn(3, 6, 8)), nn.Parameter(torch.randn(2, 8, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            chosen = self.gate(x).topk(1, dim=-1)[1][..., 0]
            y = torch.zeros_like(x)
            for e in range(2):
                rows = torch.where(chosen == e)
                y[rows] = functional.linear(functional.linear(x[rows], self.up[e]).relu(), self.down[e])
            return y

    model = open_model(Model())
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    open_experts(model, x)
    found = discover(model, x)
    assert {s.path for s in found.sites if s.expert is not None} == {"up.0", "up.1", "up.2", "down.0", "down.1"}
    assert {(p.source, p.sinks) for p in found.pairs} <= {(f"up.{e}", (f"down.{e}",)) for e in range(2)}


def test_a_stack_that_two_layers_share_is_left_alone() -> None:
    class Half(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(x @ matrix for matrix in self.weight)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = nn.Parameter(torch.randn(3, 8, 8))
            self.first, self.second, self.third = Half(weight), Half(weight), Half(nn.Parameter(torch.randn(3, 8, 8)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.third(self.second(self.first(x)))

    model = open_model(Model())
    assert [fused.path for fused in open_experts(model, torch.randn(2, 8))] == ["third.weight"]
    found = discover(model, torch.randn(2, 8))
    assert found.unaccounted == ()
    assert [name for name, _ in found.exceptions] == ["first.weight"]


def test_a_transposed_convolution_that_was_not_reached_is_no_convolution() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(8, 8), nn.ConvTranspose1d(8, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    found = discover(open_model(Model()), torch.randn(2, 8))
    assert [site.path for site in found.sites] == ["used"]
    assert dict(found.exceptions)["idle.weight"].endswith("stays float")
