"""Running a model block by block gives exactly what the whole model gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitwright.errors import InputError
from bitwright.models.calling import call_module
from bitwright.models.discover import block_stream, discover
from bitwright.models.model import Model, open_model
from bitwright.models.stream import BlockStream, hidden_of, logits_of
from tests.unit.models_toys import MobileNet, ResNet, seeded, toy_images, toy_model


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
