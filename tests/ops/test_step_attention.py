"""Attention of one step of search against PyTorch's kernel."""

from __future__ import annotations

import math

import pytest
import torch

from seq2seq.ops import step_attention as module
from seq2seq.ops.packing import Layout
from seq2seq.ops.step_attention import BLOCK, FEW, pad_mask, padded_heads, step_attention, step_attention_reference


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("d_k", [8, 5])
@pytest.mark.parametrize(
    ("slots", "queries", "has_tiles"), [(4, 3, False), (FEW, 3, True), (FEW, 1, False), (FEW, 1, True)]
)
def test_it_is_scaled_dot_product_attention(
    slots: int,
    queries: int,
    has_tiles: bool,
    rows: int | None,
    d_k: int,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HAS_AMX", has_tiles)
    rows = rows and min(rows, queries)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(slots, 2, length, width, generator=generator).to(dtype)
        for length, width in ((queries, d_k), (7, d_k), (7, 8))
    )
    mask = None
    if rows is not None:
        hidden = torch.rand(slots, 1, rows, 7, generator=generator) < 0.5
        mask = torch.zeros(slots, 1, rows, 7).masked_fill(hidden, -math.inf)
        mask[:, :, :, 2] = 0.0
    # As a step gives them: heads not last.
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    found = step_attention(q, k, v, None if mask is None else mask.to(dtype))
    expected = step_attention_reference(q.float(), k.float(), v.float(), mask)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("lengths", [[2, 3], [3, 3], [BLOCK + 3, 1], [BLOCK, BLOCK]])
def test_short_sources_fill_a_block_that_nobody_sees(lengths: list[int]) -> None:
    layout = Layout.of(lengths)
    rows = torch.randn(layout.total, 2, 4, generator=torch.Generator().manual_seed(1))
    keys, mask = padded_heads(rows, layout), pad_mask(layout)
    columns = max(BLOCK, *lengths)
    assert keys.shape == (len(lengths), 2, columns, 4)
    if mask is None:
        assert lengths == [columns] * len(lengths)
        mask = torch.zeros(len(lengths), 1, 1, columns)
    for own, sees, sentence in zip(keys, mask[:, 0, 0], rows.split(lengths), strict=True):
        assert torch.equal(own[:, sees == 0.0].transpose(0, 1), sentence)
        assert (own[:, sees == -math.inf] == 0.0).all()
