"""On which devices attention in short sentences is our kernel's; tests/ops/test_gpu_kernels.py has its results."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from seq2seq.ops import short_attention
from seq2seq.ops.attention_shape import AttentionShape
from seq2seq.ops.packing import Layout


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


def test_it_is_for_short_sentences_without_filler_in_the_format_of_matmuls(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def supported(*kind: object) -> bool:
        asked.append(kind)
        return True

    monkeypatch.setattr(short_attention, "supports_short_sentences", supported)
    x, shape = torch.zeros(1, 128), AttentionShape(2, (128, 64), causal=False)
    short, long = (Layout.of([3, short_attention.LONGEST + more]) for more in (0, 1))
    filled = Layout(short.lengths, short.max_length, short.total + 1, 1)
    sides = [(short, short), (short, long), (long, short), (filled, short), (short, filled)]
    with torch.autocast("cpu", torch.bfloat16):
        taken = [short_attention.prefers_short(x, *side, shape) for side in sides]
    assert taken == [True, False, False, False, False]
    assert {*asked} == {(x.device, torch.bfloat16, 64, 32)}


def test_it_is_for_half_precision_and_heads_as_wide_in_keys_as_in_values(monkeypatch: pytest.MonkeyPatch) -> None:
    half, other = (torch.float16, torch.bfloat16), (torch.float32, torch.float64)
    for has_triton in (True, False):
        monkeypatch.setattr(short_attention, "supports_triton", lambda _, has_triton=has_triton: has_triton)
        taken = [
            (dtype, d_k, d_v)
            for dtype in (*half, *other)
            for d_k, d_v in ((64, 64), (64, 32), (32, 64))
            if short_attention.supports_short_sentences(torch.device("cuda"), dtype, d_k, d_v)
        ]
        assert taken == [(dtype, 64, 64) for dtype in half if has_triton]
