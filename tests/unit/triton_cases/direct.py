"""Decoding steps of a model that read the coded cache with Triton's kernel, against steps over the decoded cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bitwright.runtime.kernels.attention import triton
from bitwright.runtime.kernels.table import TABLE
from tests.unit.test_runtime_direct import MANIFESTS, Watched, coded, compare, watched


def here(device: torch.device) -> Watched:
    """A table whose attention is Triton's kernel on this device, and the calls of it."""
    return watched(replace(triton.KERNEL, name="attention/here", devices=frozenset({device.type})))


@pytest.mark.parametrize("name", MANIFESTS)
def test_logits_are_those_over_the_decoded_cache(name: str, device: torch.device) -> None:
    table = here(device)
    compare(MANIFESTS[name], table, device, 3e-5)
    assert len(table.calls) == 2 * 4


def test_a_batch_with_padding(device: torch.device) -> None:
    compare(MANIFESTS["token"], here(device), device, 3e-5, padding=3)


def test_the_default_table_reads_the_cache_on_a_graphics_processor(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs a graphics processor")
    model = coded(MANIFESTS["token"], TABLE).to(device)
    with torch.no_grad():
        output = model(input_ids=torch.tensor([[5, 6, 7]], device=device), use_cache=True)
    assert all(layer.direct for layer in output.past_key_values.layers)
