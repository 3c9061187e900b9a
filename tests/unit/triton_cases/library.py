"""The operators as torch sees them: shapes without data, export, compile, and the checks of torch.library."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.formats import QuantizedTensor, parse
from bitwright.runtime import TABLE, Options, QuantLinear, Table
from bitwright.runtime.dispatch import UnsupportedError
from bitwright.runtime.kernels.hadamard.triton import run as rotate
from bitwright.runtime.kernels.linear.triton import KERNEL
from bitwright.runtime.kernels.triton import launch
from bitwright.runtime.kernels.triton.attend import Side, attend, side_of
from bitwright.runtime.kernels.triton.linear import coded_linear
from bitwright.runtime.kernels.triton.product import linear
from bitwright.runtime.kernels.triton.weight import TileWeight, tile_weight
from bitwright.runtime.manifest import CacheSide
from bitwright.runtime.states import StateCoder, States


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(device: torch.device, text: str = "int4 g32 asym") -> TileWeight:
    term = parse(text).quantize(random(24, 64).to(device))
    return tile_weight(term)


def side(device: torch.device, seed: int) -> Side:
    states = States(StateCoder(CacheSide(parse("int4 g8 asym")), TABLE), 2)
    states.append(random(1, 2, 10, 16, seed=seed).to(device))
    return side_of(states, torch.float32)


class Block(nn.Module):
    """A rotation, a coded product and attention over a coded cache."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.weight = weight(device)
        self.key, self.value = side(device, 1), side(device, 2)

    def forward(self, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        return linear(rotate(x, 32, 1), self.weight), attend(q, self.key, self.value, 0.25, True, 0, None)


def inputs(device: torch.device) -> tuple[Tensor, Tensor]:
    return random(2, 3, 64, seed=3).to(device), random(1, 4, 1, 16, seed=4).to(device)


def test_export_traces_shapes_and_keeps_the_operators(device: torch.device) -> None:
    block, given = Block(device), inputs(device)
    program = torch.export.export(block, given)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    for name in ("triton_linear", "triton_hadamard", "triton_attention"):
        assert f"bitwright.{name}.default" in called
    for found, wanted in zip(program.module()(*given), block(*given), strict=True):
        torch.testing.assert_close(found, wanted)


def test_any_number_of_tokens_is_exported_once(device: torch.device) -> None:
    block, given = Block(device), inputs(device)
    tokens = torch.export.Dim("tokens", min=2, max=64)
    program = torch.export.export(block, given, dynamic_shapes=({1: tokens}, None))
    x = random(2, 7, 64, seed=5).to(device)
    torch.testing.assert_close(program.module()(x, given[1])[0], block(x, given[1])[0])


def test_compile_takes_them_into_one_graph(device: torch.device) -> None:
    block, given = Block(device), inputs(device)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for found, wanted in zip(compiled(*given), block(*given), strict=True):
        torch.testing.assert_close(found, wanted)


def test_shapes_without_data() -> None:
    found = weight(torch.device("cpu"))
    x = torch.empty(5, 64, device="meta", dtype=torch.float16)
    parts = [t.to("meta") if t is not None else None for t in (found.tiles, found.scale, found.zero, found.table)]
    y = torch.ops.bitwright.triton_linear(x, *parts, None, 24, 32, 0, 8, 0, 0, 1.0, 0)
    assert (y.shape, y.dtype, y.device.type) == ((5, 24), torch.float16, "meta")
    assert torch.ops.bitwright.triton_hadamard(x, 64, -1, False).shape == (5, 64)


def test_the_operators_pass_torch_s_own_checks(device: torch.device) -> None:
    found = weight(device)
    x, q = inputs(device)
    key, value = side(device, 1), side(device, 2)
    checks = ("test_schema", "test_faketensor")
    levels = found.levels
    arguments = (
        x[0], found.tiles, found.scale, found.zero, found.table, None, 24, found.group, levels.kind, levels.center,
        levels.mantissa, found.scale_kind, found.factor, 1,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.bitwright.triton_linear, arguments, test_utils=checks)
    torch.library.opcheck(torch.ops.bitwright.triton_hadamard, (x, 64, 1, False), test_utils=checks)
    attention = (
        q, key.tail, value.tail, list(key.parts), list(value.parts), None, key.form, value.form, key.factor,
        value.factor, 0.25, True, 0, 1,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.bitwright.triton_attention, attention, test_utils=checks)


def test_a_wrong_device_is_named(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    x = random(1, 64)
    with pytest.raises(InputError, match="a weight on meta"):
        launch.check(coded_linear, x.to(device), None, torch.empty(1, device="meta"))
    monkeypatch.setattr(launch, "interpreted", lambda kernel: False)
    with pytest.raises(UnsupportedError, match="run on cuda, not on cpu"):
        linear(x, weight(torch.device("cpu")))


def test_an_old_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "interpreted", lambda kernel: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UnsupportedError, match=r"capability 8\.0; cuda:0 has 7\.5"):
        launch.check(coded_linear, _Activations())  # type: ignore[arg-type]


class _Activations:
    """What the check asks of activations, on a device that is not here."""

    dtype = torch.float16
    device = torch.device("cuda:0")


def test_a_module_prepares_its_weight_once_for_decoding_and_prompts(device: torch.device) -> None:
    kernel = replace(KERNEL, devices=frozenset({device.type}))
    term = parse("int4 g32 asym").quantize(random(24, 64))
    bias = random(24, seed=1)
    layer = QuantLinear.from_quantized(QuantizedTensor((term,)), bias, options=Options(table=Table((kernel,))))
    layer = layer.to(device)
    for tokens in (1, 30):
        x = random(tokens, 64, seed=2).to(device)
        wanted = x.cpu() @ term.dequantize().T + bias
        torch.testing.assert_close(layer(x).cpu(), wanted, rtol=1e-4, atol=1e-4)
    prepared = {id(found) for _, found in layer._served.values()}
    assert {rows for _, _, rows in layer._served} == {1, 32, None}  # None: what compiled graphs hold
    assert len(prepared) == 1
