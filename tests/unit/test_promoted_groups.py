"""Groups of 2 bits of which the widest have 4: format, choice, files and products."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import Codes, Groups, QuantizedTensor, parse
from bitwright.formats.saving import check_tensors
from bitwright.native import instruction_sets, unavailable
from bitwright.native.product import Coding, multiply
from bitwright.runtime import ActivationQuantizer, QuantLinear
from bitwright.runtime.dispatch import Table
from bitwright.runtime.kernels.linear import reference, variants
from bitwright.runtime.kernels.linear.coding import coding_for
from bitwright.runtime.module import Options
from bitwright.stages.promoting import promoted, widest_groups
from tests.unit.native_samples import packed, random, with_terms
from tests.unit.test_native_product import product

SETS = instruction_sets() if unavailable() is None else ()


def weights(out: int = 35, columns: int = 256, seed: int = 0) -> Tensor:
    """Groups of very different ranges, as single large weights make them."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(out, columns, generator=generator)
    spread = torch.randn(out, columns // 16, 1, generator=generator).exp()
    return (w.view(out, -1, 16) * spread).view(out, columns)


def error(q: QuantizedTensor, w: Tensor) -> float:
    return float((q.dequantize() - w).square().mean())


def test_a_promoted_group_is_an_integer_of_four_bits() -> None:
    """Closed form: chosen groups are those of int4, the others those of int2, to the bit."""
    w = weights()
    q = promoted(w, 32, 2)
    which = widest_groups(w, 32, 2)
    chosen = torch.zeros(35, 8, dtype=torch.bool).scatter(1, which.long(), True).repeat_interleave(32, 1)
    two, four = (parse(f"int{bits} g32 asym").quantize(w).dequantize() for bits in (2, 4))
    assert torch.equal(q.dequantize(), torch.where(chosen, four, two))
    assert q.normal_form == "affine+groups"
    g = w.view(35, 8, 32)
    ranges = g.amax(-1) - g.amin(-1)
    assert torch.equal(which, ranges.topk(2, dim=1).indices.sort(1).values.int())


def test_stored_bits_by_hand_and_from_files() -> None:
    for size, count in ((16, 3), (32, 1), (64, 4)):
        w = weights()
        q = promoted(w, size, count)
        tensors, meta = q.to_tensors()
        groups = 256 // size
        # Codes, fp16 scales and 2-bit zero points (a stream that ends on a byte); a byte for each chosen group.
        by_hand = 2 * 256 * 35 + 16 * 35 * groups + -(-2 * 35 * groups // 8) * 8
        by_hand += 35 * count * (2 * size + 16 + 8) + -(-2 * 35 * count // 8) * 8
        assert q.storage_bits() == by_hand == 8 * sum(t.nbytes for t in tensors.values())
        back = QuantizedTensor.from_tensors(tensors, meta)
        assert torch.equal(back.dequantize(), q.dequantize())
        assert torch.equal(back.terms[1].which, q.terms[1].which)  # type: ignore[union-attr]
        check_tensors(tensors, meta)
        # As many bytes in every row: nothing but the count decides where a row lies.
        assert tensors["groups.codes"].shape == (35, count * size // 4)


def test_the_widest_groups_beat_random_ones_and_two_bits() -> None:
    """At equal bits random groups lose; so do 2 bits everywhere, with smaller groups up to more bits than these."""
    for seed in range(5):
        w = weights(64, 512, seed)
        q = promoted(w, 32, 4)
        noise = torch.rand(64, 16, generator=torch.Generator().manual_seed(seed))
        drawn = promoted(w, 32, 4, noise.topk(4, dim=1).indices.sort(1).values.int())
        assert drawn.storage_bits() == q.storage_bits()
        assert error(q, w) < 0.7 * error(drawn, w)
        plain, finer = (QuantizedTensor((parse(f"int2 {text} asym").quantize(w),)) for text in ("g32", "g16"))
        assert plain.bits_per_weight < q.bits_per_weight < finer.bits_per_weight + 0.3
        assert error(q, w) < error(finer, w) < error(plain, w)


def test_what_does_not_fit_is_refused() -> None:
    w = weights()
    for size, count in ((48, 1), (32, 0), (32, 9), (0, 1)):
        with pytest.raises(InputError):
            promoted(w, size, count)
    q = promoted(w, 32, 2)
    term = q.terms[1]
    assert isinstance(term, Groups)
    for which in (term.which.flip(1), term.which + 8, term.which[:, :1], term.which.long()):
        with pytest.raises(InputError):
            Groups(term.codes, which, 32, term.shape)
    tensors, meta = q.to_tensors()
    for name, wrong in (
        ("groups.which", tensors["groups.which"].flip(1)),
        ("groups.which", tensors["groups.which"].int()),
    ):
        with pytest.raises(InputError):
            QuantizedTensor.from_tensors({**tensors, name: wrong}, meta)
    with pytest.raises(InputError):
        QuantizedTensor.from_tensors(tensors, {**meta, "terms": [meta["terms"][0], {**meta["terms"][1], "count": 3}]})


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_products_are_exact(name: str, size: int) -> None:
    """Scales of powers of two and whole activations: equal to the last bit."""
    generator = torch.Generator().manual_seed(size)
    for out, columns in ((35, 256), (16, 512)):
        q = promoted(weights(out, columns, size), size, 2)
        terms = []
        for term in q.terms:
            codes = term.codes if isinstance(term, Groups) else term
            assert isinstance(codes, Codes)
            scale = codes.format.store_scale(codes.scale.effective.log2().round().exp2())
            made = replace(codes, scale=scale)
            terms.append(replace(term, codes=made) if isinstance(term, Groups) else made)
        weight = QuantizedTensor(tuple(terms))
        made_product = variants.int8_product(weight)
        for rows in (1, 2, 9):
            x = torch.randint(-128, 128, (rows, columns), generator=generator).float()
            x[0] = 127
            coding = Coding(columns, -128, 127, 127.5, given=True)
            wanted = x.double() @ weight.dequantize().double().T
            got = product(name, made_product, x, coding=coding).double()
            torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", SETS)
def test_products_with_other_terms_and_zero_points(name: str) -> None:
    weight = with_terms(promoted(weights(), 32, 2))
    made = variants.CodedProduct(variants.int8_product(weight), packed(weight))
    for words in ("int8 token dynamic", "int8 token asym dynamic", "int8 g64 dynamic"):
        for rows in (1, 6):
            x = random(rows, 256, seed=rows) + 0.3
            quantizer = ActivationQuantizer(parse(words))
            coding = coding_for(quantizer, x)
            wanted = quantizer(x).double() @ weight.dequantize().double().T
            got = product(name, made.for_coding(coding), x, coding=coding).double()
            torch.testing.assert_close(got, wanted, rtol=0, atol=8e-6 * float(wanted.abs().max()))


@pytest.mark.skipif(not SETS, reason=str(unavailable()))
def test_layers_are_served_and_wrong_parts_refused() -> None:
    weight, x = promoted(weights(), 32, 2), random(5, 256)
    plain = QuantLinear.from_quantized(weight, options=Options(table=Table((reference.KERNEL,))))(x)
    rounded = QuantLinear.from_quantized(weight, options=Options(exact=False))
    assert rounded.served(rows=4).kernel.name == "linear/native-groups"
    assert float((rounded(x) - plain).norm() / plain.norm()) < 1e-2
    coded = QuantLinear.from_quantized(weight, options=Options(input=ActivationQuantizer(parse("int8 token dynamic"))))
    assert coded.served(rows=4).kernel.name == "linear/native-coded-groups"
    made = variants.int8_product(weight)
    assert made.terms is not None
    assert made.terms.which is not None
    assert made.terms.chosen is not None
    for terms in (
        replace(made.terms, which=made.terms.which + 8),
        replace(made.terms, which=made.terms.which - 9),
        replace(made.terms, which=made.terms.which[:, :1].contiguous()),
        replace(made.terms, chosen=replace(made.terms.chosen, codes=made.terms.chosen.codes[:-1])),
    ):
        with pytest.raises((InputError, ValueError)):
            multiply(x, replace(made, terms=terms))
    assert Fraction(weight.storage_bits(), 8).denominator == 1
