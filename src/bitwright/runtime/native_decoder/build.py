"""Put the compiled network together: weights into one arena in the order in which a step reads them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Codes
from bitwright.native import extension, require_library
from bitwright.native.arena import Arena
from bitwright.native.buffers import Span, float_code, span
from bitwright.native.linear import NativeWeight
from bitwright.native.product import AdditiveWeight, Product, TernaryWeight, Way
from bitwright.runtime.dispatch import UnsupportedError
from bitwright.runtime.embedding import QuantEmbedding
from bitwright.runtime.kernels.linear import native
from bitwright.runtime.linear import QuantLinear
from bitwright.runtime.native_decoder.cache import FLOATS, CacheForm
from bitwright.runtime.native_decoder.plan import (
    ACTIVATIONS,
    LayerPart,
    MatrixPart,
    NormPart,
    NotServedError,
    Plan,
    RotaryPart,
    placed,
)

_DENSE = {torch.float32: "dense/fp32", torch.float16: "dense/fp16", torch.bfloat16: "dense/bf16"}


@dataclass(eq=False)
class NativeNetwork:
    """A compiled network.

    Attributes:
        handle: the compiled object. kept: tensors that it reads. kernels: what serves each linear layer, by path.
        bytes_per_token: bytes of weights that a decoded token reads. exact: activations are multiplied as they are.
        cache: how keys and values are kept.
    """

    plan: Plan
    cache: CacheForm
    handle: Any
    kept: list[Tensor]
    kernels: dict[str, str]
    bytes_per_token: int
    exact: bool


def build(plan: Plan, cache: CacheForm = FLOATS, instruction_set: str | None = None) -> NativeNetwork:
    """Build the compiled network of a plan.

    Raises:
        NotServedError: if no compiled kernel serves a layer.
        InputError: without compiled kernels.
    """
    return Builder(plan, cache, instruction_set).network()


@dataclass(eq=False)
class Builder:
    """Makes one network; matrices, norms and tables that several layers share are held once."""

    plan: Plan
    cache: CacheForm = FLOATS
    instruction_set: str | None = None
    arena: Arena = field(default_factory=Arena)
    kept: list[Tensor] = field(default_factory=list)
    kernels: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    exact: bool = True
    _known: dict[Any, int] = field(default_factory=dict)

    def network(self) -> NativeNetwork:
        """Put everything together."""
        plan = self.plan
        sizes = (plan.hidden, plan.vocabulary, plan.heads, plan.kv_heads, plan.head_dim, plan.context)
        try:
            self.handle = extension().Network(require_library(self.instruction_set), *sizes)
            for layer in plan.layers:
                self._layer(layer)
            head = self._matrix(plan.head)
            before, served = self.bytes, dict(self.kernels)
            embedding = self._embedding(plan.embedding)
            # Of a table that is no head one row is read.
            self.bytes = before if embedding == head else before + (self.bytes - before) // plan.vocabulary
            served.setdefault(plan.embedding.path, self.kernels[plan.embedding.path])
            final = self._norm(plan.final_norm)
            self.handle.finish(embedding, plan.embedding_factor, final, head, plan.logit_factor, plan.logit_cap)
        except ValueError as error:
            raise NotServedError(str(error)) from error
        return NativeNetwork(plan, self.cache, self.handle, self.kept, served, self.bytes, self.exact)

    def _layer(self, layer: LayerPart) -> None:
        attention, feed = layer.attention, layer.feed
        qkv = [self._matrix(part) for part in attention.group]
        output = self._matrix(layer.output)
        readers = [self._matrix(part) for part in feed.group]
        down = self._matrix(feed.down)
        slots = (attention.query, attention.key, attention.value, feed.gate, feed.up or feed.gate)
        norms = (layer.norm, attention.query_norm, attention.key_norm)
        whole = [
            *(self._norm(part) for part in norms), self._rotary(attention.rotary), attention.window,
            output, self._norm(layer.output_norm), self._norm(layer.feed_norm),
            int(feed.up is not None), ACTIVATIONS.index(feed.activation), down, self._norm(layer.down_norm),
        ]  # fmt: skip
        numbers = [attention.scale, attention.cap, layer.output_factor, layer.down_factor]
        self.handle.layer(qkv, readers, [(slot.matrix, slot.at) for slot in slots], whole, numbers)

    def _matrix(self, part: MatrixPart) -> int:
        if part.weight is None:
            return self._packed(part)
        return self._dense(part, part.weight)

    def _packed(self, part: MatrixPart) -> int:
        module = part.module
        assert isinstance(module, QuantLinear)
        if module.online or module.input_format is not None or module.weight_meta is None:
            raise NotServedError(f"{part.path} changes its input (an online transform, or a format of activations)")
        request = replace(module.request(torch.float32, 1, torch.device("cpu")), keep_dense=False)
        try:
            choice = placed(module.table).choose(request)
        except UnsupportedError as error:
            usual = module.table.choose(request).kernel.name
            raise NotServedError(f"{part.path} runs on {usual}, which has no place in the compiled step") from error
        prepared = module.prepared_by(choice, torch.float32)
        moved: NativeWeight | Product
        if isinstance(prepared, NativeWeight):
            moved = self._moved(prepared)
            product = Product(Way.INT8 if choice.kernel.name == native.ROUNDED.name else Way.EXACT, moved)
        elif isinstance(prepared, Product) and prepared.terms is None and not prepared.vectors:
            moved = product = self._moved_product(prepared)
        else:
            raise NotServedError(f"{part.path} runs on {choice.kernel.name}, which has no place in the compiled step")
        module.keep_prepared(choice, torch.float32, moved)
        self.exact = self.exact and product.way == Way.EXACT
        self.kernels[part.path] = choice.kernel.name
        self.bytes += product.bytes()
        return self._product(product, span(self._floats(part.bias)))

    def _product(self, product: Product, bias: Span) -> int:
        weight, tables = product.weight, product.tables
        assert not isinstance(weight, AdditiveWeight)
        if isinstance(weight, TernaryWeight):
            parts = span(weight.codes), span(weight.scale), float_code(weight.scale.dtype), weight.triples
            return int(self.handle.ternary(extension().TernaryWeight(*weight.shape, *parts), bias))
        handle = weight.handle()
        if product.way == Way.LOOKUP:
            assert tables is not None
            spans = span(tables.low), span(tables.high)
            made = extension().ByteTables(handle, *spans, tables.by_row, tables.offset, tables.step)
            return int(self.handle.lookup(handle, made, bias))
        if product.way == Way.BF16:
            return int(self.handle.halves(handle, span(product.levels, torch.bfloat16), bias))
        return int(self.handle.packed(handle, bias, product.way == Way.EXACT))

    def _moved(self, weight: NativeWeight) -> NativeWeight:
        """The same weight in the arena."""
        codes, scale = self._in_arena(weight.codes), self._in_arena(weight.scale)
        assert codes is not None
        assert scale is not None
        return replace(
            weight, codes=codes, scale=scale, zero=self._in_arena(weight.zero), table=self._in_arena(weight.table)
        )

    def _moved_product(self, product: Product) -> Product:
        weight, tables = product.weight, product.tables
        assert not isinstance(weight, AdditiveWeight)
        moved: NativeWeight | TernaryWeight
        if isinstance(weight, NativeWeight):
            moved = self._moved(weight)
        else:
            codes, scale = self._in_arena(weight.codes), self._in_arena(weight.scale)
            assert codes is not None
            assert scale is not None
            moved = replace(weight, codes=codes, scale=scale)
        if tables is not None:
            low = self._in_arena(tables.low)
            assert low is not None
            tables = replace(tables, low=low, high=self._in_arena(tables.high))
        return replace(product, weight=moved, tables=tables, levels=self._in_arena(product.levels))

    def _in_arena(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        place = self.arena.take(max(tensor.nbytes, 1))[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self.kept.append(place.copy_(tensor))
        return place

    def _dense(self, part: MatrixPart, weight: Tensor) -> int:
        key = (weight.data_ptr(), tuple(weight.stride()), None if part.bias is None else part.bias.data_ptr())
        if key not in self._known:
            values = shortest(weight).contiguous()
            if values.data_ptr() == weight.data_ptr():
                self.kept.append(values)  # the model holds it anyway
            else:
                moved = self._in_arena(values)
                assert moved is not None
                values = moved
            self.bytes += values.nbytes
            bias = span(self._floats(part.bias))
            self._known[key] = int(self.handle.dense(*part.shape, span(values), float_code(values.dtype), bias))
            self.kernels[part.path] = _DENSE[values.dtype]
        self.kernels.setdefault(part.path, "shared")
        return self._known[key]

    def _embedding(self, part: MatrixPart) -> int:
        module = part.module
        if part.weight is not None:
            return self._dense(part, part.weight)
        assert isinstance(module, QuantEmbedding)
        packed = module.packed()
        terms = () if packed is None else packed.unpack().terms
        if len(terms) == 1 and isinstance(terms[0], Codes) and native.serves(terms[0]):
            weight = self._moved(native.native_weight(terms[0]))
            self.kernels[part.path] = "embedding/native"
            self.bytes += weight.bytes()
            return int(self.handle.packed(weight.handle(), span(None), True))
        return self._dense(part, module.dequantized(torch.float32))

    def _norm(self, part: NormPart | None) -> int:
        if part is None:
            return -1
        key = (part.path, "norm")
        if key not in self._known:
            gain, shift = self._floats(part.gain), self._floats(part.shift)
            self._known[key] = int(self.handle.norm(part.gain.numel(), span(gain), span(shift), part.eps, part.centred))
        return self._known[key]

    def _rotary(self, part: RotaryPart | None) -> int:
        if part is None:
            return -1
        key = id(part)
        if key not in self._known:
            cosine, sine = self._floats(part.cosine), self._floats(part.sine)
            assert cosine is not None
            self._known[key] = int(self.handle.rotary(*cosine.shape, span(cosine), span(sine), part.interleaved))
        return self._known[key]

    def _floats(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else self._in_arena(tensor.detach().float().contiguous())


def shortest(weight: Tensor) -> Tensor:
    """The weight in 16 bits where that changes no value, else in fp32.

    Raises:
        InputError: for a weight that is no float.
    """
    if not weight.is_floating_point():
        raise InputError(f"a float matrix was expected, not {weight.dtype}")
    if weight.dtype in (torch.float16, torch.bfloat16):
        return weight
    weight = weight.float()
    for dtype in (torch.bfloat16, torch.float16):
        short = weight.to(dtype)
        if torch.equal(short.float(), weight):
            return short
    return weight
