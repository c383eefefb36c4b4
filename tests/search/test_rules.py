"""Rules of search against all outputs that keep them: a beam that holds all prefixes must find the best of those."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from seq2seq.config.search import SearchConfig
from seq2seq.search.interfaces import Constraints
from seq2seq.search.rules import forbid, forbid_repeated, penalize_repetition
from tests.search.toy import (
    EOS,
    FREE,
    SOURCES,
    VOCABULARY,
    WORDS,
    Exact,
    Prefix,
    ToyModel,
    all_outputs,
    assert_same,
    holds,
    row_of,
    run,
)

ALL = {"beam_size": FREE**3, "max_length_ratio": 0.0, "max_length_offset": 4, "n_best": 4}
A, B, C = WORDS


def different(size: int) -> Callable[[Prefix], bool]:
    def allowed(words: Prefix) -> bool:
        sequences = [words[start : start + size] for start in range(len(words) - size + 1)]
        return len(set(sequences)) == len(sequences)

    return allowed


RULES: list[tuple[dict[str, object], Callable[[Prefix], bool]]] = [
    ({"min_length": 3}, lambda words: len(words) + 1 >= 3),
    ({"max_length": 3}, lambda words: len(words) + 1 <= 3),
    ({"max_length": 3, "min_length": 3}, lambda words: len(words) + 1 == 3),
    ({"no_repeat_ngram": 1}, different(1)),
    ({"no_repeat_ngram": 2}, different(2)),
    ({"no_repeat_ngram": 1, "min_length": 4}, lambda words: len(words) == 3 and different(1)(words)),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rule", "allowed"), RULES, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_the_best_of_what_is_allowed_is_found(
    rule: dict[str, object], allowed: Callable[[Prefix], bool], seed: int
) -> None:
    config = SearchConfig(**{**ALL, **rule})  # type: ignore[arg-type]
    for source, found in zip(SOURCES, run(ToyModel(seed), SOURCES, config), strict=True):
        assert_same(found, all_outputs(seed, source, 4, 0.6, allowed)[:4])


def test_where_the_shortest_is_above_the_longest_the_longest_holds() -> None:
    config = SearchConfig(**{**ALL, "min_length": 9})  # type: ignore[arg-type]
    for source, found in zip(SOURCES, run(ToyModel(2), SOURCES, config), strict=True):
        whole = [exact for exact in all_outputs(2, source, 4, 0.6) if len(exact.tokens) == 3]
        assert_same(found, whole[:4])


def test_the_shortest_output_may_depend_on_the_source() -> None:
    config = SearchConfig(**{**ALL, "min_length_ratio": 1.0})  # type: ignore[arg-type]
    for source, found in zip(SOURCES, run(ToyModel(2), SOURCES, config), strict=True):
        long_enough = [exact for exact in all_outputs(2, source, 4, 0.6) if len(exact.tokens) + 1 >= len(source)]
        assert_same(found, long_enough[:4])


@pytest.mark.parametrize("phrases", [[[A]], [[B, C]], [[A, B], [C]], [[A, A, A]]])
def test_forbidden_phrases_appear_nowhere(phrases: list[list[int]]) -> None:
    config = SearchConfig(**ALL)  # type: ignore[arg-type]
    for source, found in zip(SOURCES, run(ToyModel(4), SOURCES, config, forbidden=phrases), strict=True):
        allowed = all_outputs(4, source, 4, 0.6, lambda words: not any(holds(words, phrase) for phrase in phrases))
        assert_same(found, allowed[:4])


@pytest.mark.parametrize("beam_size", [1, FREE**3])
def test_a_prefix_is_kept_and_costs_what_it_is_worth(beam_size: int) -> None:
    prefixes: list[list[int]] = [[C], [], [B, A], [A, A, A]]
    config = SearchConfig(**{**ALL, "beam_size": beam_size, "n_best": 1})  # type: ignore[arg-type]
    found = run(ToyModel(7), SOURCES, config, [Constraints(prefix) for prefix in prefixes])
    for source, prefix, (best, *_) in zip(SOURCES, prefixes, found, strict=True):
        allowed = [exact for exact in all_outputs(7, source, 4, 0.6) if exact.tokens[: len(prefix)] == prefix]
        if beam_size > 1:
            assert_same([best], allowed[:1])
        else:
            assert best.tokens[: len(prefix)] == prefix
            assert_same([best], [exact for exact in allowed if exact.tokens == best.tokens])


def test_a_prefix_may_hold_what_is_never_generated() -> None:
    # Piece 1 stands for what the vocabulary lacks: the user wrote it.
    for found in run(ToyModel(7), SOURCES, SearchConfig(2), [Constraints([1, A])] * 4):
        assert found[0].tokens[:2] == [1, A] and math.isfinite(found[0].score)


@pytest.mark.parametrize(
    "kind", [{"beam_size": 1}, {"beam_size": 2}, {"sampling": True}, {"sampling": True, "top_k": 3}]
)
def test_a_prefix_longer_than_the_output_may_be_finds_nothing(kind: dict[str, object]) -> None:
    config = SearchConfig(max_length_ratio=0.0, max_length_offset=3, **kind)  # type: ignore[arg-type]
    found = run(ToyModel(7), SOURCES, config, [Constraints([A] * count) for count in (0, 2, 3, 9)])
    assert [len(hypotheses) for hypotheses in found] == [1, 1, 0, 0]


def test_repetition_costs_as_by_hand() -> None:
    """The best of all outputs, each scored by a loop over lists."""
    penalty = 1.7

    def penalized(source: Prefix, words: Prefix) -> float:
        total = 0.0
        for place, token in enumerate((*words, EOS)):
            row = list(row_of(5, source, words[:place]))
            for seen in set(words[:place]):
                row[seen] = row[seen] / penalty if row[seen] > 0 else row[seen] * penalty
            total += row[token] - math.log(sum(math.exp(logit) for logit in row))
        return total / ((5 + len(words) + 1) / 6) ** 0.6

    config = SearchConfig(**{**ALL, "repetition_penalty": penalty})  # type: ignore[arg-type]
    for source, found in zip(SOURCES, run(ToyModel(5), SOURCES, config), strict=True):
        outputs = [words for length in range(4) for words in itertools.product(WORDS, repeat=length)]
        exact = [Exact(list(words), penalized(source, words)) for words in outputs]
        assert_same(found, sorted(exact, key=lambda one: -one.score)[:4])


def test_changes_are_made_in_place_and_nowhere_else() -> None:
    prefixes = torch.tensor([[[A, B, A], [B, B, C]]])
    ones = torch.ones(1, 2, VOCABULARY)
    scores = ones.clone()
    forbid_repeated(scores, prefixes, 2)
    assert scores[0, 0, B] == -math.inf and scores.isinf().sum() == 1
    scores = ones.clone()
    forbid(scores, prefixes, [B, C, A])
    assert scores[0, 1, A] == -math.inf and scores.isinf().sum() == 1
    logits = torch.tensor([[[2.0] * VOCABULARY, [-2.0] * VOCABULARY]])
    penalize_repetition(logits, prefixes, 2.0)
    assert logits[0, 0].tolist() == [2, 2, 2, 2, 1, 1, 2]
    assert logits[0, 1].tolist() == [-2, -2, -2, -2, -2, -4, -4]
