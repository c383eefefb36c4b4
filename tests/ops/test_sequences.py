"""Growing sequences: the function in C++ against PyTorch's operations."""

from __future__ import annotations

import pytest
import torch

from seq2seq.ops import native
from seq2seq.ops.sequences import extended, extended_reference


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("slots", "before", "width", "length"), [(3, 4, 8, 5), (2, 1, 4, 0), (0, 4, 4, 3), (900, 4, 8, 9)]
)
def test_sequences_grow_as_by_the_reference(
    dtype: torch.dtype, slots: int, before: int, width: int, length: int, native_calls: list[str]
) -> None:
    generator = torch.Generator().manual_seed(1)
    sequences_SKT = torch.randint(99, (slots, before, length), dtype=dtype, generator=generator)
    # As search has them: a part of the candidates.
    places_SC = torch.randint(before, (slots, 2 * width), generator=generator)[:, :width]
    last_SC = torch.randint(99, (slots, 2 * width), dtype=dtype, generator=generator)[:, :width]
    found_SCT = extended(sequences_SKT, places_SC, last_SC)
    assert native_calls == ["extended"]
    assert torch.equal(found_SCT, extended_reference(sequences_SKT, places_SC, last_SC))
    numbered_SCT = extended(sequences_SKT, places_SC, 7)
    assert torch.equal(numbered_SCT, extended_reference(sequences_SKT, places_SC, 7))
    assert numbered_SCT[..., -1].flatten().tolist() == list(range(7, 7 + slots * width))
    assert found_SCT.dtype == numbered_SCT.dtype == dtype
