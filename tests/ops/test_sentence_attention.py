"""Attention within sentences in training on processors against the textbook formula, and where it is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seq2seq.model.attention import MultiHeadAttention
from seq2seq.ops import native, sentence_attention
from seq2seq.ops.attention import attention_reference
from seq2seq.ops.attention_shape import AttentionShape
from seq2seq.ops.packing import Layout
from seq2seq.ops.sentence_attention import LONGEST, prefers_sentences
from tests.kernels import distance

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
HEADS = 3
LIMITS = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
QUERIES = [1, 130, 3, 64, 17]
KEYS = [5, 33, 65, 1, 16]


def textbook(rows: tuple[Tensor, ...], queries: Layout, keys: Layout, shape: AttentionShape) -> Tensor:
    """The same of rows in any format; those that belong to no sentence are left out."""
    width, values = shape.widths
    q, k, v = rows[0].split((width, width, values), 1) if len(rows) == 1 else (rows[0], *rows[1].split(shape.widths, 1))
    sides = ((q, queries), (k, keys), (v, keys))
    heads = [x[: layout.total - layout.filler].unflatten(1, (shape.heads, -1)) for x, layout in sides]
    return attention_reference(heads[0], heads[1], heads[2], queries, keys, causal=shape.causal)[0].flatten(1)


def drawn(
    shape: AttentionShape, queries: Layout, keys: Layout, dtype: torch.dtype, *, joined: bool
) -> tuple[Tensor, ...]:
    width, values = shape.widths
    shapes = [(queries.total, 2 * width + values)]
    if not joined:
        shapes = [(queries.total, width), (keys.total, width + values)]
    return tuple(torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("d_k", "d_v"), [(64, 64), (16, 8), (5, 7), (33, 64)])
@pytest.mark.parametrize("how", ["self", "causal", "cross", "with filler"])
def test_outputs_and_gradients_are_the_formula_s(how: str, d_k: int, d_v: int, dtype: torch.dtype) -> None:
    shape = AttentionShape(HEADS, (HEADS * d_k, HEADS * d_v), how == "causal")
    filler = 9 if how == "with filler" else 0
    queries = Layout(torch.tensor(QUERIES), max(QUERIES), sum(QUERIES) + filler, filler)
    keys = Layout.of(KEYS) if how == "cross" else queries
    rows = drawn(shape, queries, keys, dtype, joined=how != "cross")
    if filler:
        with torch.no_grad():
            rows[0][-filler:] = torch.nan
    exact = tuple(x.detach().double().requires_grad_() for x in rows)
    own, expected = (
        sentence_attention.sentence_attention(rows, queries, keys, shape),
        textbook(exact, queries, keys, shape),
    )
    count = sum(QUERIES)
    assert own.dtype == dtype
    assert distance(own[:count], expected) <= LIMITS[dtype]
    assert not own[count:].any()
    upstream = torch.randn(own.shape).to(dtype)
    found = torch.autograd.grad(own, rows, upstream)
    for ours, theirs, x in zip(
        found, torch.autograd.grad(expected, exact, upstream[:count].double()), rows, strict=True
    ):
        assert ours.dtype == x.dtype
        some = len(x) - filler
        assert distance(ours[:some], theirs[:some]) <= 2 * LIMITS[dtype]
        assert not ours[some:].any()


def test_a_sentence_has_the_same_bits_in_any_company_and_with_any_number_of_threads() -> None:
    shape = AttentionShape(HEADS, (HEADS * 64, HEADS * 64), causal=True)
    layout = Layout.of(QUERIES)
    rows = drawn(shape, layout, layout, torch.float32, joined=True)
    upstream = torch.randn(layout.total, shape.widths[1])
    threads = torch.get_num_threads()
    outs = []
    for number in (1, 3):
        torch.set_num_threads(number)
        out = sentence_attention.sentence_attention(rows, layout, layout, shape)
        outs.append((out, *torch.autograd.grad(out, rows, upstream)))
    torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*outs, strict=True))
    alone, some = Layout.of(QUERIES[1:2]), slice(1, 1 + QUERIES[1])
    own = (rows[0].detach()[some].requires_grad_(),)
    out = sentence_attention.sentence_attention(own, alone, alone, shape)
    assert torch.equal(out, outs[0][0][some])
    assert torch.equal(torch.autograd.grad(out, own, upstream[some])[0], outs[0][1][some])


def test_weights_of_far_scores_are_zeros_and_stay_finite() -> None:
    shape, layout = AttentionShape(1, (4, 4), causal=False), Layout.of([3, 2])
    (row,) = drawn(shape, layout, layout, torch.float32, joined=True)
    rows = ((1e4 * row).detach().requires_grad_(),)
    out = sentence_attention.sentence_attention(rows, layout, layout, shape)
    assert distance(out, textbook((rows[0].double(),), layout, layout, shape)) <= 1e-6
    assert torch.autograd.grad(out.sum(), rows)[0].isfinite().all()


@pytest.mark.parametrize("dtype", LIMITS)
def test_it_is_taken_in_training_for_sentences_that_are_not_long(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, taken = MultiHeadAttention(32, 2), list[AttentionShape]()
    plain = sentence_attention.sentence_attention

    def spy(rows: tuple[Tensor, ...], queries: Layout, keys: Layout, shape: AttentionShape) -> Tensor:
        taken.append(shape)
        return plain(rows, queries, keys, shape)

    monkeypatch.setattr("seq2seq.ops.attention.sentence_attention", spy)
    short, long = Layout.of([4, 2]), Layout.of([LONGEST[dtype] + 1])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        for layout, memory in ((short, short), (short, long)):
            x, y = torch.randn(layout.total, 32).to(dtype), torch.randn(memory.total, 32).to(dtype)
            out = layer(x, layout, x if memory is layout else y, memory)
            assert out.requires_grad
        with torch.no_grad():
            layer(x, short, x, short)
    shape = AttentionShape(2, (32, 32), causal=False)
    assert taken == [shape]
    assert prefers_sentences(x, short, short, shape) and not prefers_sentences(x, long, short, shape)
    assert prefers_sentences(x, long, long, shape._replace(causal=True))
    assert not prefers_sentences(x.double(), short, short, shape)
    with torch.autocast("cpu", torch.float16):
        assert not prefers_sentences(x, short, short, shape)
        assert not prefers_sentences(x, short, short, shape._replace(causal=True))


def test_a_layer_computes_and_learns_the_same_as_by_the_formula() -> None:
    layer, layouts = MultiHeadAttention(32, 2, d_k=6), (Layout.of([4, 2, 7]), Layout.of([3, 5, 1]))
    for memory in (0, 1):
        x, y = (torch.randn(layout.total, 32, requires_grad=True) for layout in layouts)
        inputs = [x, *([y] if memory else []), *layer.parameters()]
        given = x, layouts[0], y if memory else x, layouts[memory]
        own, (expected, _) = layer(*given), layer.weights(*given)
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=0)
        gradients = (torch.autograd.grad(each.square().sum(), inputs) for each in (own, expected))
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
