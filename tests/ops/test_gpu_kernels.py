"""Our own kernels for GPUs against the plain references; without a GPU, Triton's interpreter runs them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from seq2seq.ops import linear_cross_entropy, native, short_attention, topk
from seq2seq.ops.attention import attention_reference
from seq2seq.ops.packing import Layout
from seq2seq.ops.residual_norm import add_norm_on_gpu, residual_norm_reference
from seq2seq.ops.row_attention import row_attention_on_gpu, row_attention_reference
from tests.kernels import DEVICE, HAS_GPU, distance

pytest.importorskip("triton", reason="Triton is not installed here")

# The interpreter has no bfloat16.
FORMATS = [torch.float16, *([torch.bfloat16] if HAS_GPU else [torch.float32])]
LONGEST = short_attention.LONGEST if HAS_GPU else 40


@pytest.fixture(autouse=True)
def _not_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "supports", lambda _: False)


def textbook_attention(
    rows: list[Tensor], queries: Layout, keys: Layout, heads: int, *, causal: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The reference, [N, H·E], and copies of `rows` in float64 that its gradients are of."""
    exact = [matrix.detach().double().requires_grad_() for matrix in rows]
    width = rows[0].shape[1] // (3 if len(rows) == 1 else 1)
    q, k, v = (part.unflatten(1, (heads, -1)) for matrix in exact for part in matrix.split(width, 1))
    return attention_reference(q, k, v, queries, keys, causal=causal)[0].flatten(1), exact


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("longest", [32, LONGEST])
@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
def test_attention_and_its_gradients_are_the_reference(kind: str, longest: int, width: int, dtype: torch.dtype) -> None:
    rng = random.Random(width)
    # Both sizes of tiles: some sentences are no longer than half of the longest.
    queries = [1, longest, *(rng.randint(1, longest) for _ in range(3)), longest // 2]
    keys = [rng.randint(1, longest // 2) for _ in queries] if kind == "cross" else queries
    layouts = Layout.of(queries, DEVICE), Layout.of(keys, DEVICE)
    sizes = [(layouts[0].total, 2), (layouts[1].total, 4)] if kind == "cross" else [(layouts[0].total, 6)]
    rows = [torch.randn(total, parts * width, device=DEVICE, dtype=dtype) for total, parts in sizes]
    # What lies behind them in memory must not be read.
    rows = [torch.cat((x, torch.full_like(x, torch.nan)))[: len(x)].requires_grad_() for x in rows]
    upstream = torch.randn(layouts[0].total, 2 * width, device=DEVICE, dtype=dtype)
    causal = kind == "causal"
    own = short_attention.short_attention(tuple(rows), *layouts, 2, causal=causal)
    expected, exact = textbook_attention(rows, *layouts, 2, causal=causal)
    assert own.dtype == dtype
    limit = 1e-6 if dtype == torch.float32 else 2e-2 if dtype == torch.bfloat16 else 2e-3
    assert distance(own, expected) <= limit
    gradients = torch.autograd.grad(own, rows, upstream)
    again = torch.autograd.grad(
        short_attention.short_attention(tuple(rows), *layouts, 2, causal=causal), rows, upstream
    )
    for ours, twice, textbook in zip(
        gradients, again, torch.autograd.grad(expected, exact, upstream.double()), strict=True
    ):
        assert distance(ours, textbook) <= limit
        assert torch.equal(ours, twice)


def test_a_sum_has_the_gradient_of_the_reference() -> None:
    layout = Layout.of([3, 5], DEVICE)
    rows = [torch.randn(8, 96, device=DEVICE, dtype=torch.float16).requires_grad_()]
    own = short_attention.short_attention(tuple(rows), layout, layout, 2)
    expected, exact = textbook_attention(rows, layout, layout, 2)
    (ours,), (textbook,) = torch.autograd.grad(own.sum(), rows), torch.autograd.grad(expected.sum(), exact)
    assert (ours - textbook).abs().max() <= 5e-3


def test_queries_without_keys_get_zeros_and_give_none() -> None:
    layouts = Layout.of([3, 0, 2], DEVICE), Layout.of([4, 2, 0], DEVICE)
    rows = tuple(torch.randn(n, device=DEVICE, dtype=torch.float16).requires_grad_() for n in ((5, 32), (6, 64)))
    out = short_attention.short_attention(rows, *layouts, 2)
    assert out.isfinite().all() and not out[3:].any()
    d_q, d_kv = torch.autograd.grad(out.sum(), rows)
    assert not d_q[3:].any() and not d_kv[4:].any()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("rows", "vocabulary", "block"), [(7, 50, 4096), (3, 1003, 256), (1, 16, 16), (0, 20, 16)])
def test_logits_become_the_gradients_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, rows: int, vocabulary: int, block: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(linear_cross_entropy, "BLOCK", block)
    logits = (3 * torch.randn(rows, vocabulary, device=DEVICE)).to(dtype)
    if rows > 1:
        logits[0, : vocabulary // 2] = -torch.inf  # whole blocks that nothing can come from
        logits[1] += 50
    targets = torch.randint(vocabulary // 2, vocabulary, (rows,), device=DEVICE)
    plain = logits.float().clone()
    targets[4:5] = -1  # nothing to predict
    asked = targets >= 0
    gradients = plain[asked]
    sums = linear_cross_entropy._to_gradients(gradients, targets[asked], 0.1)
    plain.zero_()[asked] = gradients
    own: Any = linear_cross_entropy._to_gradients_by_kernel(logits, targets, 0.1)
    torch.testing.assert_close(own, sums, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(logits.float(), plain, rtol=0, atol=1e-6 if dtype == torch.float32 else 4e-3)


def test_what_is_no_column_becomes_nan_and_writes_nowhere_else() -> None:
    logits = torch.randn(4, 50, device=DEVICE)
    logits[1] = torch.nan  # nothing is to be predicted there
    before = logits.clone()
    nll, _ = linear_cross_entropy._to_gradients_by_kernel(logits[:3], torch.tensor([7, -1, 53], device=DEVICE), 0.1)
    assert nll.isnan() and logits[2].isnan().all()
    assert logits[0].isfinite().all() and not logits[1].any() and torch.equal(logits[3], before[3])


@pytest.mark.parametrize(
    ("rows", "by_kernel", "expected"),
    [
        *(
            (0, True, (128, 128)),
            (1, True, (128, 128)),
            (12_800, True, (12_800, 12_800)),
            (12_801, True, (12_800, 6_528)),
        ),
        *((25_088, True, (12_800, 12_544)), (5_000, True, (8_192, 5_120)), (12_800, False, (6_400, 6_400))),
    ],
)
def test_chunks_on_a_gpu_are_even_and_buffers_of_few_sizes(
    rows: int, by_kernel: bool, expected: tuple[int, int]
) -> None:
    assert linear_cross_entropy._chunks(rows, "cuda", by_kernel) == expected


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("d_k", "d_v"), [(16, 16), (5, 12)])
@pytest.mark.parametrize("longest", [1, 16, 37])
def test_attention_to_rows_in_lists_is_the_reference(longest: int, d_k: int, d_v: int, dtype: torch.dtype) -> None:
    q, rows = torch.randn(9, 2 * d_k, device=DEVICE), torch.randn(60, 2 * (d_k + d_v), device=DEVICE)
    q, rows = (3 * q).to(dtype), rows.to(dtype)
    rows[50:] = torch.nan  # in no list
    lists = torch.stack([torch.randperm(50, device=DEVICE)[:longest] for _ in range(4)])
    lengths = torch.tensor([longest, 1, max(1, longest - 1), longest], device=DEVICE)
    lists = lists.masked_fill(torch.arange(longest, device=DEVICE) >= lengths[:, None], -1).int()
    list_of = torch.arange(9, device=DEVICE, dtype=torch.int32) % 4
    expected = row_attention_reference(q.double(), rows.double(), lists, list_of, 2)
    found = row_attention_on_gpu(q, rows, lists, list_of, 2)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=5e-6 if dtype == torch.float32 else 2e-2 if HAS_GPU else 5e-3
    )


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("vocabulary", [64, 1000, 4159])
def test_sums_and_maxima_of_logits_are_pytorch_s(vocabulary: int, dtype: torch.dtype) -> None:
    logits = (5 * torch.randn(2, 3, vocabulary, device=DEVICE)).to(dtype)
    logits[0, 0] += 60
    logits[1, 2, :-1] = -torch.inf
    sums = torch.empty(2, 3, device=DEVICE)
    topk.negative_log_sum_exp_on_gpu(logits, sums)
    torch.testing.assert_close(-sums, logits.float().logsumexp(-1), rtol=1e-6, atol=1e-5)
    assert torch.equal(topk.block_maxima_on_gpu(logits), topk.block_maxima(logits))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("vocabulary", [64 * 9, 1003])
@pytest.mark.parametrize(("width", "count"), [(1, 1), (1, 8), (4, 8), (5, 3), (3, 16)])
def test_the_best_continuations_are_those_of_one_topk(
    width: int, count: int, vocabulary: int, dtype: torch.dtype
) -> None:
    log_probs = (3 * torch.randn(5, width, vocabulary, device=DEVICE)).to(dtype)
    scores = torch.randn(5, width, device=DEVICE)
    log_probs[:, :, 3:70] = -torch.inf
    log_probs[1, -1, 200:220] = 30  # all of the best in a block or two
    log_probs[2, -1, -2:] = 40
    scores[3, 1:] = -torch.inf
    log_probs[4] = -torch.inf
    log_probs[4, 0, 2::70] = 1.0  # equal ones, in blocks of their own, and fewer than asked for
    log_probs[4, 0, 500:] = -torch.inf
    found, places, tokens = topk.best_continuations_on_gpu(log_probs, scores, count)
    expected, *_ = topk.best_continuations_reference(log_probs.float(), scores, count)
    assert torch.equal(found, expected)
    flat = places * vocabulary + tokens
    sums = (scores[:, :, None] + log_probs.float()).flatten(1)
    assert torch.equal(sums.gather(1, flat), found)
    assert all(len(set(own)) == count for own in flat.tolist())
    again = topk.best_continuations_on_gpu(log_probs, scores, count)
    assert torch.equal(again[1], places) and torch.equal(again[2], tokens)


@pytest.mark.parametrize(("width", "vocabulary"), [(8, 65000), (1, 10)])
def test_the_best_continuations_of_large_and_small_vocabularies(width: int, vocabulary: int) -> None:
    log_probs = torch.randn(2, width, vocabulary, device=DEVICE)
    scores = torch.randn(2, width, device=DEVICE)
    for own, expected in zip(
        topk.best_continuations_on_gpu(log_probs, scores, 1),
        topk.best_continuations_reference(log_probs, scores, 1),
        strict=True,
    ):
        assert torch.equal(own, expected)


def test_what_is_no_number_is_no_continuation() -> None:
    log_probs = torch.randn(2, 2, 640, device=DEVICE)
    log_probs[0, 1, ::2] = torch.nan
    scores = torch.tensor([[torch.nan, 0.0], [torch.nan, torch.nan]], device=DEVICE)
    found, places, tokens = topk.best_continuations_on_gpu(log_probs, scores, 4)
    assert places[0].tolist() == [1] * 4 and (tokens[0] % 2 == 1).all()
    assert (found[1] == -torch.inf).all()
    assert ((places >= 0) & (places < 2) & (tokens >= 0) & (tokens < 640)).all()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("width", [64, 24])
def test_the_norm_of_a_sum_is_the_reference(width: int, dtype: torch.dtype) -> None:
    norm = torch.nn.LayerNorm(width, device=DEVICE, dtype=dtype)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        x, y = (torch.randn(2, 5, width, device=DEVICE, dtype=dtype) for _ in range(2))
        expected = residual_norm_reference(x, y, norm, 0.0)
        found = add_norm_on_gpu(x, y, norm)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
