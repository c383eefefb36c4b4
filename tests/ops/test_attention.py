"""Attention against the textbook formula, PyTorch's own, and numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import varlen

from seq2seq.ops import attention as module
from seq2seq.ops.attention import attention, attention_reference, has_packed_kernel
from seq2seq.ops.attention_shape import AttentionShape
from seq2seq.ops.packing import Layout

HEADS, WIDTH = 3, 8
SELF = [[4], [3, 1, 5, 2], [4, 4, 4], [1, 1], [1, 9]]
CROSS = [([3, 1, 5, 2], [2, 6, 1, 2]), ([4, 4], [3, 3]), ([1, 2], [7, 7]), ([5, 5], [1, 8])]
CASES = [(lengths, lengths, causal) for lengths in SELF for causal in (False, True)]
CASES += [(queries, keys, False) for queries, keys in CROSS]


def draw(
    queries: list[int], keys: list[int], dtype: torch.dtype = torch.float32, d_v: int = WIDTH
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(queries) + 100 * sum(keys))
    return (
        torch.randn(sum(queries), HEADS, WIDTH, generator=generator).to(dtype),
        torch.randn(sum(keys), HEADS, WIDTH, generator=generator).to(dtype),
        torch.randn(sum(keys), HEADS, d_v, generator=generator).to(dtype),
    )


def pytorch_by_sentence(q: Tensor, k: Tensor, v: Tensor, queries: list[int], keys: list[int], causal: bool) -> Tensor:
    parts = []
    for q_LHE, k_SHE, v_SHE in zip(q.split(queries), k.split(keys), v.split(keys), strict=True):
        q_HLE, k_HSE, v_HSE = (side.transpose(0, 1) for side in (q_LHE, k_SHE, v_SHE))
        parts.append(F.scaled_dot_product_attention(q_HLE, k_HSE, v_HSE, is_causal=causal).transpose(0, 1))
    return torch.cat(parts)


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    return torch.autograd.grad(out, inputs, upstream)


@pytest.mark.parametrize(("queries", "keys", "causal"), CASES)
def test_reference_is_pytorch_sentence_by_sentence(queries: list[int], keys: list[int], causal: bool) -> None:
    q, k, v = draw(queries, keys)
    out, weights = attention_reference(q, k, v, Layout.of(queries), Layout.of(keys), causal=causal)
    torch.testing.assert_close(out, pytorch_by_sentence(q, k, v, queries, keys, causal), atol=1e-6, rtol=0)
    assert [tuple(weight.shape) for weight in weights] == [
        (HEADS, rows, columns) for rows, columns in zip(queries, keys, strict=True)
    ]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("queries", "keys", "causal"), CASES)
def test_fused_is_the_reference(queries: list[int], keys: list[int], causal: bool, training: bool) -> None:
    q, k, v = (side.requires_grad_(training) for side in draw(queries, keys))
    out = attention(q, k, v, Layout.of(queries), Layout.of(keys), causal=causal)
    expected = attention_reference(q, k, v, Layout.of(queries), Layout.of(keys), causal=causal)[0]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("queries", "keys", "causal"), CASES)
def test_training_gradients_are_those_of_the_reference_and_of_pytorch(
    queries: list[int], keys: list[int], causal: bool
) -> None:
    q, k, v = inputs = draw(queries, keys)
    for side in inputs:
        side.requires_grad_()
    ours = gradients(attention(q, k, v, Layout.of(queries), Layout.of(keys), causal=causal), inputs)
    out = attention_reference(q, k, v, Layout.of(queries), Layout.of(keys), causal=causal)[0]
    reference = gradients(out, inputs)
    pytorch = gradients(pytorch_by_sentence(q, k, v, queries, keys, causal), inputs)
    for own, textbook, theirs in zip(ours, reference, pytorch, strict=True):
        torch.testing.assert_close(own, textbook, atol=1e-5, rtol=0)
        torch.testing.assert_close(own, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("queries", "keys", "causal"), CASES)
def test_gradients_of_the_fused_kernel_are_those_of_the_reference(
    queries: list[int], keys: list[int], causal: bool
) -> None:
    # Queries without a gradient take the kernel that GPUs train with.
    q, k, v = draw(queries, keys)
    inputs = (k.requires_grad_(), v.requires_grad_())
    ours = gradients(attention(q, k, v, Layout.of(queries), Layout.of(keys), causal=causal), inputs)
    out = attention_reference(q, k, v, Layout.of(queries), Layout.of(keys), causal=causal)[0]
    reference = gradients(out, inputs)
    for own, textbook in zip(ours, reference, strict=True):
        torch.testing.assert_close(own, textbook, atol=1e-5, rtol=0)


@pytest.mark.parametrize("d_v", [5, 20])
@pytest.mark.parametrize(("queries", "keys", "causal"), CASES)
def test_values_may_be_narrower_or_wider_than_keys(queries: list[int], keys: list[int], causal: bool, d_v: int) -> None:
    q, k, v = inputs = draw(queries, keys, d_v=d_v)
    layouts = Layout.of(queries), Layout.of(keys)
    fused = attention(q, k, v, *layouts, causal=causal)
    for side in inputs:
        side.requires_grad_()
    products = attention(q, k, v, *layouts, causal=causal)
    textbook = attention_reference(q, k, v, *layouts, causal=causal)[0]
    pytorch = pytorch_by_sentence(q, k, v, queries, keys, causal)
    for out in (fused, products, textbook):
        assert out.shape == (sum(queries), HEADS, d_v)
        torch.testing.assert_close(out, pytorch, atol=1e-5, rtol=0)
    expected = gradients(pytorch, inputs)
    for out in (products, textbook):
        for own, theirs in zip(gradients(out, inputs), expected, strict=True):
            torch.testing.assert_close(own, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_only_training_takes_the_batched_products(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    calls: list[bool] = []
    products = module._batched_products

    def spy(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        calls.append(causal)
        return products(q, k, v, mask, causal)

    monkeypatch.setattr(module, "_batched_products", spy)
    q, k, v = draw([3, 1], [3, 1])
    layout = Layout.of([3, 1])
    attention(q.requires_grad_(training), k, v, layout, layout, causal=True)
    assert calls == [True] * training


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_is_near_float32(training: bool, causal: bool) -> None:
    lengths = [3, 1, 5, 2]
    layout = Layout.of(lengths)
    q, k, v = draw(lengths, lengths, torch.bfloat16)
    out = attention(q.requires_grad_(training), k, v, layout, layout, causal=causal)
    assert out.dtype == torch.bfloat16
    expected = attention_reference(*draw(lengths, lengths), layout, layout, causal=causal)[0]
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_two_keys_by_hand(training: bool) -> None:
    # q·k is 2·ln 3 and 0, over √4: scores ln 3 and 0, weights 3/4 and 1/4.
    q = torch.tensor([[[2.0, 0.0, 0.0, 0.0]]], requires_grad=training)
    k = torch.tensor([[[math.log(3), 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    v = torch.tensor([[[8.0, 0.0, 4.0, 1.0]], [[0.0, 8.0, 4.0, 1.0]]])
    out = attention(q, k, v, Layout.of([1]), Layout.of([2]))
    torch.testing.assert_close(out, torch.tensor([[[6.0, 2.0, 4.0, 1.0]]]))


def test_weights_are_a_distribution_over_the_past() -> None:
    lengths = [4, 1, 6]
    layout = Layout.of(lengths)
    _, weights = attention_reference(*draw(lengths, lengths), layout, layout, causal=True)
    for weight in weights:
        torch.testing.assert_close(weight.sum(-1), torch.ones(weight.shape[:2]))
        assert not weight.triu(1).any()
        assert (weight.tril().diagonal(dim1=-2, dim2=-1) > 0).all()


@pytest.mark.parametrize("training", [False, True])
def test_sentences_do_not_see_each_other(training: bool) -> None:
    lengths = [3, 1, 5]
    layout = Layout.of(lengths)
    q, k, v = draw(lengths, lengths)
    before = attention(q.requires_grad_(training), k, v, layout, layout)
    other_k, other_v = k.clone(), v.clone()
    other_k[4:], other_v[4:] = 50.0, -50.0
    after = attention(q, other_k, other_v, layout, layout)
    torch.testing.assert_close(after[:4], before[:4], atol=1e-6, rtol=0)
    assert not torch.allclose(after[4:], before[4:])


@pytest.mark.parametrize(
    ("capability", "dtype", "d_k", "d_v", "suits"),
    [
        ((9, 0), torch.bfloat16, 64, 64, True),
        ((8, 0), torch.float16, 8, 8, True),
        ((10, 0), torch.bfloat16, 192, 192, True),
        ((7, 5), torch.float16, 64, 64, False),
        ((0, 0), torch.bfloat16, 64, 64, False),
        ((9, 0), torch.float32, 64, 64, False),
        ((9, 0), torch.bfloat16, 200, 200, False),
        ((9, 0), torch.bfloat16, 256, 256, False),
        ((9, 0), torch.bfloat16, 60, 60, False),
        ((9, 0), torch.bfloat16, 16, 64, False),
    ],
)
def test_what_suits_the_packed_kernel(
    capability: tuple[int, int], dtype: torch.dtype, d_k: int, d_v: int, suits: bool
) -> None:
    assert has_packed_kernel(capability, dtype, d_k, d_v) is suits


class PackedKernel:
    """Stands for PyTorch's kernel on the processor: the same contract, computed sentence by sentence."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        window_size: tuple[int, int],
    ) -> Tensor:
        assert cu_q.dtype == cu_k.dtype == torch.int32
        queries, keys = cu_q.diff().tolist(), cu_k.diff().tolist()
        assert (max(queries), max(keys)) == (max_q, max_k)
        self.calls.append((len(q), len(k), *window_size))
        return pytorch_by_sentence(q, k, v, queries, keys, causal=window_size == (-1, 0))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PackedKernel:
    """The processor taken for a GPU of generation 9.0."""
    kernel = PackedKernel()
    module._packed_kernel_works.cache_clear()
    monkeypatch.setattr(module, "capability", lambda _: (9, 0))
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    return kernel


@pytest.mark.parametrize(("queries", "keys", "causal"), CASES)
def test_the_packed_kernel_gets_what_it_wants(
    gpu: PackedKernel, queries: list[int], keys: list[int], causal: bool
) -> None:
    layouts = Layout.of(queries), Layout.of(keys)
    inputs = draw(queries, keys, torch.bfloat16)
    out = attention(*inputs, *layouts, causal=causal)
    expected = attention_reference(*draw(queries, keys), *layouts, causal=causal)[0]
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0)
    # The first call is the trial.
    assert gpu.calls == [(3, 3, -1, 0), (sum(queries), sum(keys), -1, 0 if causal else -1)]


def test_the_packed_kernel_is_found_too_where_no_gradients_are_wanted(gpu: PackedKernel) -> None:
    layout = Layout.of([3, 1])
    with torch.inference_mode():
        attention(*draw([3, 1], [3, 1], torch.bfloat16), layout, layout)
    assert gpu.calls == [(3, 3, -1, 0), (4, 4, -1, -1)]


def test_what_does_not_suit_the_packed_kernel_is_padded(gpu: PackedKernel) -> None:
    layout = Layout.of([3, 1])
    attention(*draw([3, 1], [3, 1]), layout, layout)
    attention(*draw([3, 1], [3, 1], torch.bfloat16, d_v=16), layout, layout)
    assert gpu.calls == []


def test_a_packed_kernel_that_fails_is_told_of_once_and_not_asked_again(
    gpu: PackedKernel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: Any, **__: Any) -> Tensor:
        gpu.calls.append(())
        raise RuntimeError("no kernel image is available for execution on the device\nand more")

    monkeypatch.setattr(varlen, "varlen_attn", missing)
    lengths = [3, 1, 5]
    layout = Layout.of(lengths)
    for _ in range(2):
        out = attention(*draw(lengths, lengths, torch.bfloat16), layout, layout)
        expected = attention_reference(*draw(lengths, lengths), layout, layout)[0]
        torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0)
    assert len(gpu.calls) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "no kernel image" in lines[0] and "padded" in lines[0]


def test_a_full_device_is_not_a_missing_kernel(gpu: PackedKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(varlen, "varlen_attn", full)
    layout = Layout.of([2])
    with pytest.raises(torch.OutOfMemoryError):
        attention(*draw([2], [2], torch.bfloat16), layout, layout)
    assert gpu.calls == []


def test_rows_that_belong_to_no_sentence_do_not_suit_the_packed_kernel(gpu: PackedKernel) -> None:
    whole, filled = Layout.of([3, 1]), Layout(torch.tensor([3, 1]), 3, 6, 2)
    for queries, keys in ((whole, filled), (filled, whole)):
        out = attention(*draw([queries.total], [keys.total], torch.bfloat16), queries, keys)
        assert len(out) == queries.total
    assert gpu.calls == []


def test_projections_side_by_side_are_those_one_by_one() -> None:
    shape = AttentionShape(HEADS, (HEADS * 5, HEADS * 7), causal=False)
    q, k, v = torch.randn(6, HEADS * 5), torch.randn(6, HEADS * 5), torch.randn(6, HEADS * 7)
    for projected in ((torch.cat((q, k, v), 1),), (q, torch.cat((k, v), 1))):
        for part, whole in zip(shape.split(projected), (q, k, v), strict=True):
            assert part.shape[:2] == (6, HEADS) and torch.equal(part.flatten(1), whole)
