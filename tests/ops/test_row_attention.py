"""Attention to rows in any places against PyTorch's kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seq2seq.ops import native
from seq2seq.ops.packing import Layout
from seq2seq.ops.row_attention import SHORT, prefers_rows, row_attention, row_attention_reference

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
HEADS = 2


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lists(count: int, rows: int, longest: int) -> Tensor:
    """Lists of 1 to `longest` different rows."""
    generator = torch.Generator().manual_seed(3)
    found = torch.stack([torch.randperm(rows, generator=generator)[:longest] for _ in range(count)])
    lengths = torch.randint(1, longest + 1, (count, 1), generator=generator)
    lengths[0] = longest
    return found.masked_fill(torch.arange(longest) >= lengths, -1).int()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("queries", "count"), [(1, 1), (4, 1), (15, 15), (160, 40)])
@pytest.mark.parametrize(("d_k", "d_v"), [(8, 8), (5, 8), (32, 32), (64, 64), (128, 128), (32, 64)])
@pytest.mark.parametrize("longest", [1, 7, 33])
def test_it_is_scaled_dot_product_attention(
    queries: int, count: int, d_k: int, d_v: int, longest: int, dtype: torch.dtype, tolerance: float
) -> None:
    q = (3 * drawn(queries, HEADS * d_k)).to(dtype)
    rows = drawn(60, HEADS * (d_k + d_v), seed=2).to(dtype)
    seen, list_of = lists(count, len(rows), longest), torch.arange(queries, dtype=torch.int32) % count
    found = row_attention(q, rows, seen, list_of, HEADS)
    assert found.dtype == dtype and found.shape == (queries, HEADS * d_v)
    expected = row_attention_reference(q.double(), rows.double(), seen, list_of, HEADS)
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("width", [8, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_in_a_list_is_not_looked_at_and_rows_do_not_depend_on_their_company(
    width: int, dtype: torch.dtype
) -> None:
    q, rows = drawn(140, HEADS * width).to(dtype), drawn(60, HEADS * 2 * width, seed=2).to(dtype)
    rows[50:] = torch.nan
    seen = lists(70, 50, 9)
    runs = torch.arange(70, dtype=torch.int32).repeat_interleave(torch.tensor([1, 2, 3, 4, 5, 9]).repeat(12)[:70])[:140]
    for list_of in (torch.arange(140, dtype=torch.int32) % 70, runs):
        found = row_attention(q, rows, seen, list_of, HEADS)
        assert found.isfinite().all()
        expected = row_attention_reference(q.double(), rows.double(), seen, list_of, HEADS)
        torch.testing.assert_close(found.double(), expected, atol=5e-6 if dtype is torch.float32 else 2e-2, rtol=0)
        for row in (0, 1, 2, 5, 6, 33, 139):
            assert torch.equal(
                row_attention(q[row : row + 1], rows, seen, list_of[row : row + 1], HEADS)[0], found[row]
            )


@pytest.mark.parametrize("width", [8, 32, 64, 128])
def test_who_sees_nothing_gets_nothing(width: int) -> None:
    seen = torch.tensor([[-1, -1], [3, -1]], dtype=torch.int32)
    found = row_attention(
        drawn(2, HEADS * width), drawn(5, HEADS * 2 * width), seen, torch.arange(2, dtype=torch.int32), HEADS
    )
    assert not found[0].any() and found[1].any() and found.isfinite().all()


def test_with_several_threads_it_is_the_same_to_the_last_bit() -> None:
    q, rows, seen = drawn(400, HEADS * 64), drawn(60, HEADS * 128, seed=2), lists(400, 60, 9)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(row_attention(q, rows, seen, torch.arange(400, dtype=torch.int32), HEADS))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@torch.no_grad()
def test_it_is_preferred_for_short_sentences_without_filler_where_no_gradients_are_wanted() -> None:
    x, short, long = drawn(4, 8), Layout.of([3, 1]), Layout.of([SHORT[torch.float32] + 1])
    filled = Layout(short.lengths, short.max_length, short.total + 2, 2)
    assert prefers_rows(x, short, short) and prefers_rows(x, long, short)
    for queries, keys in ((short, long), (filled, short), (short, filled)):
        assert not prefers_rows(x, queries, keys)
    with torch.enable_grad():
        assert not prefers_rows(x, short, short)
