"""The key-value caches: what they keep for which hypothesis, and that both kinds give the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from seq2seq.model.cache import ColumnCache, move
from seq2seq.model.row_cache import RowCache
from seq2seq.ops import native
from seq2seq.ops.packing import Layout
from seq2seq.ops.step_attention import BLOCK


def pairs(*values: list[float]) -> Tensor:
    """A key of one head of width one for each value, and its negative as value: a slot for each list, [S, K, 2]."""
    keys = torch.tensor(values, dtype=torch.float32)
    return torch.stack((keys, -keys), 2)


def cache_of(*sources: list[float]) -> ColumnCache:
    """One layer, whose source rows are these, a list for each sentence."""
    rows = torch.cat([pairs(source)[0] for source in sources])
    return ColumnCache([rows], Layout.of([len(source) for source in sources]), heads=1, width=1)


def added(cache: ColumnCache, parents: list[list[int]], *values: list[float]) -> Tensor:
    """The keys [S, C] after a step of the children of these."""
    keys_values = pairs(*values)
    cache.advance(torch.tensor(parents))
    cache.attend_target(0, keys_values[..., :1], keys_values)
    assert torch.equal(cache.targets[0].keys, -cache.targets[0].values)
    return cache.targets[0].keys[:, 0, :, 0]


def seen(cache: ColumnCache, keys: Tensor) -> list[list[list[float]]]:
    """The keys that each hypothesis of each slot may look at."""
    return [
        [keys[slot, mask == 0.0].tolist() for mask in masks]
        for slot, masks in enumerate(cache.ancestors[:, 0].unbind())
    ]


def test_hypotheses_see_the_steps_of_their_ancestors_and_the_source_of_their_slot() -> None:
    cache = cache_of([100, 101], [200], [300, 301])
    added(cache, [[0], [0], [0]], [1], [2], [3])
    # one hypothesis of each of three slots becomes two of each
    keys = added(cache, [[0, 0]] * 3, [10, 11], [20, 21], [30, 31])
    assert seen(cache, keys) == [[[1, 10], [1, 11]], [[2, 20], [2, 21]], [[3, 30], [3, 31]]]
    # slot 1 is done: slots 2 and 0 go on, in this order; parents cross over
    cache.keep(torch.tensor([2, 0]))
    keys = added(cache, [[1, 0], [1, 1]], [32, 33], [12, 13])
    assert seen(cache, keys) == [[[3, 31, 32], [3, 30, 33]], [[1, 11, 12], [1, 11, 13]]]
    assert cache.sources[0].keys[:, 0, :2, 0].tolist() == [[300, 301], [100, 101]]
    assert cache.sources[0].values[:, 0, :2, 0].tolist() == [[-300, -301], [-100, -101]]
    assert cache.source_mask is not None
    assert cache.source_mask[:, 0, 0, :3].tolist() == [[0, 0, -math.inf], [0, 0, -math.inf]]
    # and to three of each
    keys = added(cache, [[0, 1, 1], [1, 0, 1]], [34, 35, 36], [14, 15, 16])
    assert seen(cache, keys)[0] == [[3, 31, 32, 34], [3, 30, 33, 35], [3, 30, 33, 36]]


def test_of_many_hypotheses_one_may_go_on() -> None:
    cache = cache_of([100, 101], [200])
    added(cache, [[0], [0]], [1], [2])
    added(cache, [[0, 0]] * 2, [10, 11], [20, 21])
    keys = added(cache, [[1], [0]], [12], [22])
    assert seen(cache, keys) == [[[1, 11, 12]], [[2, 20, 22]]]


def test_the_room_grows_and_nothing_is_lost() -> None:
    cache = cache_of([0, 0])
    steps = 2 * BLOCK + 1
    for step in range(steps):
        keys = added(cache, [[0]], [step])
    assert keys.shape[1] == cache.ancestors.shape[3] == 3 * BLOCK
    assert seen(cache, keys) == [[list(range(steps))]]
    # What nobody sees is multiplied by a weight of 0 all the same: it must be finite.
    assert (keys[0, steps:] == 0.0).all()
    assert cache.length == steps


def test_a_beam_may_be_wider_than_a_block() -> None:
    cache = cache_of([0, 0])
    added(cache, [[0]], [0])
    wide = 2 * BLOCK + 1
    numbers = [float(number) for number in range(1, wide + 1)]
    assert seen(cache, added(cache, [[0] * wide], numbers)) == [[[0, number] for number in numbers]]


def test_pads_of_the_source_are_masked_and_a_source_without_pads_has_no_mask() -> None:
    ragged = cache_of([1.0] * BLOCK, [2.0])
    assert ragged.source_mask is not None
    assert ragged.source_mask[:, 0, 0].tolist() == [[0] * BLOCK, [0] + [-math.inf] * (BLOCK - 1)]
    even = cache_of([1.0] * BLOCK, [2.0] * BLOCK)
    even.keep(torch.tensor([1]))
    assert even.source_mask is None
    assert even.sources[0].keys[:, 0, 0, 0].tolist() == [2]


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
@pytest.mark.parametrize("d_k", [4, 3])
@pytest.mark.parametrize("seed", range(3))
def test_lists_of_rows_give_what_columns_give(d_k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    heads, layers, d_v = 2, 2, 4
    layout = Layout.of([3, 1, 20, 5])
    sources = [drawn(layout.total, heads * (d_k + d_v)) for _ in range(layers)]
    caches = RowCache(sources, layout, heads), ColumnCache(sources, layout, heads, heads * d_k)
    slots, before = layout.batch_size, 1
    for width in [1, 3, 3, 5, 2, *[4] * BLOCK]:
        parents = torch.randint(before, (slots, width), generator=generator)
        for cache in caches:
            cache.advance(parents)
        for layer in range(layers):
            q, keys_values = drawn(slots, width, heads * d_k), drawn(slots, width, heads * (d_k + d_v))
            for found, expected in (
                [cache.attend_target(layer, q, keys_values) for cache in caches],
                [cache.attend_source(layer, q) for cache in caches],
            ):
                torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
        assert caches[0].length == caches[1].length
        before = width
        if width == 5:
            kept, slots = torch.tensor([3, 0, 2]), 3
            for cache in caches:
                cache.keep(kept)


def test_move_is_indexing_and_leaves_what_stays_where_it_is() -> None:
    for index in ([0, 1, 2, 3], [3, 1, 0], [0, 1, 2], [1, 0, 2, 3], [2], []):
        x = torch.arange(8).view(4, 2)
        expected = x[index]
        found = move(x, torch.tensor(index, dtype=torch.int64))
        assert found.tolist() == expected.tolist()
        assert found.data_ptr() == x.data_ptr() or not index
