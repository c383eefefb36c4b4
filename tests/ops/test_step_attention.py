"""Attention of one step of search against PyTorch's kernel."""

from __future__ import annotations

import math

import pytest
import torch

from seq2seq.ops.step_attention import step_attention, step_attention_reference


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("d_k", [8, 5])
def test_it_is_scaled_dot_product_attention(rows: int | None, d_k: int, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(1)
    queries, keys, values = (
        torch.randn(4, 2, length, width, generator=generator).to(dtype)
        for length, width in ((3, d_k), (7, d_k), (7, 8))
    )
    mask = None
    if rows is not None:
        mask = torch.zeros(4, 1, rows, 7).masked_fill(torch.rand(4, 1, rows, 7, generator=generator) < 0.5, -math.inf)
        mask[:, :, :, 2] = 0.0
    # As the cache gives them: a part of a larger buffer, heads not last.
    found = step_attention(queries.transpose(1, 2).contiguous().transpose(1, 2), keys, values, mask)
    expected = step_attention_reference(queries.float(), keys.float(), values.float(), mask)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=0)
