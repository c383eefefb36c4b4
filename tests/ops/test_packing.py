"""Packed rows and padded grids are each other's inverse, and every row knows its place."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2seq.ops.packing import Layout

lengths_of = st.lists(st.integers(1, 7), min_size=1, max_size=6)


@settings(deadline=None)
@given(lengths_of, st.lists(st.integers(1, 3), max_size=2))
def test_unpacking_puts_each_sentence_in_its_row_and_zeros_behind_it(lengths: list[int], shape: list[int]) -> None:
    layout = Layout.of(lengths)
    rows = torch.randn(sum(lengths), *shape)
    grid = layout.unpack(rows)
    assert grid.shape == (len(lengths), max(lengths), *shape)
    for padded, sentence in zip(grid, rows.split(lengths), strict=True):
        assert torch.equal(padded[: len(sentence)], sentence)
        assert not padded[len(sentence) :].any()


@settings(deadline=None)
@given(lengths_of, st.lists(st.integers(1, 3), max_size=2))
def test_packing_undoes_unpacking(lengths: list[int], shape: list[int]) -> None:
    layout = Layout.of(lengths)
    rows = torch.randn(sum(lengths), *shape)
    assert torch.equal(layout.pack(layout.unpack(rows)), rows)


@settings(deadline=None)
@given(lengths_of)
def test_packing_reads_no_pad(lengths: list[int]) -> None:
    layout = Layout.of(lengths)
    grid = torch.full((len(lengths), max(lengths), 2), torch.nan)
    for index, length in enumerate(lengths):
        grid[index, :length] = index
    assert layout.pack(grid).tolist() == [[index, index] for index, length in enumerate(lengths) for _ in range(length)]


@settings(deadline=None)
@given(lengths_of, st.integers(0, 9))
def test_filler_is_left_out_of_the_grid_and_takes_finite_rows_from_it(lengths: list[int], filler: int) -> None:
    whole = Layout.of(lengths)
    layout = Layout(whole.lengths, whole.max_length, whole.total + filler, filler)
    rows = torch.randn(layout.total, 3)
    rows[whole.total :] = torch.nan
    assert torch.equal(layout.unpack(rows), whole.unpack(rows[: whole.total]))
    packed = layout.pack(whole.unpack(rows[: whole.total]))
    assert torch.equal(packed[: whole.total], rows[: whole.total])
    assert packed.shape == rows.shape and bool(packed.isfinite().all())
    assert layout.positions.tolist() == [*whole.positions.tolist(), *[0] * filler]


@given(st.integers(1, 1 << 20))
def test_rounded_layouts_have_few_sizes_and_little_filler(total: int) -> None:
    layout = Layout.of([total]).rounded()
    assert layout.total - layout.filler == total
    assert 0 <= 32 * layout.filler <= total
    assert layout.total < 64 or layout.total % (1 << layout.total.bit_length() - 6) == 0
    assert layout.rounded().total == layout.total


@settings(deadline=None)
@given(lengths_of)
def test_rows_know_their_place(lengths: list[int]) -> None:
    layout = Layout.of(lengths)
    assert layout.total == sum(lengths)
    assert layout.max_length == max(lengths)
    assert layout.batch_size == len(lengths)
    assert layout.is_rectangular == (len(set(lengths)) == 1)
    assert layout.positions.tolist() == [position for length in lengths for position in range(length)]
    assert layout.starts.tolist() == [sum(lengths[:index]) for index in range(len(lengths))]
    assert layout.cu_seqlens.tolist() == [sum(lengths[:index]) for index in range(len(lengths) + 1)]
    assert layout.cu_seqlens.dtype == torch.int32
    assert layout.mask.tolist() == [[place < length for place in range(max(lengths))] for length in lengths]


def test_gradients_pass_through_packing_unchanged() -> None:
    layout = Layout.of([3, 1, 2])
    rows = torch.randn(6, 4, requires_grad=True)
    weight = torch.randn(6, 4)
    (layout.pack(layout.unpack(rows)) * weight).sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad, weight)


def test_a_layout_moves_between_devices() -> None:
    moved = Layout.of([3, 1, 2]).to(torch.device("meta"))
    assert moved.lengths.device.type == "meta"
    assert (moved.max_length, moved.total, moved.batch_size) == (3, 6, 3)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=200), st.integers(0, 5))
def test_a_regular_layout_has_the_same_sentences_then_others_then_empty_ones(lengths: list[int], more: int) -> None:
    layout = Layout.of(lengths)
    most = max(16, 1 << (max(lengths) - 1).bit_length())
    added = -(-layout.missing // most)
    bucketed = layout.bucketed(most, len(lengths) + added + more)
    found = bucketed.lengths.tolist()
    assert len(found) == len(lengths) + added + more
    assert found[: len(lengths)] == lengths and found[len(found) - more :] == [0] * more
    assert sum(found) == bucketed.total == layout.rounded().total
    assert max(found) <= bucketed.max_length == most
    assert bucketed.positions.tolist() == [place for length in found for place in range(length)]


@settings(deadline=None)
@given(lengths_of, st.integers(1, 50))
def test_parts_are_runs_of_whole_sentences(lengths: list[int], rows: int) -> None:
    parts = Layout.of(lengths).parts(rows)
    assert [length for part in parts for length in part.lengths.tolist()] == lengths
    assert len(parts) <= -(-sum(lengths) // rows)
    assert max(part.total for part in parts) < rows + max(lengths)


def test_sentences_lie_one_after_another() -> None:
    layout = Layout.of([2, 1, 3])
    assert layout.lists.tolist() == [[0, 1, -1], [2, -1, -1], [3, 4, 5]]
    assert layout.sentences.tolist() == [0, 0, 1, 2, 2, 2]
