"""The key-value cache: what it keeps for which hypothesis."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seq2seq.model.cache import DecoderCache, LayerCache, move
from seq2seq.ops.packing import Layout
from seq2seq.ops.step_attention import BLOCK


def columns(*values: list[float]) -> Tensor:
    """One head of width one: a slot for each list, a hypothesis for each value, [S, K, H, E]."""
    return torch.tensor(values)[:, :, None, None]


def sources(*values: float) -> Tensor:
    """A block of source positions for each slot, [S, H, C, E]."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None].repeat(1, 1, BLOCK, 1)


def seen(cache: DecoderCache, keys: Tensor) -> list[list[list[float]]]:
    """The keys that each hypothesis of each slot may look at."""
    return [
        [keys[slot, 0, mask == 0.0, 0].tolist() for mask in masks]
        for slot, masks in enumerate(cache.ancestors[:, 0].unbind())
    ]


def test_hypotheses_see_the_steps_of_their_ancestors_and_the_source_of_their_slot() -> None:
    layer = LayerCache.of(sources(100, 200, 300), sources(-100, -200, -300))
    cache = DecoderCache.of([layer], Layout.of([2, 1, 2]))
    column = cache.advance(torch.zeros(3, 1, dtype=torch.int64))
    layer.append(columns([1], [2], [3]), columns([-1], [-2], [-3]), column)
    # one hypothesis of each of three slots becomes two of each
    column = cache.advance(torch.zeros(3, 2, dtype=torch.int64))
    keys, values = layer.append(columns([10, 11], [20, 21], [30, 31]), columns([0, 0], [0, 0], [0, 0]), column)
    assert seen(cache, keys) == [[[1, 10], [1, 11]], [[2, 20], [2, 21]], [[3, 30], [3, 31]]]
    assert values[:, 0, :3, 0].tolist() == [[-1, 0, 0], [-2, 0, 0], [-3, 0, 0]]
    # slot 1 is done: slots 2 and 0 go on, in this order; parents cross over
    cache.keep(torch.tensor([2, 0]))
    column = cache.advance(torch.tensor([[1, 0], [1, 1]]))
    keys, _ = layer.append(columns([32, 33], [12, 13]), columns([0, 0], [0, 0]), column)
    assert seen(cache, keys) == [[[3, 31, 32], [3, 30, 33]], [[1, 11, 12], [1, 11, 13]]]
    assert layer.source_keys[:, 0, 0, 0].tolist() == [300, 100]
    assert layer.source_values[:, 0, 0, 0].tolist() == [-300, -100]
    assert cache.source_mask is not None
    assert cache.source_mask[:, 0, 0, :3].tolist() == [[0, 0, -math.inf], [0, 0, -math.inf]]
    # and to three of each
    column = cache.advance(torch.tensor([[0, 1, 1], [1, 0, 1]]))
    keys, _ = layer.append(columns([34, 35, 36], [14, 15, 16]), columns([0, 0, 0], [0, 0, 0]), column)
    assert seen(cache, keys)[0] == [[3, 31, 32, 34], [3, 30, 33, 35], [3, 30, 33, 36]]


def test_the_room_grows_and_nothing_is_lost() -> None:
    layer = LayerCache.of(sources(0), sources(0))
    cache = DecoderCache.of([layer], Layout.of([2]))
    steps = 2 * BLOCK + 1
    for step in range(steps):
        keys, values = layer.append(
            columns([step]), columns([-step]), cache.advance(torch.zeros(1, 1, dtype=torch.int64))
        )
    assert keys.shape[2] == values.shape[2] == cache.ancestors.shape[3] == 3 * BLOCK
    assert seen(cache, keys) == [[list(range(steps))]]
    assert values.flatten()[:steps].tolist() == [-step for step in range(steps)]
    # What nobody sees is multiplied by a weight of 0 all the same: it must be finite.
    assert (keys.flatten()[steps:] == 0.0).all() and (values.flatten()[steps:] == 0.0).all()
    assert cache.length == steps


def test_a_beam_may_be_wider_than_a_block() -> None:
    layer = LayerCache.of(sources(0), sources(0))
    cache = DecoderCache.of([layer], Layout.of([2]))
    layer.append(columns([0]), columns([0]), cache.advance(torch.zeros(1, 1, dtype=torch.int64)))
    wide = 2 * BLOCK + 1
    numbers = [float(number) for number in range(1, wide + 1)]
    keys, _ = layer.append(columns(numbers), columns(numbers), cache.advance(torch.zeros(1, wide, dtype=torch.int64)))
    assert seen(cache, keys) == [[[0, number] for number in numbers]]


def test_pads_of_the_source_are_masked_and_a_source_without_pads_has_no_mask() -> None:
    layer = LayerCache.of(sources(1, 2), sources(1, 2))
    ragged = DecoderCache.of([layer], Layout.of([BLOCK, 1]))
    assert ragged.source_mask is not None
    assert ragged.source_mask[:, 0, 0].tolist() == [[0] * BLOCK, [0] + [-math.inf] * (BLOCK - 1)]
    even = DecoderCache.of([layer], Layout.of([BLOCK, BLOCK]))
    even.keep(torch.tensor([1]))
    assert even.source_mask is None
    assert layer.source_keys[:, 0, 0, 0].tolist() == [2]


def test_move_is_indexing_and_leaves_what_stays_where_it_is() -> None:
    for index in ([0, 1, 2, 3], [3, 1, 0], [0, 1, 2], [1, 0, 2, 3], [2], []):
        x = torch.arange(8).view(4, 2)
        expected = x[index]
        found = move(x, torch.tensor(index, dtype=torch.int64))
        assert found.tolist() == expected.tolist()
        assert found.data_ptr() == x.data_ptr() or not index
