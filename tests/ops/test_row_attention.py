"""Attention to rows in any places against PyTorch's kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seq2seq.ops import native
from seq2seq.ops.row_attention import row_attention, row_attention_reference, source_rows

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
HEADS = 2


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lists(slots: int, width: int, rows: int, steps: int) -> Tensor:
    """Lists of 1 to `steps` different rows."""
    generator = torch.Generator().manual_seed(3)
    found = torch.stack([torch.randperm(rows, generator=generator)[:steps] for _ in range(slots * width)])
    lengths = torch.randint(1, steps + 1, (slots * width, 1), generator=generator)
    lengths[0] = steps
    return found.masked_fill(torch.arange(steps) >= lengths, -1).view(slots, width, steps).int()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("slots", "width"), [(1, 1), (1, 4), (3, 5), (40, 4)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("d_k", "d_v"), [(8, 8), (5, 8), (64, 64)])
@pytest.mark.parametrize("steps", [1, 7, 33])
def test_it_is_scaled_dot_product_attention(
    slots: int, width: int, shared: bool, d_k: int, d_v: int, steps: int, dtype: torch.dtype, tolerance: float
) -> None:
    q = (3 * drawn(slots, width, HEADS * d_k)).to(dtype)
    rows = drawn(60, HEADS * (d_k + d_v), seed=2).to(dtype)
    seen = lists(slots, 1 if shared else width, len(rows), steps)
    found = row_attention(q, rows, seen, HEADS)
    assert found.dtype == dtype and found.shape == (slots, width, HEADS * d_v)
    expected = row_attention_reference(q.double(), rows.double(), seen, HEADS)
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)


def test_what_is_not_in_a_list_is_not_looked_at_and_rows_do_not_depend_on_their_company() -> None:
    q, rows = drawn(70, 2, HEADS * 8), drawn(60, HEADS * 16, seed=2)
    rows[50:] = torch.nan
    seen = lists(70, 2, 50, 9)
    found = row_attention(q, rows, seen, HEADS)
    assert found.isfinite().all()
    for slot in (0, 33, 69):
        alone = row_attention(q[slot : slot + 1, 1:], rows, seen[slot : slot + 1, 1:], HEADS)
        assert torch.equal(alone[0, 0], found[slot, 1])


def test_with_several_threads_it_is_the_same_to_the_last_bit() -> None:
    q, rows, seen = drawn(100, 4, HEADS * 8), drawn(60, HEADS * 16, seed=2), lists(100, 4, 60, 9)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(row_attention(q, rows, seen, HEADS))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_sentences_lie_one_after_another() -> None:
    assert source_rows(torch.tensor([2, 1, 3])).tolist() == [[[0, 1, -1]], [[2, -1, -1]], [[3, 4, 5]]]
