"""Running a model block by block gives exactly what the whole model gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from bitwright.errors import InputError
from bitwright.models.calling import call_module, shrunk
from bitwright.models.discover import block_stream, discover
from bitwright.models.model import Model, open_model
from bitwright.models.stream import BlockStream, hidden_of, logits_of
from tests.unit.models_toys import MobileNet, ResNet, randomised, seeded, toy_images, toy_model


def _batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    batches = []
    for tokens in (7, 16):
        ids = torch.randint(3, 96, (2, tokens), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, :3] = 0  # left padding: the masks differ between batches
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def _blockwise(model: Model, stream: BlockStream, batch: object) -> torch.Tensor:
    with torch.no_grad():
        calls = stream.prefix_inputs([batch])[0]
        hidden = calls.hidden
        for index, path in enumerate(stream.blocks):
            with model.unit(path):
                hidden = stream.run_block(index, calls, hidden)
        return logits_of(stream.run_suffix(calls, hidden))


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "opt", "gpt-neox", "gemma2", "bert", "bert-masked"])
def test_text_models_replay_exactly(name: str) -> None:
    model = open_model(toy_model(name))
    stream = block_stream(model, discover(model))
    for batch in _batches():
        with torch.no_grad():
            expected = logits_of(call_module(model.module, batch))
        assert torch.equal(_blockwise(model, stream, batch), expected)


def test_streamed_models_replay_exactly(tmp_path: Path) -> None:
    module = toy_model("gemma2")
    module.save_pretrained(tmp_path, max_shard_size="20KB")
    model = open_model(tmp_path, stream=True)
    stream = block_stream(model, discover(model))
    batch = _batches()[0]
    with torch.no_grad():
        expected = module(**batch).logits
    assert torch.equal(_blockwise(model, stream, batch), expected)
    assert all(parameter.is_meta for parameter in model.module.parameters())


@pytest.mark.parametrize("build", [ResNet, MobileNet])
def test_image_models_replay_exactly(build: type) -> None:
    model = open_model(seeded(build))
    stream = block_stream(model, discover(model, toy_images()))
    images = toy_images(5)
    with torch.no_grad():
        expected = model.module(images)
    assert torch.equal(_blockwise(model, stream, images), expected)


def test_blocks_get_their_own_masks() -> None:
    model = open_model(toy_model("gemma2"))
    stream = block_stream(model, discover(model))
    calls = stream.prefix_inputs(_batches())[1]
    masks = [call.kwargs["attention_mask"] for call in calls.blocks]
    assert not torch.equal(masks[0], masks[1])  # a sliding and a full layer
    assert torch.equal(masks[0], masks[2])


def test_recorded_arguments_do_not_hold_hidden_states() -> None:
    model = open_model(toy_model("llama"))
    calls = block_stream(model, discover(model)).prefix_inputs(_batches())[0]
    assert calls.hidden.shape == (2, 7, 32)
    for call in calls.blocks:
        assert call.filled(calls.hidden)[0][0] is calls.hidden
        assert call.args[0].numel() == 0


def test_gradients_flow_through_a_block() -> None:
    model = open_model(toy_model("llama"))
    stream = block_stream(model, discover(model))
    calls = stream.prefix_inputs(_batches())[0]
    hidden = calls.hidden.clone().requires_grad_()
    stream.run_block(1, calls, hidden).square().sum().backward()
    assert hidden.grad is not None
    assert float(hidden.grad.abs().max()) > 0


def test_blocks_are_whole_again_after_an_error() -> None:
    model = open_model(toy_model("llama"))
    stream = block_stream(model, discover(model))
    with pytest.raises(ValueError, match="must specify"):
        stream.prefix_inputs([{}])
    assert all("forward" not in model.module.get_submodule(path).__dict__ for path in stream.blocks)


def test_blocks_that_are_not_called_are_an_error() -> None:
    model = open_model(toy_model("bert-masked"))
    model.module.bert.unused = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="called 1 of its 2"):
        BlockStream(model, ("bert.encoder.layer.0", "bert.unused"), (0, 0)).prefix_inputs(_batches()[:1])


def test_hidden_states_come_out_of_any_output() -> None:
    state = torch.ones(2)
    assert hidden_of(state) is state
    assert hidden_of((None, state)) is state
    assert hidden_of({"n": 3, "last": state}) is state
    with pytest.raises(InputError):
        hidden_of((1, None))


class _Counting(torch.nn.Module):
    """A block that changes an object it is given, like a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())

    def forward(self, x: torch.Tensor, seen: list[int], store: _Store) -> torch.Tensor:
        seen.append(1)
        store.total += 1
        return self.inner(x) * (len(seen) + store.total)


class _Store:
    def __init__(self) -> None:
        self.total = 0


class _WithState(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([_Counting(), _Counting()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, [], store=_Store())
        return x


def test_arguments_are_fresh_at_every_call() -> None:
    model, x = open_model(_WithState()), torch.randn(2, 4)
    stream = block_stream(model, discover(model, x))
    calls = stream.prefix_inputs([x])[0]
    first = stream.run_block(0, calls, calls.hidden)
    assert torch.equal(stream.run_block(0, calls, calls.hidden), first)


class _Leaky(torch.nn.Module):
    """Blocks that leave something for each other behind the caller's back."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = []
        for block in self.blocks:
            x = block(x)
            seen.append(x)
        return torch.stack(seen).sum(0)


def test_a_chain_whose_insides_are_read_later_is_not_taken() -> None:
    found = discover(open_model(_Leaky()), torch.randn(2, 4))
    assert found.blocks != ("blocks.0", "blocks.1", "blocks.2")
    assert found.chain_error == 0.0


def test_examples_are_cut_to_a_few_rows_and_tokens() -> None:
    ids, mask = torch.arange(120).reshape(3, 40), torch.ones(3, 40, dtype=torch.long)
    cut = shrunk({"input_ids": ids, "attention_mask": mask, "flag": True}, rows=2, tokens=8)
    assert torch.equal(cut["input_ids"], ids[:2, :8])
    assert cut["attention_mask"].shape == (2, 8)
    assert cut["flag"] is True
    mask[:, :30] = 0  # left padding: the end holds the text
    assert torch.equal(shrunk({"input_ids": ids, "attention_mask": mask}, 2, 8)["input_ids"], ids[:2, -8:])
    assert shrunk(torch.zeros(5, 3, 16, 16)).shape == (2, 3, 16, 16)
    assert [item.shape for item in shrunk((ids, torch.zeros(3)), 1, 4)] == [(1, 4), (1,)]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "gpt2", "mobilenet"])
def test_a_model_on_an_accelerator_has_the_same_structure(name: str) -> None:
    module = seeded(MobileNet) if name == "mobilenet" else toy_model(name)
    example = toy_images() if name == "mobilenet" else None
    there, here = discover(open_model(module.cuda()), example), discover(open_model(module.cpu()), example)
    assert there.blocks == here.blocks
    assert there.sites == here.sites
    assert [(p.source, p.sinks) for p in there.pairs] == [(p.source, p.sinks) for p in here.pairs]
    assert (there.residual is None) == (here.residual is None)


def _t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4, pad_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    return randomised(transformers.T5ForConditionalGeneration(config))


@pytest.mark.parametrize("streamed", [False, True])
def test_layers_that_share_a_bias_made_by_the_first_are_whole_blocks(streamed: bool, tmp_path: Path) -> None:
    """T5's first block makes the position bias that all others read: it hands it on, the others pass it."""
    generator = torch.Generator().manual_seed(3)
    module = _t5()
    if streamed:
        module.save_pretrained(tmp_path)
    model = open_model(tmp_path if streamed else module, stream=streamed)
    batch, other = (
        {name: torch.randint(3, 96, (rows, 7), generator=generator) for name in ("input_ids", "decoder_input_ids")}
        for rows in (2, 3)
    )
    with torch.no_grad():
        expected = module(**other).logits
    for proofs in (True, False):
        found = discover(model, batch, proofs=proofs)
        assert found.blocks == tuple(f"decoder.block.{index}" for index in range(3))
        assert [index for index, _ in found.aside] == [0, 1]
        assert dict(found.aside)[0] == ()
        torch.testing.assert_close(_blockwise(model, block_stream(model, found), other), expected)
