"""Every granularity cuts a matrix into the groups it says, and puts it together again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.errors import InputError
from bitwright.formats import Block, Channel, FlatBlock, Granularity, Group, Tensor, Token

SIDES = st.integers(1, 20)
SIZES = st.integers(1, 30)
GRANULARITIES = st.one_of(
    st.just(Tensor()),
    st.builds(Channel, st.integers(0, 1)),
    st.builds(Group, SIZES, st.integers(0, 1)),
    st.builds(Block, SIZES, SIZES),
    st.builds(FlatBlock, SIZES),
    st.just(Token()),
)


def group_numbers(granularity: Granularity, shape: tuple[int, int]) -> torch.Tensor:
    """For every weight the number of its group in row-major order of the parameters, one weight at a time."""
    out, columns = shape

    def number(i: int, j: int) -> int:
        match granularity:
            case Tensor():
                return 0
            case Channel(axis=0) | Token():
                return i
            case Channel(axis=1):
                return j
            case Group(size=size, axis=1):
                return i * -(-columns // size) + j // size
            case Group(size=size, axis=0):
                return j * -(-out // size) + i // size
            case Block(rows=rows, cols=cols):
                return (i // rows) * -(-columns // cols) + j // cols
            case FlatBlock(size=size):
                return (i * columns + j) // size
        raise AssertionError(granularity)

    return torch.tensor([[number(i, j) for j in range(columns)] for i in range(out)])


@given(GRANULARITIES, SIDES, SIDES)
def test_split_groups_what_the_granularity_says(granularity: Granularity, out: int, columns: int) -> None:
    layout = granularity.layout((out, columns))
    numbers = group_numbers(granularity, (out, columns))
    g, mask = layout.split(numbers), layout.mask()
    rows, groups = layout.params_shape
    assert g.shape == (rows, groups, layout.group_length)
    expected = torch.arange(rows * groups).view(rows, groups, 1).expand_as(g)
    real = torch.ones_like(g, dtype=torch.bool) if mask is None else mask.expand_as(g)
    assert torch.equal(g[real], expected[real])
    assert int(real.sum()) == out * columns
    assert not bool(g[~real].any())
    assert torch.equal(layout.join(g), numbers)


@given(GRANULARITIES, SIDES, SIDES)
def test_expanded_parameters_and_spans_agree_with_the_groups(granularity: Granularity, out: int, columns: int) -> None:
    layout = granularity.layout((out, columns))
    numbers = group_numbers(granularity, (out, columns))
    params = torch.arange(layout.params_shape[0] * layout.params_shape[1]).view(layout.params_shape)
    assert torch.equal(layout.expand(params).expand(out, columns), numbers)
    spans = layout.spans()
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == columns
    for index, (start, stop) in enumerate(spans):
        assert torch.equal(numbers[:, start:stop], numbers[:, start : start + 1].expand(out, stop - start))
        assert {layout.group_of_column(j) for j in range(start, stop)} == {index}


@given(GRANULARITIES, SIDES, SIDES, st.integers(1, 100))
def test_row_chunks_cut_no_group(granularity: Granularity, out: int, columns: int, elements: int) -> None:
    layout = granularity.layout((out, columns))
    numbers = group_numbers(granularity, (out, columns))
    params = torch.arange(layout.params_shape[0] * layout.params_shape[1]).view(layout.params_shape)
    chunks = layout.row_chunks(elements)
    assert [a for a, _ in chunks] == [0, *(b for _, b in chunks[:-1])]
    assert chunks[-1][1] == out
    for a, b in chunks:
        part = layout.of_rows((a, b))
        own = layout.params_of_rows(params, (a, b))
        assert tuple(own.shape) == part.params_shape
        assert torch.equal(part.expand(own).expand(b - a, columns), numbers[a:b])


def test_a_short_last_group_is_padded_with_zeros_and_masked() -> None:
    layout = Group(4).layout((2, 6))
    g = layout.split(torch.ones(2, 6))
    assert g.tolist() == [[[1, 1, 1, 1], [1, 1, 0, 0]]] * 2
    mask = layout.mask(g)
    assert mask is not None
    assert mask.tolist() == [[[True] * 4, [True, True, False, False]]]
    assert layout.spans() == [(0, 4), (4, 6)]


def test_groups_that_divide_are_views() -> None:
    w = torch.zeros(4, 8)
    assert Group(4).layout((4, 8)).split(w).data_ptr() == w.data_ptr()
    assert Group(4).layout((4, 8)).mask() is None


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4), (4, 0)])
def test_only_matrices_are_cut(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        Group(4).layout(shape)


def test_another_shape_is_refused() -> None:
    layout = Group(4).layout((4, 8))
    with pytest.raises(InputError, match="does not fit"):
        layout.split(torch.zeros(8, 4))
    with pytest.raises(InputError, match="do not belong"):
        layout.join(torch.zeros(2, 4, 4))


@pytest.mark.parametrize("make", [lambda: Group(0), lambda: Block(0, 4), lambda: FlatBlock(0), lambda: Channel(2)])
def test_impossible_granularities_are_refused(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]
