"""Trellis codes against their definition bit by bit, all sequences of short runs, and normal weights."""

from __future__ import annotations

import itertools
import struct

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats import QuantizedTensor, TrellisGrid, lloyd_max, parse, trellis
from bitwright.formats.trellis import viterbi

SMALL = (TrellisGrid(1, "1mad", 6, 12), TrellisGrid(2, "3inst", 6, 6), TrellisGrid(3, "1mad", 7, 4),
         TrellisGrid(4, "3inst", 8, 3), TrellisGrid(3, "3inst", 8, 4))  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_state(grid: TrellisGrid, codes: list[int], column: int) -> int:
    """The last bits of the run's string of codes, read around, as a string of 0 and 1."""
    bits = "".join(f"{code:0{grid.bits}b}" for code in codes)
    end = (column + 1) * grid.bits
    return int((bits * 2 + bits[:end])[-grid.state_bits :], 2)


def plain_number(code: str, state: int) -> float:
    """What one state means, by Python's own integers and fp16."""
    if code == "1mad":
        return float(sum(((state * 34038481 + 76625530) % 2**32).to_bytes(4, "little")))
    word = (state * 89226354 + 64248484) % 2**32
    start = struct.unpack("<H", struct.pack("<e", 0.922))[0]
    halves = [(half & 0b1000111111111111) ^ start for half in (word % 2**16, word // 2**16)]
    return sum(struct.unpack("<e", struct.pack("<H", half))[0] for half in halves)


@pytest.mark.parametrize("code", ["1mad", "3inst"])
def test_what_a_state_means(code: str) -> None:
    grid = TrellisGrid(2, code)
    numbers = grid.numbers()
    for state in (0, 1, 2, 255, 256, 4097, 30000, 65535):
        assert float(numbers[state]) == plain_number(code, state)
    values = grid.values().double()
    assert len(values) == 65536
    assert abs(float(values.mean())) < 1e-6
    assert abs(float(values.square().mean()) - 1) < 1e-6
    mean, deviation = grid.normal()
    # Four independent even bytes, or two even mantissas with an even choice of four exponents and of the sign.
    wanted = (4 * 127.5, (4 * (256**2 - 1) / 12) ** 0.5) if code == "1mad" else (0.0, (2 * 0.7747) ** 0.5)
    assert abs(mean - wanted[0]) < 0.01 * wanted[1]
    assert abs(deviation / wanted[1] - 1) < 0.02


@pytest.mark.parametrize("grid", SMALL, ids=lambda grid: grid.text)
def test_columns_decode_by_themselves(grid: TrellisGrid) -> None:
    codes = torch.randint(0, 1 << grid.bits, (5, 3 * grid.span), generator=torch.Generator().manual_seed(1))
    levels, values = grid.decode(codes.to(torch.uint8)), grid.values()
    for row in range(5):
        for run in range(3):
            part = codes[row, run * grid.span : (run + 1) * grid.span].tolist()
            for column in range(grid.span):
                place = run * grid.span + column
                assert levels[row, place] == values[plain_state(grid, part, column)]


@pytest.mark.parametrize("grid", SMALL, ids=lambda grid: grid.text)
@pytest.mark.parametrize("weighted", [False, True])
def test_no_sequence_with_the_same_seam_is_better(grid: TrellisGrid, weighted: bool) -> None:
    x = random(8, 2 * grid.span, seed=2)
    importance = random(2 * grid.span, seed=3).exp() if weighted else None
    codes = viterbi(grid, x, importance)
    weight = torch.ones(2 * grid.span) if importance is None else importance
    everything = torch.tensor(list(itertools.product(range(1 << grid.bits), repeat=grid.span)), dtype=torch.uint8)
    levels = grid.decode(everything)
    seams = grid.states(everything)[:, -1] & ((1 << (grid.state_bits - grid.bits)) - 1)
    for row in range(8):
        for run in range(2):
            part = slice(run * grid.span, (run + 1) * grid.span)
            costs = ((x[row, part] - levels).double().square() * weight[part].double()).sum(1)
            found = int((everything == codes[row, part]).all(1).nonzero())
            same = costs[seams == seams[found]]
            assert float(costs[found]) <= float(same.min()) * (1 + 1e-6) + 1e-9


def test_the_seam_is_nearly_the_best_one() -> None:
    """Of all seams each alone gives its best run: the least of them is the best tail-biting run."""
    grid = TrellisGrid(2, "1mad", 8, 64)
    x = random(20, 64, seed=8)
    kept = 1 << (grid.state_bits - grid.bits)
    best = torch.full((20,), float("inf"))
    for seam in range(kept):
        start = torch.full((20, kept), float("inf"))
        start[:, seam] = 0
        ends, _ = trellis._forward(grid, x, torch.ones_like(x), start)
        best = torch.minimum(best, ends[:, seam])
    ours = (grid.decode(viterbi(grid, x)) - x).square().sum(1)
    assert bool((ours >= best * (1 - 1e-5)).all())
    assert float(ours.sum()) <= 1.01 * float(best.sum())


def test_long_runs_and_short_seams_cost_little() -> None:
    grid = TrellisGrid(2, "1mad", 8, 64)
    x = random(40, 64, seed=4)
    errors = [float((grid.decode(viterbi(grid, x, around=around)) - x).square().mean()) for around in (32, 16, 1)]
    assert errors[1] <= 1.01 * errors[0]
    assert errors[0] < errors[2]


def test_normal_weights_come_near_the_rate_distortion_bound() -> None:
    x = random(32, 1024, seed=5)
    scalar = torch.tensor(lloyd_max(2))
    nearest = scalar[(x.unsqueeze(-1) - scalar).abs().argmin(-1)]
    for code in ("1mad", "3inst"):
        grid = TrellisGrid(2, code)
        error = float((grid.round(x) - x).square().mean())
        # The bound is 1/16, E8P has 0.0915; QTIP gives 0.069 for both codes.
        assert 0.0625 < error < 0.073
        assert error < 0.65 * float((nearest - x).square().mean())
    finer = [float((TrellisGrid(bits).round(x[:4]) - x[:4]).square().mean()) for bits in (1, 2, 3, 4)]
    for bits, error in zip((1, 2, 3, 4), finer, strict=True):
        assert 4.0**-bits < error < 1.3 * 4.0**-bits


@pytest.mark.parametrize("text", ["trellis2", "trellis1-3inst channel", "trellis3 g256", "trellis4-3inst g512",
                                  "trellis2-l12-t128 g128", "trellis2 tensor"])  # fmt: skip
def test_text_storage_and_saving(text: str) -> None:
    fmt = parse(text)
    assert parse(str(fmt)) == fmt
    w = random(5, 512, seed=6) * 0.3
    codes = fmt.quantize(w)
    assert codes.kind == "trellis"
    whole = QuantizedTensor((codes,))
    tensors, meta = whole.to_tensors()
    assert whole.storage_bits() == 8 * sum(tensor.nbytes for tensor in tensors.values())
    assert tensors["codes"].shape == (5, 64 * fmt.grid.bits)
    back = QuantizedTensor.from_tensors(tensors, meta)
    assert torch.equal(back.dequantize(), whole.dequantize())
    assert float((whole.dequantize() - w).square().mean() / w.square().mean()) < 2.0 * 4.0**-fmt.grid.bits
    scale = codes.scale.effective
    layout = fmt.granularity.layout((5, 512))
    assert torch.equal(whole.dequantize(), fmt.grid.decode(codes.codes) * layout.expand(scale))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("trellis", "no trellis"),
        ("trellis5", "1 to 4 bits"),
        ("trellis2-hyb", "no trellis"),
        ("trellis2-l5", "6 to 16 bits"),
        ("trellis2-l17", "6 to 16 bits"),
        ("trellis2-t4", "does not hold"),
        ("trellis2 g128", "would cut"),
        ("trellis2 channel axis=1", "cuts across"),
        ("trellis2 asym", "belongs to integers"),
        ("trellis2 scale=none", "learned codebooks"),
    ],
)
def test_wrong_texts_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse(text)


def test_wrong_matrices_are_refused() -> None:
    fmt = parse("trellis2")
    with pytest.raises(InputError, match="neighbouring weights"):
        fmt.quantize(random(4, 300))
    with pytest.raises(InputError, match="NaN or Inf"):
        fmt.quantize(random(4, 256).fill_(float("nan")))
    with pytest.raises(InputError, match="finite"):
        fmt.grid.encode(random(1, 256).fill_(float("inf")))
    with pytest.raises(InputError, match="whole runs"):
        fmt.grid.decode(torch.zeros(1, 255, dtype=torch.uint8))
    with pytest.raises(InputError, match="no level of its own"):
        fmt.grid.levels()


def test_zeros_and_extremes() -> None:
    grid = TrellisGrid(2, "1mad", 8, 64)
    assert float(grid.round(torch.zeros(1, 64)).abs().max()) < 0.5
    for size in (50.0, 1e30):
        ends = torch.cat([torch.full((1, 32), size), torch.full((1, 32), -size)], 1)
        levels = grid.round(ends)
        assert bool((levels[:, 8:32] > 0).all())
        assert bool((levels[:, 40:] < 0).all())
        assert float(levels[:, 8:32].mean()) > 1.2
        assert float(levels[:, 40:].mean()) < -1.2
