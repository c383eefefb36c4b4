"""On which devices attention in short sentences is our kernel's; tests/ops/test_gpu_kernels.py has its results."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from seq2seq.ops import short_attention


@pytest.mark.parametrize(("kibibytes", "widest"), [(100, 64), (164, 128), (228, 128)])
def test_heads_of_128_columns_need_the_memory_of_a_larger_gpu(
    kibibytes: int, widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    properties = SimpleNamespace(shared_memory_per_multiprocessor=kibibytes << 10)
    monkeypatch.setattr(short_attention, "supports_triton", lambda _: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    taken = [
        width
        for width in (8, 16, 32, 64, 128, 256)
        if short_attention.supports_short_sentences(device, torch.bfloat16, width, width)
    ]
    assert taken == [width for width in short_attention.WIDTHS if width <= widest]
