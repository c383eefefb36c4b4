"""Multi-head attention against PyTorch's, its weights as distributions, and its initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seq2seq.model.attention import MultiHeadAttention
from seq2seq.model.cache import ColumnCache
from seq2seq.ops.packing import Layout

WIDTH, HEADS = 24, 4
QUERIES, KEYS = [3, 1, 5], [2, 4, 4]

Copy = Callable[[MultiHeadAttention, nn.MultiheadAttention], None]


@pytest.fixture
def ours(randomise: Callable[[nn.Module], None]) -> MultiHeadAttention:
    module = MultiHeadAttention(WIDTH, HEADS)
    randomise(module)
    return module


def rows(lengths: list[int]) -> Tensor:
    return torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(sum(lengths)))


@pytest.mark.parametrize("training", [False, True])
def test_cross_attention_is_pytorchs(ours: MultiHeadAttention, copy_attention: Copy, training: bool) -> None:
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    copy_attention(ours, theirs)
    queries, keys = Layout.of(QUERIES), Layout.of(KEYS)
    x, memory = rows(QUERIES), rows(KEYS)
    grid = keys.unpack(memory)
    with torch.set_grad_enabled(training):
        out = ours(x, queries, memory, keys)
        expected, weights = theirs(
            queries.unpack(x), grid, grid, key_padding_mask=~keys.mask, average_attn_weights=False
        )
    torch.testing.assert_close(out, queries.pack(expected), atol=1e-5, rtol=0)
    for index, own in enumerate(ours.weights(x, queries, memory, keys)[1]):
        torch.testing.assert_close(own, weights[index, :, : QUERIES[index], : KEYS[index]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_masked_self_attention_is_pytorchs(ours: MultiHeadAttention, copy_attention: Copy, training: bool) -> None:
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    copy_attention(ours, theirs)
    layout = Layout.of(QUERIES)
    x = rows(QUERIES)
    grid = layout.unpack(x)
    future = torch.ones(layout.max_length, layout.max_length, dtype=torch.bool).triu(1)
    with torch.set_grad_enabled(training):
        out = ours(x, layout, x, layout, causal=True)
        expected, _ = theirs(grid, grid, grid, attn_mask=future)
    torch.testing.assert_close(out, layout.pack(expected), atol=1e-5, rtol=0)


def test_weights_are_distributions_and_zero_for_the_future(ours: MultiHeadAttention) -> None:
    layout = Layout.of(QUERIES)
    x = rows(QUERIES)
    _, weights = ours.weights(x, layout, x, layout, causal=True)
    for length, own in zip(QUERIES, weights, strict=True):
        assert own.shape == (HEADS, length, length)
        torch.testing.assert_close(own.sum(-1), torch.ones(HEADS, length))
        assert not own.triu(1).any()


@pytest.mark.parametrize("causal", [False, True])
def test_output_with_weights_is_the_output_without(ours: MultiHeadAttention, causal: bool) -> None:
    layout = Layout.of(QUERIES)
    x = rows(QUERIES)
    expected = ours(x, layout, x, layout, causal=causal)
    torch.testing.assert_close(ours.weights(x, layout, x, layout, causal=causal)[0], expected, atol=1e-5, rtol=0)


def test_attending_to_given_keys_is_the_packed_form(ours: MultiHeadAttention) -> None:
    # Two hypotheses of each of three slots, the source shared: what a step of search does.
    queries, keys = Layout.of([2, 2, 2]), Layout.of(KEYS)
    x, memory = rows([2, 2, 2]), rows(KEYS)
    cache = ColumnCache([ours.key_value(memory)], keys, HEADS, WIDTH)
    out = ours.output(cache.attend_source(0, ours.query(x.view(3, 2, WIDTH))))
    torch.testing.assert_close(out.flatten(0, 1), ours(x, queries, memory, keys), atol=1e-5, rtol=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("d_k", [2, 6, 10])
def test_heads_with_keys_of_another_width_are_the_formula(
    randomise: Callable[[nn.Module], None], d_k: int, training: bool
) -> None:
    module = MultiHeadAttention(WIDTH, HEADS, d_k)
    randomise(module)
    d_v = WIDTH // HEADS
    assert module.query.weight.shape == (HEADS * d_k, WIDTH)
    assert module.key_value.weight.shape == (HEADS * d_k + WIDTH, WIDTH)
    assert module.output.weight.shape == (WIDTH, WIDTH)
    queries, keys = Layout.of([2, 2, 2]), Layout.of(KEYS)
    x, memory = rows([2, 2, 2]), rows(KEYS)
    expected = []
    for own_x, own_memory in zip(x.split([2, 2, 2]), memory.split(KEYS), strict=True):
        q = own_x @ module.query.weight.T + module.query.bias
        k, v = (own_memory @ module.key_value.weight.T + module.key_value.bias).split([HEADS * d_k, WIDTH], 1)
        heads = []
        for head in range(HEADS):
            own, values = slice(head * d_k, (head + 1) * d_k), slice(head * d_v, (head + 1) * d_v)
            heads.append((q[:, own] @ k[:, own].T / math.sqrt(d_k)).softmax(1) @ v[:, values])
        expected.append(torch.cat(heads, 1) @ module.output.weight.T + module.output.bias)
    with torch.set_grad_enabled(training):
        out = module(x, queries, memory, keys)
    torch.testing.assert_close(out, torch.cat(expected), atol=1e-5, rtol=0)
    cache = ColumnCache([module.key_value(memory)], keys, HEADS, HEADS * d_k)
    assert (cache.sources[0].keys.shape[-1], cache.sources[0].values.shape[-1]) == (d_k, d_v)
    step = module.output(cache.attend_source(0, module.query(x.view(3, 2, WIDTH))))
    torch.testing.assert_close(step.flatten(0, 1), out, atol=1e-5, rtol=0)


def test_a_key_width_that_is_the_heads_own_changes_nothing() -> None:
    modules = []
    for d_k in (None, WIDTH // HEADS):
        torch.manual_seed(1)
        modules.append(MultiHeadAttention(WIDTH, HEADS, d_k))
    for one, other in zip(*(module.parameters() for module in modules), strict=True):
        assert torch.equal(one, other)


def test_narrow_keys_start_at_the_scale_of_their_own_shape() -> None:
    torch.manual_seed(1)
    module = MultiHeadAttention(64, 4, 4)
    key, value = module.key_value.weight.split([16, 64])
    for weight, width in ((module.query.weight, 16), (key, 16), (value, 64)):
        limit = math.sqrt(6 / (64 + width))
        assert 0.95 * limit < float(weight.detach().abs().max()) <= limit


def test_each_projection_starts_as_a_square_matrix_of_its_own() -> None:
    torch.manual_seed(1)
    module = MultiHeadAttention(64, 4)
    limit = math.sqrt(6 / (64 + 64))
    for weight in (module.query.weight, *module.key_value.weight.chunk(2), module.output.weight):
        assert weight.shape == (64, 64)
        assert 0.95 * limit < float(weight.detach().abs().max()) <= limit
        assert float(weight.detach().var()) == pytest.approx(limit**2 / 3, rel=0.1)
    for linear in (module.query, module.key_value, module.output):
        assert not linear.bias.any()
