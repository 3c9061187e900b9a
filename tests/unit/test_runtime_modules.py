"""Quantized modules compute what their dequantized weights compute."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import InputError
from bitwright.formats import Codes, LowRank, QuantizedTensor, Scale, Sparse, parse
from bitwright.runtime import (
    REFERENCE,
    ActivationQuantizer,
    ConvGeometry,
    Options,
    QuantConv2d,
    QuantEmbedding,
    QuantLinear,
    QuantModule,
)
from bitwright.stages.transforms import OnlineOperation
from bitwright.stages.transforms.hadamard import apply_hadamard

FORMATS = [
    "int1 channel", "int2 g32 asym", "int3 channel", "int4 g32 asym", "int4 g32 narrow", "int5 g16", "int8 tensor",
    "e4m3 tensor", "e3m2 g32", "nf4 b64", "nf3 b64", "fp4-bnb b64 scale=double", "mxfp4", "mxfp8_e4m3", "mxint8",
    "nvfp4", "ternary channel", "binary channel", "pot4 channel", "apot4 channel", "int4 block16x16",
    "int4 g8 axis=0", "int4 g32 asym zero=fp16",
]  # fmt: skip


def weights(out: int = 24, columns: int = 70) -> Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(out * columns))


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def quantized(text: str, w: Tensor) -> QuantizedTensor:
    return QuantizedTensor((parse(text).quantize(w),))


def assert_runs_as(layer: QuantModule, x: Tensor, expected: Tensor) -> None:
    """The kernels of this machine add in another order than torch; the definition is equal to the bit."""
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[x.dtype]
    torch.testing.assert_close(layer(x), expected, rtol=tolerance, atol=8 * tolerance)
    layer.table = REFERENCE
    layer.forget_prepared()
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("text", FORMATS)
def test_linear_equals_the_product_with_the_dequantized_weight(text: str) -> None:
    weight = quantized(text, weights())
    bias = inputs(24)
    layer = QuantLinear.from_quantized(weight, bias)
    x = inputs(2, 5, 70)
    assert_runs_as(layer, x, functional.linear(x, weight.dequantize(), bias))
    packed = layer.packed()
    assert packed is not None
    assert packed.bytes() * 8 == weight.storage_bits()


@pytest.mark.parametrize("text", FORMATS)
def test_embedding_rows_equal_those_of_the_dequantized_table(text: str) -> None:
    for columns in (64, 70):
        weight = quantized(text, weights(24, columns))
        layer = QuantEmbedding.from_quantized(weight)
        ids = torch.tensor([[3, 3, 0], [23, 7, 3]])
        assert torch.equal(layer(ids), weight.dequantize()[ids])
    assert layer(torch.empty(0, 2, dtype=torch.long)).shape == (0, 2, 70)
    with pytest.raises(InputError, match=r"0\.\.23"):
        layer(torch.tensor([24]))


@given(
    out=st.integers(1, 9),
    columns=st.integers(1, 50),
    size=st.sampled_from([1, 3, 8, 32]),
    bits=st.integers(1, 8),
    asym=st.booleans(),
    tokens=st.integers(0, 4),
)
def test_any_shape_and_group(out: int, columns: int, size: int, bits: int, asym: bool, tokens: int) -> None:
    weight = quantized(f"int{bits} g{size}{' asym' if asym else ''}", weights(out, columns))
    layer = QuantLinear.from_quantized(weight)
    x = inputs(tokens, columns)
    assert_runs_as(layer, x, x @ weight.dequantize().T)
    again = QuantizedTensor.from_tensors(dict((layer.packed() or pytest.fail("float")).tensors), layer.meta()["weight"])
    assert torch.equal(again.dequantize(), weight.dequantize())


def test_sums_of_terms_and_learned_tables_run() -> None:
    w = weights(16, 40)
    codes = parse("int4 g32 asym").quantize(w)
    left, right = inputs(16, 3).half(), inputs(3, 40).half()
    sparse = Sparse.where(w, w.abs() > 2)
    factors = LowRank(parse("int8 channel").quantize(left), parse("int8 channel").quantize(right))
    table = Codes(
        torch.randint(0, 16, (16, 40), generator=torch.Generator().manual_seed(1), dtype=torch.uint8),
        parse("lut4 channel"),
        Scale(torch.empty(0), torch.ones(16, 1)),
        None,
        inputs(16, 1, 16).sort().values.half(),
    )
    for terms in ((codes, sparse), (codes, LowRank(left, right)), (codes, sparse, factors), (table,), (codes, codes)):
        weight = QuantizedTensor(terms)
        layer = QuantLinear.from_quantized(weight)
        x = inputs(3, 40)
        assert_runs_as(layer, x, x @ weight.dequantize().T)
        assert torch.equal(QuantEmbedding.from_quantized(weight)(torch.arange(16)), weight.dequantize())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_result_keeps_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    weight = quantized("int4 g32", weights())
    quantizer = ActivationQuantizer(parse("int8 token dynamic"))
    layer = QuantLinear.from_quantized(weight, inputs(24), options=Options(quantizer))
    x = inputs(4, 70).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    rounded = quantizer(x)
    assert rounded.dtype == dtype
    assert_runs_as(layer, x, functional.linear(rounded, weight.dequantize(dtype), inputs(24).to(dtype)))


def test_a_change_of_dtype_leaves_the_stored_numbers_alone() -> None:
    weight = quantized("nvfp4", weights(8, 64))
    zero = torch.tensor([99], dtype=torch.uint8)
    quantizer = ActivationQuantizer(parse("int8 tensor asym"), torch.tensor([0.017]), zero)
    layer = QuantLinear.from_quantized(weight, inputs(8), options=Options(quantizer))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.half().to(torch.bfloat16)
    after = layer.state_dict()
    assert after["bias"].dtype == torch.bfloat16
    for name, tensor in before.items():
        if name != "bias":
            assert after[name].dtype == tensor.dtype
            assert torch.equal(after[name], tensor)
    assert QuantEmbedding.from_quantized(weight).bfloat16()(torch.tensor([1])).dtype == torch.bfloat16
    assert all(tensor.is_meta for tensor in copy.deepcopy(layer).to("meta").state_dict().values())


def test_kept_weights_give_the_same_result_and_follow_a_reload() -> None:
    first, second = quantized("int3 g32", weights()), quantized("int3 g32", weights().flip(0))
    layer = QuantLinear.from_quantized(first, options=Options(cache_weights=True))
    x = inputs(4, 70)
    assert torch.equal(layer(x), x @ first.dequantize().T)
    assert layer.served().kernel.name == "linear/dense"
    layer.load_state_dict(QuantLinear.from_quantized(second).state_dict())
    assert torch.equal(layer(x), x @ second.dequantize().T)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"stride": 2, "padding": 1}, (2, 6, 9, 7)),
        ({"dilation": (1, 2), "padding": "same"}, (1, 6, 8, 8)),
        ({"groups": 3, "padding": (2, 0)}, (1, 6, 5, 5)),
        ({"groups": 6, "padding": 1, "padding_mode": "reflect"}, (2, 6, 6, 6)),
        ({"padding": "same", "padding_mode": "circular"}, (2, 6, 6, 6)),
        ({"padding": "valid", "padding_mode": "replicate"}, (2, 6, 6, 6)),
    ],
)
def test_convolution_equals_the_float_one_on_the_dequantized_weight(
    options: dict[str, object], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    source = nn.Conv2d(6, 12, (3, 2), **options)
    weight = quantized("int4 channel", source.weight.detach().flatten(1))
    layer = QuantConv2d.from_quantized(weight, source.bias.detach(), ConvGeometry.of(source))
    source.weight.data = weight.dequantize().view_as(source.weight)
    x = inputs(*shape)
    torch.testing.assert_close(layer(x), source(x), rtol=1e-5, atol=1e-5)
    layer.cache_weights = True
    layer.forget_prepared()
    torch.testing.assert_close(layer(x), source(x), rtol=1e-5, atol=1e-5)


def test_a_token_of_a_convolution_is_one_position() -> None:
    source = nn.Conv2d(8, 4, 1, bias=False)
    quantizer = ActivationQuantizer(parse("int4 token dynamic"))
    weight = quantized("int8 channel", source.weight.detach().flatten(1))
    layer = QuantConv2d.from_quantized(weight, None, ConvGeometry.of(source), options=Options(quantizer))
    x = inputs(2, 8, 3, 5)
    rows = quantizer(x.movedim(1, -1)) @ weight.dequantize().T
    torch.testing.assert_close(layer(x), rows.movedim(-1, 1))
    with pytest.raises(InputError, match="8 channels"):
        layer(x[:, :4])


def test_online_operations_run_before_the_input_quantizer() -> None:
    w, x = weights(8, 48), inputs(4, 48)
    rotate = OnlineOperation("hadamard", (("size", 12), ("seed", 3)))
    weight = quantized("int8 channel", apply_hadamard(w, 12, 3))
    layer = QuantLinear.from_quantized(weight, options=Options(online=(rotate,)))
    torch.testing.assert_close(layer(x), x @ w.T, rtol=0, atol=0.15)
    quantizer = ActivationQuantizer(parse("int4 token dynamic"))
    both = QuantLinear.from_quantized(weight, options=Options(quantizer, (rotate,)))
    assert_runs_as(both, x, quantizer(apply_hadamard(x, 12, 3)) @ weight.dequantize().T)
    unknown = QuantLinear.from_quantized(weight, options=Options(online=(OnlineOperation("hadamrd", ()),)))
    with pytest.raises(InputError, match="hadamard"):
        unknown(x)


def test_modules_that_quantize_their_input_only() -> None:
    w, x = weights(6, 16), inputs(5, 16)
    quantizer = ActivationQuantizer(parse("int8 token dynamic"))
    expected = quantizer(x) @ w.T
    options = Options(quantizer)
    torch.testing.assert_close(QuantLinear.from_float(w, options=options)(x), expected)
    turned = QuantLinear.from_float(w.T.contiguous(), options=options, transposed=True)
    torch.testing.assert_close(turned(x), expected)
    conv = QuantConv2d.from_float(w.view(6, 16, 1, 1), None, ConvGeometry((1, 1)), options=options)
    torch.testing.assert_close(conv(x.T.reshape(1, 16, 5, 1)), expected.T.reshape(1, 6, 5, 1))


def test_static_input_parameters() -> None:
    x = inputs(7, 10) + 1
    for text, size in (("int8 tensor", 1), ("int8 tensor asym", 1), ("int8 channel asym", 10), ("e4m3 tensor", 1)):
        fmt = parse(text)
        low, high = (x.min().view(1), x.max().view(1)) if size == 1 else (x.amin(0), x.amax(0))
        quantizer = ActivationQuantizer.of(fmt, low, high)
        assert quantizer.scale is not None
        assert quantizer.scale.numel() == size
        assert float((quantizer(x) - x).abs().max()) < (0.03 if "int8" in text else 0.3)
        step = (high.clamp(min=0) - low.clamp(max=0)) / 255 if fmt.asymmetric else None
        if step is not None:
            torch.testing.assert_close(quantizer.scale, step, rtol=1e-3, atol=0)
    with pytest.raises(InputError, match="calibrated scale"):
        ActivationQuantizer(parse("int8 tensor"))
    with pytest.raises(InputError, match="drop the scale"):
        ActivationQuantizer(parse("int8 token dynamic"), torch.ones(1))
    with pytest.raises(InputError, match="zero point"):
        ActivationQuantizer(parse("int8 tensor asym"), torch.ones(1))
    with pytest.raises(InputError, match="1 or 10"):
        ActivationQuantizer(parse("int8 channel"), torch.ones(3))(x)


def test_dynamic_inputs_are_measured_per_token_group_or_call() -> None:
    x = inputs(6, 32)
    x[2] *= 100
    token = ActivationQuantizer(parse("int8 token dynamic"))
    whole = ActivationQuantizer(parse("int8 tensor dynamic"))
    group = ActivationQuantizer(parse("int8 g8 dynamic"))
    assert torch.equal(token(x)[:2], token(x[:2]))
    assert not torch.equal(whole(x)[:2], whole(x[:2]))
    errors = [float((quantizer(x) - x).square().mean()) for quantizer in (whole, token, group)]
    assert errors == sorted(errors, reverse=True)
    assert token(x[:0]).shape == (0, 32)


def test_wrong_sizes_are_refused() -> None:
    layer = QuantLinear.from_quantized(quantized("int4 g32", weights()))
    with pytest.raises(InputError, match="70 channels, not 69"):
        layer(inputs(2, 69))
    static = ActivationQuantizer(parse("int8 channel"), torch.ones(3))
    with pytest.raises(InputError, match="do not fit 70 channels"):
        QuantLinear.from_quantized(quantized("int4 g32", weights()), options=Options(static))
