"""The empirical Fisher diagonal: against autograd by hand, sequence by sequence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.statistics.fisher import Fisher, accumulate_fisher, next_token_loss


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.unused = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def test_equals_the_mean_of_squared_gradients() -> None:
    model, x = Net(), torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    model.first.weight.requires_grad_(False)
    found = accumulate_fisher(model, [x[:6], x[6:]], ["first", "second"], loss)
    assert not model.first.weight.requires_grad
    assert model.first.bias.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    model.first.weight.requires_grad_(True)
    for path, weight in (("first", model.first.weight), ("second", model.second.weight)):
        squares = [torch.autograd.grad(loss(model, row[None]), weight)[0].square() for row in x]
        torch.testing.assert_close(found[path], torch.stack(squares).mean(0))


def test_samples_are_a_cap() -> None:
    model, x = Net(), torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    few = accumulate_fisher(model, [x], ["first"], loss, samples=3)
    expected = accumulate_fisher(model, [x[:3]], ["first"], loss)
    assert torch.equal(few["first"], expected["first"])


def test_language_model_loss(toy_llama: nn.Module, toy_tokens: Tensor) -> None:
    path = "model.layers.0.mlp.down_proj"
    batch = {"input_ids": toy_tokens[:3], "attention_mask": torch.ones_like(toy_tokens[:3])}
    found = accumulate_fisher(toy_llama, [batch], [path])
    assert found[path].shape == toy_llama.get_submodule(path).weight.shape
    assert float(found[path].min()) >= 0
    with torch.no_grad():
        value = next_token_loss(toy_llama, {"input_ids": toy_tokens[:3]})
        logits = toy_llama(toy_tokens[:3]).logits[:, :-1].log_softmax(-1)
    expected = -logits.gather(-1, toy_tokens[:3, 1:, None]).mean()
    torch.testing.assert_close(value, expected)


def test_tied_weights_share_one_gradient() -> None:
    model = Net()
    model.second = nn.Linear(6, 4, bias=False)
    model.second.weight = nn.Parameter(model.first.weight.detach().t().contiguous())
    model.third = model.second
    x = torch.randn(2, 4)
    found = accumulate_fisher(model, [x], ["second", "third"], loss)
    assert torch.equal(found["second"], found["third"])


@pytest.mark.parametrize(
    ("paths", "batches", "words"),
    [
        (["frist"], [torch.ones(1, 4)], "first"),
        (["first"], [], "at least one"),
        (["unused"], [torch.ones(1, 4)], "gradient"),
    ],
)
def test_bad_input(paths: list[str], batches: list[Tensor], words: str) -> None:
    with pytest.raises(InputError, match=words):
        accumulate_fisher(Net(), batches, paths, loss)


def test_collector_merges() -> None:
    parts = [Fisher().open(4) for _ in range(3)]
    gradients = torch.randn(5, 2, 4)
    for g in gradients[:2]:
        parts[0].update(g)
    for g in gradients[2:]:
        parts[1].update(g)
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    torch.testing.assert_close(parts[2].result(), gradients.square().mean(0))
