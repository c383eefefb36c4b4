"""The key-value cache: what it keeps for which hypothesis."""

from __future__ import annotations

import torch
from torch import Tensor

from seq2seq.model.cache import DecoderCache, LayerCache, take


def rows(*values: float) -> Tensor:
    """One head of width one for each value, [R, H, E]."""
    return torch.tensor(values)[:, None, None]


def sources(*values: float) -> Tensor:
    """Two source positions for each slot, [S, H, L, E]."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, 2, 1)


def test_steps_are_appended_in_order() -> None:
    cache = LayerCache(sources(1, 2), sources(3, 4))
    keys, values = cache.append(rows(1, 2), rows(10, 20))
    assert keys.shape == values.shape == (2, 1, 1, 1)
    keys, values = cache.append(rows(3, 4), rows(30, 40))
    assert keys[:, 0, :, 0].tolist() == [[1, 3], [2, 4]]
    assert values[:, 0, :, 0].tolist() == [[10, 30], [20, 40]]


def test_hypotheses_take_the_steps_of_their_parents_and_the_source_of_their_slot() -> None:
    layer = LayerCache(sources(100, 200, 300), sources(-100, -200, -300))
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    cache = DecoderCache([layer], mask)
    # one hypothesis of each of three slots becomes two of each
    cache.reorder(torch.tensor([[0, 0], [1, 1], [2, 2]]))
    assert cache.width == 2
    layer.append(rows(0, 1, 2, 3, 4, 5), rows(0, -1, -2, -3, -4, -5))
    # slot 1 is done: slots 2 and 0 go on, in this order
    cache.reorder(torch.tensor([[5, 4], [0, 0]]))
    assert layer.keys is not None
    assert layer.values is not None
    assert layer.keys.flatten().tolist() == [5, 4, 0, 0]
    assert layer.values.flatten().tolist() == [-5, -4, 0, 0]
    assert layer.source_keys[:, 0, 0, 0].tolist() == [300, 100]
    assert layer.source_values[:, 0, 0, 0].tolist() == [-300, -100]
    assert cache.source_mask is not None
    assert cache.source_mask.tolist() == [[False, True], [True, True]]
    # and to three of each
    cache.reorder(torch.tensor([[0, 1, 1], [2, 3, 2]]))
    assert cache.width == 3
    assert layer.keys.flatten().tolist() == [5, 4, 4, 0, 0, 0]


def test_a_source_without_pads_has_no_mask() -> None:
    cache = DecoderCache([LayerCache(sources(1, 2), sources(1, 2))], None)
    cache.reorder(torch.tensor([[1]]))
    assert cache.source_mask is None
    assert cache.layers[0].source_keys[:, 0, 0, 0].tolist() == [2]


def test_take_gives_rows_by_index_and_the_same_tensor_for_all_of_them() -> None:
    x = torch.arange(8).view(4, 2)
    assert take(x, torch.tensor([0, 1, 2, 3])) is x
    assert take(x, torch.tensor([3, 1, 1])).tolist() == [[6, 7], [2, 3], [2, 3]]
    assert take(x, torch.tensor([0, 1, 2])).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert take(x, torch.tensor([1, 0, 2, 3])).tolist() == [[2, 3], [0, 1], [4, 5], [6, 7]]
