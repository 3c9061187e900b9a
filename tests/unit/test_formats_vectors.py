"""Grids of vectors: words, the lattice of E8P, additive codebooks, their searches, files and refusals."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from bitwright.errors import InputError
from bitwright.formats import AdditiveGrid, Codes, Grid, LatticeGrid, LowRank, QuantizedTensor, Scale, lloyd_max, parse
from bitwright.formats.lattice import base_points, e8_points, e8p_points, sign_changes
from bitwright.formats.packing import pack
from bitwright.formats.search import beam_search, nearest_e8p
from bitwright.formats.vectors import join_words, split_words

LATTICES = [LatticeGrid(bits) for bits in (2, 3, 4)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coded(text: str, w: torch.Tensor) -> Codes:
    """``w`` in any format of vectors, with codebooks of random entries."""
    fmt = parse(text)
    if not fmt.learned:
        return fmt.quantize(w)
    shape = (int(w.shape[0]), int(w.shape[1]))
    layout, book = fmt.granularity.layout(shape), fmt.codebook_shape(shape)
    assert book is not None
    codebook = normal(*book, seed=5).to(torch.float16)
    scale = fmt.store_scale(layout.split(w).square().mean(-1).sqrt())
    codes = layout.join(fmt.encode(layout.split(w), scale.effective, None, codebook))
    return Codes(codes, fmt, scale, None, codebook)


@pytest.mark.parametrize(("span", "bits"), [(8, 2), (8, 1), (4, 3), (8, 7), (5, 8), (2, 1)])
def test_words_are_the_bytes_of_packed_rows(span: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(span * bits)
    words = torch.randint(0, 1 << span * bits, (3, 8), generator=generator)
    codes = split_words(words, span, bits)
    assert codes.dtype == torch.uint8
    assert codes.shape == (3, 8 * span)
    assert int(codes.max()) < 1 << bits
    assert torch.equal(join_words(codes, span, bits), words)
    stream = [sum(int(w) << k * span * bits for k, w in enumerate(row)) for row in words]
    packed = [int.from_bytes(bytes(row.tolist()), "little") for row in pack(codes, bits)]
    assert packed == stream


def test_the_base_points_are_the_short_vectors_of_the_lattice() -> None:
    base = base_points()
    assert base.shape == (256, 8)
    length = base.square().sum(1)
    assert {float(v): int((length == v).sum()) for v in length.unique()} == {
        2: 1, 4: 8, 6: 28, 8: 64, 10: 126, 12: 29,
    }  # fmt: skip
    assert bool((base.sum(1) % 2 == 0).all())
    assert bool(((base - 0.5) % 1 == 0).all())
    assert len(base.abs().unique(dim=0)) == 256
    # All patterns up to length 10 are there: counted by hand from 1/2, 3/2 and 5/2.
    short = [p for p in itertools.product((0.5, 1.5, 2.5, 3.5), repeat=8) if sum(v * v for v in p) <= 10]
    assert len(short) == 227 == int((length <= 10).sum())


def test_e8p_has_65536_points_of_the_shifted_lattice() -> None:
    points = e8p_points()
    assert len(points.unique(dim=0)) == 65536
    whole = points - torch.tensor([0.25, -0.25]).repeat_interleave(32768).unsqueeze(1)
    assert bool((whole.sum(1) % 2 == 0).all())
    assert bool((whole % 1 == 0.5).all())
    # Less 1/4, every point is one of E8: integers or halves of odd ones, with an even sum.
    lattice = points - 0.25
    assert bool(((lattice % 1 == 0).all(1) | (lattice % 1 == 0.5).all(1)).all())
    assert bool((lattice.sum(1) % 2 == 0).all())
    assert bool((sign_changes().prod(1) == 1).all())


def test_the_residual_codebook_holds_the_shortest_vectors_of_e8() -> None:
    points = e8_points()
    length = points.square().sum(1)
    assert len(points.unique(dim=0)) == 256
    assert [int((length == v).sum()) for v in (0, 2, 4)] == [1, 240, 15]
    assert bool((points.sum(1) % 2 == 0).all())
    assert bool(((points % 1 == 0).all(1) | (points % 1 == 0.5).all(1)).all())


def test_nearest_e8p_is_that_of_a_search_of_all_points() -> None:
    points = e8p_points()
    x = torch.cat([normal(400, 8), normal(100, 8, seed=1) * 5, torch.zeros(1, 8), points[::701]])
    code = nearest_e8p(x, base_points()).to(torch.int64)
    distance = torch.cdist(x.double(), points.double())
    best = distance.min(1).values
    assert float((distance.gather(1, code.unsqueeze(1)).squeeze(1) - best).abs().max()) < 1e-6
    assert torch.equal(code[-len(points[::701]) :], torch.arange(0, 65536, 701))
    second = distance.topk(2, largest=False).values
    clear = second[:, 1] - second[:, 0] > 1e-5
    assert torch.equal(code[clear], distance.argmin(1)[clear])


def test_e8p_beats_scalars_of_equal_size_on_normal_weights() -> None:
    """Per weight: 0.117 for the best two-bit scalars, about 0.09 for E8P (QuIP#, figure 3), and its residual forms."""
    x = normal(4096, 8)
    error = {}
    for grid in LATTICES:
        error[grid.bits] = min(float((grid.round(x / s) * s - x).square().mean()) for s in (0.92, 0.97, 1.02))
    scalar = {}
    for bits in (2, 3, 4):
        levels = torch.tensor(lloyd_max(bits))
        nearest = levels[(x.unsqueeze(-1) - levels).abs().argmin(-1)]
        scalar[bits] = float((nearest - x).square().mean())
    assert error[2] < 0.094 < 0.11 < scalar[2]
    assert error[3] < scalar[3]
    assert error[4] < 0.0105
    assert error[2] > error[3] > error[4]


@pytest.mark.parametrize("grid", LATTICES, ids=lambda g: g.text)
def test_lattice_codes_survive_and_are_whole_steps_of_a_byte(grid: LatticeGrid) -> None:
    assert isinstance(grid, Grid)
    generator = torch.Generator().manual_seed(grid.bits)
    words = torch.randint(0, 1 << 8 * grid.bits, (5000,), generator=generator)
    codes = split_words(words, 8, grid.bits).view(50, -1)
    value = grid.decode(codes)
    steps = value * grid.steps
    assert float((steps - steps.round()).abs().max()) < 1e-4
    assert float(steps.abs().max()) <= 127
    assert float(value.abs().max()) <= float(torch.tensor(grid.max_level)) == float(torch.tensor(-grid.min_level))
    if grid.bits == 2:
        assert torch.equal(grid.encode(value), codes)
        assert torch.equal(value.view(-1, 8), e8p_points()[words])
    assert torch.equal(grid.round(value), grid.decode(grid.encode(value)))


def brute_force(x: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
    """The best sum of entries for every vector, in float64."""
    tuples = torch.tensor(list(itertools.product(range(books.shape[1]), repeat=len(books))))
    sums = sum(books[m].double()[tuples[:, m]] for m in range(len(books)))
    return tuples[torch.cdist(x.double(), sums).argmin(1)]


def test_a_wide_beam_finds_the_best_sum_and_a_narrow_one_does_not_do_better() -> None:
    x, books = normal(200, 4), normal(3, 8, 4, seed=2)
    errors = {}
    for beam in (1, 2, 8, 64):
        index = beam_search(x, books, beam).to(torch.int64)
        total = sum(books[m][index[:, m]] for m in range(3))
        errors[beam] = (x - total).square().sum(1)
    best = brute_force(x, books)
    exact = (x - sum(books[m][best[:, m]] for m in range(3))).square().sum(1)
    assert torch.allclose(errors[64], exact, atol=1e-5)
    assert float(errors[1].mean()) > float(errors[8].mean()) > float(exact.mean()) - 1e-5


def test_one_codebook_is_searched_exactly_and_the_first_of_equals_wins() -> None:
    x, book = normal(100, 8), normal(1, 256, 8, seed=3)
    assert torch.equal(beam_search(x, book).long(), brute_force(x, book))
    twice = torch.cat([book, book], 1)
    assert torch.equal(beam_search(x, twice), beam_search(x, book))
    assert torch.equal(beam_search(x, twice, 4), beam_search(x, book))
    assert beam_search(x[:0], book).shape == (0, 1)


TEXTS = ["e8p channel", "e8p g64", "e8p3 g32", "e8p4 tensor", "vq2x8d8 channel", "vq1x8d8 g16 scale=fp32", "vq3x4d4 g8"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_matrix_of_vectors_is_saved_in_exactly_its_bits(text: str) -> None:
    w = normal(12, 96) * 0.03
    q = QuantizedTensor((coded(text, w),))
    assert q.normal_form == "vector"
    assert str(parse(text)) == text
    tensors, meta = q.to_tensors()
    assert 8 * sum(t.numel() * t.element_size() for t in tensors.values()) == q.storage_bits()
    again = QuantizedTensor.from_tensors(tensors, json.loads(json.dumps(meta)))
    assert torch.equal(again.dequantize(), q.dequantize())
    assert float((q.dequantize() - w).square().mean()) < float(w.square().mean())


def test_bits_of_vectors_by_hand() -> None:
    assert parse("e8p").bits_per_weight((512, 1024)) == 2 + 16 / 1024
    assert parse("e8p3 g64").bits_per_weight((512, 1024)) == 3 + 16 / 64
    books = 2 * 256 * 8 * 16 / (512 * 1024)
    assert parse("vq2x8d8").bits_per_weight((512, 1024)) == 2 + 16 / 1024 + books


def test_additive_codes_are_sums_of_entries() -> None:
    grid = AdditiveGrid(2, 8, 8)
    books = normal(2, 256, 8).to(torch.float16)
    index = torch.randint(0, 256, (6, 2), generator=torch.Generator().manual_seed(1))
    codes = split_words(grid.words(index), 8, 2).view(3, 16)
    expected = books[0].float()[index[:, 0]] + books[1].float()[index[:, 1]]
    assert torch.equal(grid.decode_with(codes, books).view(-1, 8), expected)
    assert torch.equal(grid.indices(grid.words(index)), index)
    # A row of packed codes is the row of its indices, a byte each.
    assert torch.equal(pack(codes, 2).view(-1, 2).long(), index)


@pytest.mark.parametrize(
    "text",
    ["vq2x7d8", "vq1x8d3", "vq9x8d8", "vq1x17d17", "vq0x8d8", "vq1x8d64", "vq8x8d8", "e8p g12", "e8p b4", "e8p asym",
     "e8p g64 axis=0", "e8p channel axis=1", "vq2x8d8 block4x4", "e8p scale=none", "e8p2", "vq2x8d8 asym"],
)  # fmt: skip
def test_impossible_vectors_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse(text)


def test_matrices_that_cut_a_vector_or_lack_a_codebook_are_refused() -> None:
    w = normal(4, 20)
    with pytest.raises(InputError, match="8 neighbouring weights"):
        parse("e8p").quantize(w)
    with pytest.raises(InputError, match="8 neighbouring weights"):
        parse("vq2x8d8").storage_bits((4, 20))
    with pytest.raises(InputError, match="learned codebook"):
        parse("vq2x8d8").quantize(normal(4, 16))
    term = coded("vq2x8d8", normal(4, 16))
    with pytest.raises(InputError, match="codebook"):
        Codes(term.codes, term.format, term.scale)
    assert term.codebook is not None
    with pytest.raises(InputError, match="codebook"):
        Codes(term.codes, term.format, term.scale, None, term.codebook[:1])
    for refused in (AdditiveGrid(2, 8, 8).levels, LatticeGrid().levels):
        with pytest.raises(InputError):
            refused()
    with pytest.raises(InputError):
        LatticeGrid(5)


def test_damaged_files_of_vectors_are_refused() -> None:
    tensors, meta = QuantizedTensor((coded("vq2x8d8", normal(4, 16)),)).to_tensors()
    for change in (
        {"codebook": tensors["codebook"][:, :255]},
        {"codebook": tensors["codebook"].float()},
        {"codebook": tensors["codebook"].index_fill(0, torch.tensor([0]), float("nan"))},
        {"codes": tensors["codes"][:, :3]},
    ):
        with pytest.raises(InputError):
            QuantizedTensor.from_tensors({**tensors, **change}, meta)
    with pytest.raises(InputError):
        QuantizedTensor.from_tensors(tensors, {**meta, "shape": [4, 12]})


def test_a_vector_term_goes_with_others() -> None:
    w = normal(8, 32)
    term = coded("e8p g16", w)
    low = LowRank(normal(8, 2).half(), normal(2, 32).half())
    q = QuantizedTensor((term, low))
    assert q.normal_form == "vector+lowrank"
    assert torch.allclose(q.dequantize(), term.dequantize() + low.dequantize())
    assert isinstance(term.scale, Scale)
