"""Coded weights times coded activations against the product of what both decode to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import QuantizedTensor, parse
from bitwright.runtime.activation import ActivationQuantizer
from bitwright.runtime.dispatch import UnsupportedError
from bitwright.runtime.kernels.linear import reference
from bitwright.runtime.kernels.linear.triton_scaled import KERNEL, run
from bitwright.runtime.kernels.triton.coded_input import coded_activations, coded_weight, unserved_by
from bitwright.runtime.kernels.triton.scaled import triton_scaled_linear
from bitwright.runtime.weight import PackedWeight

PAIRS = [
    ("e4m3 channel", "e4m3 token dynamic"), ("e4m3 tensor", "e4m3 tensor dynamic"),
    ("e5m2 channel", "e4m3 token dynamic"), ("mxfp4", "mxfp4 dynamic"), ("mxfp4", "mxfp8_e4m3 dynamic"),
    ("mxfp8_e4m3", "mxfp8_e5m2 dynamic"), ("nvfp4", "nvfp4 dynamic"),
]  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _able(device: torch.device, request: pytest.FixtureRequest) -> None:
    """Skip where the matrix units of this device do not take the codes of a test."""
    given = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if device.type == "cuda" and "weight" in given:
        limit = unserved_by(torch.cuda.get_device_capability(), given["weight"], given.get("given", given["weight"]))
        if limit is not None:
            pytest.skip(limit)


def packed(text: str, device: torch.device, out: int = 37, columns: int = 160) -> PackedWeight:
    term = parse(text).quantize(random(out, columns))
    tensors, meta = QuantizedTensor((term,)).to_tensors()
    return PackedWeight({k: t.to(device) for k, t in tensors.items()}, meta, term.shape, term.kind, text)


def agree(weight: PackedWeight, x: Tensor, quantizer: ActivationQuantizer, **options: Any) -> None:
    found = run(x, KERNEL.prepare(weight, x.dtype), options.get("bias"), quantizer)
    wanted = reference.run(x.float(), weight, options.get("bias"), quantizer)
    tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[x.dtype]
    assert found.dtype == x.dtype
    size = float(wanted.abs().max())
    assert float((found.float() - wanted).abs().max()) <= tolerance * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("weight", "given"), PAIRS)
def test_every_pair_of_codes(weight: str, given: str, dtype: torch.dtype, device: torch.device) -> None:
    x = random(2, 9, 160, seed=1).to(device, dtype)
    agree(packed(weight, device), x, ActivationQuantizer(parse(given)), bias=random(37, seed=2).to(device))


@pytest.mark.parametrize(("tokens", "out", "columns"), [(1, 1, 32), (130, 129, 128), (17, 40, 288)])
@pytest.mark.parametrize("weight", ["mxfp4", "e4m3 channel"])
def test_odd_shapes(weight: str, tokens: int, out: int, columns: int, device: torch.device) -> None:
    given = "mxfp4 dynamic" if weight == "mxfp4" else "e4m3 token dynamic"
    x = random(tokens, columns, seed=1).to(device)
    agree(packed(weight, device, out, columns), x, ActivationQuantizer(parse(given)))


@pytest.mark.parametrize("weight", ["e4m3 channel"])
def test_a_stored_input_scale_empty_and_large_tokens(weight: str, device: torch.device) -> None:
    x = random(20, 160, seed=1).to(device)
    x[3] = 0
    x[4] *= 1e20
    agree(packed(weight, device), x, ActivationQuantizer(parse("e4m3 token dynamic")))
    stored = ActivationQuantizer(parse("e4m3 tensor static"), torch.tensor([0.02], device=device))
    agree(packed(weight, device), x, stored)


def test_coded_activations_are_what_the_quantizer_rounds_to(device: torch.device) -> None:
    x = random(5, 96, seed=1).to(device)
    for _, given in PAIRS:
        quantizer = ActivationQuantizer(parse(given))
        rows = coded_activations(x, quantizer)
        twin = parse(given.removesuffix(" dynamic")) if rows.shared else None
        if twin is not None:
            torch.testing.assert_close(twin.quantize(x).dequantize(), quantizer(x))
        assert rows.codes.shape[1] * (2 if rows.element == "e2m1" else 1) == 128


def test_which_processors_multiply_which_pairs() -> None:
    fp8, mx, mixed = ("e4m3 channel", "e4m3 token dynamic"), ("mxfp4", "mxfp4"), ("mxfp4", "mxfp8_e4m3")
    assert unserved_by((8, 9), *fp8) is None
    assert "8.9" in str(unserved_by((8, 6), *fp8))
    assert "10.0" in str(unserved_by((9, 0), *mx))
    assert unserved_by((10, 0), *mixed) is None
    assert unserved_by((12, 0), *mx) is None
    assert "equal" in str(unserved_by((12, 0), *mixed))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    rows = coded_weight(parse("mxfp4").quantize(random(8, 64).to(device)))
    x = random(20, 64).to(device)
    with pytest.raises(UnsupportedError, match="serves FP8"):
        coded_weight(parse("int4 g32").quantize(random(8, 64)))
    with pytest.raises(InputError, match="quantizer"):
        run(x, rows, None, None)
    with pytest.raises(InputError, match="64 channels"):
        run(x[:, :32], rows, None, ActivationQuantizer(parse("mxfp4 dynamic")))
    with pytest.raises(InputError, match="do not lie"):
        run(x, rows, None, ActivationQuantizer(parse("e4m3 token dynamic")))
    good = [rows.codes, rows.scale, rows.codes, rows.scale, None, "e2m1", "e2m1", 32, 1.0, torch.float32]
    for index, value, words in (
        (0, rows.codes[:, :32], "do not fit"), (3, rows.scale[:1], "weight do not fit"), (5, "e3m2", "no products"),
        (7, 0, "4 bits have"), (7, 8, "no products"), (4, x, "bias has"), (2, rows.codes.T, "do not fit"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            triton_scaled_linear(*good[:index], value, *good[index + 1 :])
    assert run(x[:0], rows, None, ActivationQuantizer(parse("mxfp4 dynamic"))).shape == (0, 8)
