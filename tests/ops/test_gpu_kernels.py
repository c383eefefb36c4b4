"""Our own kernels for GPUs against the plain references; without a GPU, Triton's interpreter runs them."""

from __future__ import annotations

import copy
import random
from itertools import zip_longest
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from seq2seq.config.schema import ModelConfig, SearchConfig, TransformerConfig
from seq2seq.data.batches import Batch
from seq2seq.model import recorded_cache
from seq2seq.model.decoder import TransformerDecoder
from seq2seq.model.interfaces import Decoder
from seq2seq.model.recorded_cache import Holder, RecordedCache
from seq2seq.model.row_cache import RowCache
from seq2seq.model.translation import TranslationModel, build_model
from seq2seq.ops import attention, gpu, linear_cross_entropy, native, short_attention, topk
from seq2seq.ops.add_norm import add_norm_on_gpu, add_norm_reference
from seq2seq.ops.attention import attention_reference
from seq2seq.ops.packing import Layout
from seq2seq.ops.row_attention import row_attention_on_gpu, row_attention_reference
from seq2seq.search.beam import BeamSearch
from seq2seq.search.hypotheses import Constraints, Hypothesis
from seq2seq.train import recorded as module_of_passes
from seq2seq.train.loss import batch_loss
from seq2seq.train.recorded import RecordedPasses

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
pytest.importorskip("triton", reason="Triton is not installed here")
# The interpreter has no bfloat16.
FORMATS = [torch.float16, *([torch.bfloat16] if HAS_GPU else [torch.float32])]
LONGEST = short_attention.LONGEST if HAS_GPU else 40


def distance(own: Tensor, exact: Tensor) -> float:
    return float(((own.double() - exact).norm() / exact.norm()).detach())


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
def test_attention_and_its_gradients_are_the_reference(kind: str, width: int, dtype: torch.dtype) -> None:
    rng = random.Random(width)
    queries = [1, LONGEST, *(rng.randint(1, LONGEST) for _ in range(3))]
    keys = [rng.randint(1, LONGEST // 2) for _ in queries] if kind == "cross" else queries
    layouts = Layout.of(queries, DEVICE), Layout.of(keys, DEVICE)
    # What a joint projection gives are views of its rows; what lies behind them must not be read.
    joint = torch.full((max(layouts[0].total, layouts[1].total), 2, 3 * width), torch.nan, device=DEVICE, dtype=dtype)
    q, k, v = (joint[: layout.total, :, width : 2 * width].clone() for layout in (layouts[0], layouts[1], layouts[1]))
    q, k, v = (torch.cat((x, torch.randn_like(x), x), -1)[..., width : 2 * width] for x in (q, k, v))
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    upstream = torch.randn(layouts[0].total, 2, width, device=DEVICE, dtype=dtype)
    causal = kind == "causal"
    own = short_attention.short_attention(inputs[0], inputs[1], inputs[2], *layouts, causal=causal)
    expected, _ = attention_reference(exact[0], exact[1], exact[2], *layouts, causal=causal)
    assert own.dtype == dtype
    limit = 1e-6 if dtype == torch.float32 else 2e-2 if dtype == torch.bfloat16 else 2e-3
    assert distance(own, expected) <= limit
    gradients = torch.autograd.grad(own, inputs, upstream)
    again = torch.autograd.grad(
        short_attention.short_attention(inputs[0], inputs[1], inputs[2], *layouts, causal=causal), inputs, upstream
    )
    for ours, twice, textbook in zip(
        gradients, again, torch.autograd.grad(expected, exact, upstream.double()), strict=True
    ):
        assert distance(ours, textbook) <= limit
        assert torch.equal(ours, twice)


def test_a_sum_has_the_gradient_of_the_reference() -> None:
    layout = Layout.of([3, 5], DEVICE)
    inputs = [torch.randn(8, 2, 16, device=DEVICE, dtype=torch.float16).requires_grad_() for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    own = short_attention.short_attention(inputs[0], inputs[1], inputs[2], layout, layout)
    expected, _ = attention_reference(exact[0], exact[1], exact[2], layout, layout)
    pairs = zip(torch.autograd.grad(own.sum(), inputs), torch.autograd.grad(expected.sum(), exact), strict=True)
    assert all((ours - textbook).abs().max() <= 5e-3 for ours, textbook in pairs)


def test_queries_without_keys_get_zeros_and_give_none() -> None:
    layouts = Layout.of([3, 0, 2], DEVICE), Layout.of([4, 2, 0], DEVICE)
    q, k, v = (torch.randn(n, 2, 16, device=DEVICE, dtype=torch.float16).requires_grad_() for n in (5, 6, 6))
    out = short_attention.short_attention(q, k, v, *layouts)
    assert out.isfinite().all() and not out[3:].any()
    d_q, d_k, d_v = torch.autograd.grad(out.sum(), (q, k, v))
    assert not d_q[3:].any() and not d_k[4:].any() and not d_v[4:].any()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("rows", "vocabulary", "block"), [(7, 50, 4096), (3, 1003, 256), (1, 16, 16), (0, 20, 16)])
def test_logits_become_the_gradients_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, rows: int, vocabulary: int, block: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(linear_cross_entropy, "BLOCK", block)
    logits = (3 * torch.randn(rows + 2, vocabulary, device=DEVICE)).to(dtype)
    if rows > 1:
        logits[0, : vocabulary // 2] = -torch.inf  # whole blocks that nothing can come from
        logits[1] += 50
    targets = torch.randint(vocabulary // 2, vocabulary, (rows,), device=DEVICE)
    plain = logits.float().clone()
    targets[4:5] = -1  # nothing to predict
    asked = targets >= 0
    gradients = plain[:rows][asked]
    sums = linear_cross_entropy._to_gradients(gradients, targets[asked], 0.1)
    plain.zero_()[:rows][asked] = gradients
    own: Any = linear_cross_entropy._to_gradients_by_kernel(logits, targets, 0.1)
    torch.testing.assert_close(own, sums, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(logits.float(), plain, rtol=0, atol=1e-6 if dtype == torch.float32 else 4e-3)


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
    topk.log_sum_exp_on_gpu(logits, sums)
    torch.testing.assert_close(sums, logits.float().logsumexp(-1), rtol=1e-6, atol=1e-5)
    assert torch.equal(topk.block_maxima_on_gpu(logits), topk.block_maxima(logits))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("width", [64, 24])
def test_the_norm_of_a_sum_is_the_reference(width: int, dtype: torch.dtype) -> None:
    norm = torch.nn.LayerNorm(width, device=DEVICE, dtype=dtype)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        x, y = (torch.randn(2, 5, width, device=DEVICE, dtype=dtype) for _ in range(2))
        expected = add_norm_reference(x, y, norm)
        found = add_norm_on_gpu(x, y, norm)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def model_and_search() -> tuple[TranslationModel, BeamSearch]:
    layers = TransformerConfig(num_layers=1, num_heads=1, d_ff=16, dropout=0.0)
    model = build_model(ModelConfig(d_model=16, dropout=0.0, encoder=layers, decoder=layers), 150, 1).eval().to(DEVICE)
    settings = SearchConfig(beam_size=2, n_best=2, max_length_ratio=0.5, max_length_offset=2)
    return model, BeamSearch(settings, 2, 3, [0, 1, 2])


def holder_of(model: TranslationModel) -> Holder:
    return cast(TransformerDecoder, model.decoder)._holder


def batch_of(*lengths: int) -> tuple[Tensor, Layout]:
    generator = torch.Generator().manual_seed(len(lengths))
    return torch.randint(4, 150, (sum(lengths),), generator=generator).to(DEVICE), Layout.of(list(lengths), DEVICE)


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(topk, "FEW", 0)
    return monkeypatch


def alike(own: list[list[Hypothesis]], others: list[list[Hypothesis]]) -> bool:
    return all(
        [one.tokens for one in found] == [one.tokens for one in expected]
        and [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)
        for found, expected in zip(own, others, strict=True)
    )


@pytest.mark.parametrize("is_final", [False, True])
def test_search_with_them_finds_what_it_finds_without(without_native: pytest.MonkeyPatch, is_final: bool) -> None:
    model, search = model_and_search()
    batches = [batch_of(5, 9, 1), batch_of(3), batch_of(2, 2, 2, 4, 2), batch_of(5, 9, 1)]
    without_native.setattr(gpu, "can_compute", lambda *_: False)
    plain = [search(model, *batch) for batch in batches]
    without_native.setattr(gpu, "can_compute", lambda *_: True)
    cast(Decoder, model.decoder).is_final = is_final
    with torch.no_grad():
        state = model.start(model.encode(*batches[0]))
    assert type(state) is (RecordedCache if is_final else RowCache)
    del state
    for batch, expected in zip(batches, plain, strict=True):
        assert alike(search(model, *batch), expected)


def test_an_arena_that_is_too_small_makes_way_for_a_larger_one(without_native: pytest.MonkeyPatch) -> None:
    model, search = model_and_search()
    expected = search(model, *batch_of(5, 7, 1))
    for name in ("STEPS", "ROWS"):
        without_native.setattr(recorded_cache, name, 1)
    without_native.setattr(gpu, "can_compute", lambda *_: True)
    cast(Decoder, model.decoder).is_final = True
    assert alike(search(model, *batch_of(5, 7, 1)), expected)
    arena = holder_of(model).arena
    assert alike(search(model, *batch_of(5, 7, 1)), expected)
    assert holder_of(model).arena is arena


def test_a_second_search_meanwhile_has_a_cache_of_its_own(without_native: pytest.MonkeyPatch) -> None:
    model, search = model_and_search()
    batches = batch_of(5, 7, 1), batch_of(4, 4)
    expected = [search(model, *batch) for batch in batches]
    without_native.setattr(gpu, "can_compute", lambda *_: True)
    cast(Decoder, model.decoder).is_final = True
    first, second = (search.steps(model, *batch, [Constraints()] * batch[1].batch_size) for batch in batches)
    found: list[Any] = [None, None]
    for beams in zip_longest(first, second):
        found = [own.results if own else old for own, old in zip(beams, found, strict=True)]
    assert alike(found[0], expected[0]) and alike(found[1], expected[1])
    assert holder_of(model).is_free


def test_a_copy_of_a_model_records_its_own_steps(without_native: pytest.MonkeyPatch) -> None:
    model, search = model_and_search()
    without_native.setattr(gpu, "can_compute", lambda *_: True)
    cast(Decoder, model.decoder).is_final = True
    search(model, *batch_of(4, 4))
    other = copy.deepcopy(model)
    assert holder_of(other).arena is None and holder_of(model).arena is not None


def batch_to_train(generator: torch.Generator, source: list[int], target: list[int]) -> Batch:
    layouts = Layout.of(source), Layout.of(target)
    tokens = [torch.randint(4, 150, (sum(side),), generator=generator) for side in (source, target)]
    return Batch(tokens[0], layouts[0], tokens[1].roll(1), tokens[1], layouts[1])


@pytest.fixture
def kernels_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    if not HAS_GPU:
        for name, replaced in ((attention, "takes_short_sentences"), (linear_cross_entropy, "runs_kernels")):
            monkeypatch.setattr(name, replaced, lambda *_: True)


def gradients_of(model: TranslationModel) -> list[Tensor]:
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.usefixtures("kernels_in_training")
def test_recorded_passes_give_the_gradients_of_plain_ones() -> None:
    model, _ = model_and_search()
    model.train()
    generator = torch.Generator().manual_seed(1)
    # Of three shapes; the last two are met once, too seldom to be recorded.
    shapes: list[Any] = [([5, 7, 70], [2, 3, 66])] * 4 + [([5, 7, 1], [9, 1, 1]), ([2], [3])]
    batches = [batch_to_train(generator, *shape) for shape in shapes]

    def compute(batch: Batch, scale: float | Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=HAS_GPU):
            loss, nll = batch_loss(model, batch.to(DEVICE), 0.1)
        (loss * scale).backward()
        return torch.stack((loss.detach(), nll))

    expected = []
    for batch in batches:
        model.zero_grad()
        expected.append((compute(batch, 0.25), gradients_of(model)))
    recorded = RecordedPasses(compute, model, DEVICE)
    for batch, (figures, gradients) in zip(batches, expected, strict=True):
        for weight in model.parameters():
            assert weight.grad is not None
            weight.grad.zero_()
        found = recorded(batch.regular(), 0.25)
        torch.testing.assert_close(found, figures, rtol=1e-2 if HAS_GPU else 1e-5, atol=1e-3)
        for own, plain in zip(gradients_of(model), gradients, strict=True):
            assert distance(own, plain.double()) <= (3e-2 if HAS_GPU else 1e-4)
    assert len(recorded.graphs) == 1


def test_of_each_shape_the_second_batch_is_recorded_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_passes, "SHAPES", 1)
    recorded = RecordedPasses(lambda batch, scale: scale * batch.source.sum(), torch.nn.Linear(1, 1), DEVICE)
    generator = torch.Generator().manual_seed(1)
    for lengths in ([3, 4], [300], [5], [3, 4], [5], [5], [300], [2, 5]):
        batch = batch_to_train(generator, lengths, lengths).regular()
        assert float(recorded(batch, 0.5)) == 0.5 * int(batch.source.sum())
    # [3, 4] and [2, 5] have one shape; [300] is too long, [5] had no room.
    (shape,) = recorded.graphs
    assert shape == batch.shape
