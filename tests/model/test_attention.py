"""Multi-head attention against PyTorch's, its weights as distributions, and its initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seq2seq.model.attention import MultiHeadAttention, padded_heads
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
    k, v = (padded_heads(side, keys) for side in ours.keys_values(memory))
    out = ours.attend(x.view(3, 2, WIDTH), k, v, keys.mask)
    torch.testing.assert_close(out.flatten(0, 1), ours(x, queries, memory, keys), atol=1e-5, rtol=0)


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
