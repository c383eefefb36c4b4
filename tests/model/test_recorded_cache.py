"""Search over recorded steps of the decoder finds what search without finds."""

from __future__ import annotations

import copy
from itertools import zip_longest
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from seq2seq.model import recorded_cache
from seq2seq.model.decoder import TransformerDecoder
from seq2seq.model.recorded_cache import Arena, Holder, RecordedCache, grow_on_gpu, grow_reference
from seq2seq.model.row_cache import RowCache
from seq2seq.model.translation import TranslationModel
from seq2seq.ops import gpu, native, topk
from seq2seq.ops.packing import Layout
from seq2seq.search.interfaces import Constraints, Hypothesis
from tests.kernels import DEVICE, model_and_search

pytest.importorskip("triton", reason="Triton is not installed here")


def holder_of(model: TranslationModel) -> Holder:
    holder = cast(TransformerDecoder, model.decoder)._holder
    assert holder
    return holder


def batch_of(*lengths: int) -> tuple[Tensor, Layout]:
    generator = torch.Generator().manual_seed(len(lengths))
    return torch.randint(4, 150, (sum(lengths),), generator=generator).to(DEVICE), Layout.of(list(lengths), DEVICE)


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(topk, "MAX_SINGLE_TOPK", 0)
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
    without_native.setattr(gpu, "supports_inference", lambda *_: False)
    plain = [search(model, *batch) for batch in batches]
    without_native.setattr(gpu, "supports_inference", lambda *_: True)
    if is_final:
        model.decoder.finish()
    with torch.no_grad():
        state = model.start(model.encode(*batches[0]))
    assert type(state) is (RecordedCache if is_final else RowCache)
    del state
    for batch, expected in zip(batches, plain, strict=True):
        assert alike(search(model, *batch), expected)


@pytest.mark.parametrize(("before", "width", "length"), [(1, 3, 1), (3, 3, 4), (4, 2, 7)])
def test_lists_grow_as_by_the_reference(before: int, width: int, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    sizes = (8, gpu.next_power_of_2(5 * max(before, width)), 8, 256, 64, 16)
    arenas = [Arena(sizes, torch.zeros(1, 4, device=DEVICE), 1) for _ in range(2)]
    past = torch.randint(0, 100, (5 * before, length), generator=generator, dtype=torch.int32).to(DEVICE)
    parents = torch.randint(0, before, (5, width), generator=generator).to(DEVICE)
    sentences = torch.tensor([7, 2, 3, 0, 5], dtype=torch.int32, device=DEVICE)
    for arena, grow in zip(arenas, (grow_on_gpu, grow_reference), strict=True):
        arena.past_RT[: 5 * before, :length] = past
        arena.places_R.fill_(77)
        grow(arena, parents, sentences, before, 100, length)
    own, expected = arenas
    rows = gpu.next_power_of_2(5 * width)
    assert torch.equal(own.places_R[:rows], expected.places_R[:rows])
    for name in ("past_RT", "grown_RT", "sentence_R"):
        assert torch.equal(getattr(own, name)[: 5 * width], getattr(expected, name)[: 5 * width]), name
    # What only fills up does what the last row does, in a place of its own.
    last = own.grown_RT[5 * width - 1].clone()
    last[length] = 255
    assert (own.grown_RT[5 * width : rows] == last).all()
    assert (own.sentence_R[5 * width : rows] == own.sentence_R[5 * width - 1]).all()


def test_an_arena_that_is_too_small_makes_way_for_a_larger_one(without_native: pytest.MonkeyPatch) -> None:
    model, search = model_and_search()
    expected = search(model, *batch_of(5, 7, 1))
    for name in ("STEPS", "ROWS"):
        without_native.setattr(recorded_cache, name, 1)
    without_native.setattr(gpu, "supports_inference", lambda *_: True)
    model.decoder.finish()
    assert alike(search(model, *batch_of(5, 7, 1)), expected)
    arena = holder_of(model).arena
    assert alike(search(model, *batch_of(5, 7, 1)), expected)
    assert holder_of(model).arena is arena


def test_padding_rows_write_where_no_hypothesis_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_cache, "ROWS", 1)
    cache = RecordedCache([torch.zeros(3, 8, device=DEVICE)], Layout.of([3], DEVICE), 1, Holder())
    for width in (1, 3):
        cache.advance(torch.zeros(1, width, dtype=torch.int64, device=DEVICE))
    last = len(cache.arena.targets[0]) - 1
    assert last > 3 and cache.arena.places_R.tolist() == [1, 2, 3, last]


def test_a_second_search_meanwhile_has_a_cache_of_its_own(without_native: pytest.MonkeyPatch) -> None:
    model, search = model_and_search()
    batches = batch_of(5, 7, 1), batch_of(4, 4)
    expected = [search(model, *batch) for batch in batches]
    without_native.setattr(gpu, "supports_inference", lambda *_: True)
    model.decoder.finish()
    first, second = (search.steps(model, *batch, [Constraints()] * batch[1].batch_size) for batch in batches)
    found: list[Any] = [None, None]
    for beams in zip_longest(first, second):
        found = [own.results if own else old for own, old in zip(beams, found, strict=True)]
    assert alike(found[0], expected[0]) and alike(found[1], expected[1])
    assert holder_of(model).is_free


def test_a_copy_of_a_model_records_its_own_steps(without_native: pytest.MonkeyPatch) -> None:
    model, search = model_and_search()
    without_native.setattr(gpu, "supports_inference", lambda *_: True)
    model.decoder.finish()
    search(model, *batch_of(4, 4))
    other = copy.deepcopy(model)
    assert holder_of(other).arena is None and holder_of(model).arena is not None
