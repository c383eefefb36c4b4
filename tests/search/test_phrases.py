"""Phrases that outputs must hold: exact with a wide beam, held by any beam, refused where they cannot be."""

from __future__ import annotations

import random

import pytest
import torch

from seq2seq.config.search import SearchConfig
from seq2seq.search.interfaces import Constraints
from seq2seq.search.phrases import RequiredPhrases
from tests.search.toy import FREE, SOURCES, WORDS, ToyModel, all_outputs, assert_same, holds, run

A, B, C = WORDS
WANTED: list[list[list[int]]] = [[[C]], [], [[B, A]], [[A], [C, B]]]


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_the_best_output_with_all_phrases(seed: int) -> None:
    config = SearchConfig(FREE**3, max_length_ratio=0.0, max_length_offset=4, n_best=3)
    found = run(ToyModel(seed), SOURCES, config, [Constraints(phrases=phrases) for phrases in WANTED])
    for source, phrases, hypotheses in zip(SOURCES, WANTED, found, strict=True):
        allowed = all_outputs(
            seed,
            source,
            4,
            0.6,
            lambda words, wanted=phrases: all(holds(words, phrase) for phrase in wanted),  # type: ignore[misc]
        )
        assert_same(hypotheses, allowed[:3])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("beam_size", [1, 2, 4])
def test_any_beam_holds_all_phrases(beam_size: int, seed: int) -> None:
    draw = random.Random(seed)
    wanted = [[draw.choices(WORDS, k=draw.randint(1, 4)) for _ in range(draw.randint(0, 3))] for _ in SOURCES]
    config = SearchConfig(beam_size, max_length_ratio=0.0, max_length_offset=14)
    found = run(ToyModel(seed), SOURCES, config, [Constraints(phrases=phrases) for phrases in wanted])
    for phrases, (best, *_) in zip(wanted, found, strict=True):
        for phrase in phrases:
            assert holds(best.tokens, phrase)


def test_a_prefix_counts_for_phrases_too() -> None:
    config = SearchConfig(4, max_length_ratio=0.0, max_length_offset=5)
    (found,) = run(ToyModel(1), SOURCES[:1], config, [Constraints([A, B], [[B, C], [A, B]])])
    assert found[0].tokens[:2] == [A, B] and holds(found[0].tokens, [B, C])


def test_phrases_with_no_room_find_nothing() -> None:
    config = SearchConfig(4, max_length_ratio=0.0, max_length_offset=3)
    found = run(ToyModel(1), SOURCES, config, [Constraints(phrases=[[A] * count]) for count in (1, 2, 3, 7)])
    assert [bool(hypotheses) for hypotheses in found] == [True, True, False, False]


def test_phrases_that_are_forbidden_find_nothing() -> None:
    found = run(ToyModel(1), SOURCES[:1], SearchConfig(4), [Constraints(phrases=[[A, B]])], forbidden=[[B]])
    assert found == [[]]


def test_matches_are_those_of_the_end_of_a_prefix() -> None:
    required = RequiredPhrases([[[A, A, B], [C]], [[B], []]], torch.device("cpu"))
    prefixes = torch.tensor([[[B, A, A], [A, A, A], [A, A, B], [C, A, B], [B, B, C]]] * 2)
    matched = required.matched(prefixes, slice(None))
    assert matched[0].tolist() == [[2, 0], [2, 0], [3, 0], [0, 0], [0, 1]]
    assert matched[1].tolist() == [[0, 0], [0, 0], [1, 0], [1, 0], [0, 0]]
    assert required.held_SKJ[:, 0].tolist() == [[False, False], [False, True]]
