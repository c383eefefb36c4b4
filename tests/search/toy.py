"""A model for search whose every probability is known, and all the outputs that it has."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from seq2seq.config.search import SearchConfig
from seq2seq.ops.packing import Layout
from seq2seq.ops.topk import Candidates, best_continuations_reference
from seq2seq.search.beam import BeamSearch
from seq2seq.search.interfaces import Constraints, Hypothesis, SearchModel

BOS, EOS, NEVER = 2, 3, [0, 1, 2]
FREE = 3
VOCABULARY = 4 + FREE
WORDS = list(range(4, VOCABULARY))

Prefix = tuple[int, ...]


@cache
def row_of(seed: int, source: Prefix, prefix: Prefix) -> tuple[float, ...]:
    """The logits after a prefix (without bos): random, but always the same."""
    draw = random.Random(repr((seed, source, prefix)))
    return tuple(draw.gauss(0, 2) for _ in range(VOCABULARY))


@dataclass
class ToyState:
    """Of each slot the source and what was fed so far to each hypothesis; and how many slots each step had."""

    rows: list[tuple[Prefix, list[Prefix]]]
    slots: list[int]


class ToyModel:
    """A search model whose logits are drawn from the whole source and the whole prefix.

    With `chooses` it finds continuations itself, as models do on CPUs, and search takes logits only where it must.
    """

    def __init__(self, seed: int, *, chooses: bool = False) -> None:
        self.seed, self.chooses = seed, chooses
        self.state: ToyState | None = None

    def encode(self, tokens: Tensor, layout: Layout) -> list[Prefix]:
        return [tuple(source.tolist()) for source in tokens.split(layout.lengths.tolist())]

    def start(self, memory: list[Prefix]) -> ToyState:
        self.state = ToyState([(source, [()]) for source in memory], [])
        return self.state

    def step(self, state: ToyState, tokens: Tensor, parents: Tensor) -> Tensor:
        state.rows = [
            (source, [(*before[parent], token) for parent, token in zip(of_slot, new, strict=True)])
            for (source, before), of_slot, new in zip(state.rows, parents.tolist(), tokens.tolist(), strict=True)
        ]
        state.slots.append(len(state.rows))
        assert all(fed[0] == BOS for _, of_slot in state.rows for fed in of_slot)
        return torch.tensor([[row_of(self.seed, source, fed[1:]) for fed in of_slot] for source, of_slot in state.rows])

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def best(self, hidden: Tensor, scores: Tensor, count: int, never: Tensor) -> Candidates | None:
        if not self.chooses or count > scores.shape[1] * VOCABULARY:
            return None
        return best_continuations_reference(hidden.log_softmax(2).index_fill(2, never, -math.inf), scores, count)

    def keep(self, state: ToyState, slots: Tensor) -> None:
        assert len(slots) < len(state.rows), "it is called to let slots go"
        state.rows = [state.rows[slot] for slot in slots.tolist()]


class Exact(NamedTuple):
    """A hypothesis found by plain Python."""

    tokens: list[int]
    score: float


def log_probabilities(seed: int, source: Prefix, prefix: Prefix) -> list[float]:
    logits = row_of(seed, source, prefix)
    total = math.log(sum(math.exp(logit) for logit in logits))
    return [logit - total for logit in logits]


def score_of(seed: int, source: Prefix, words: Prefix, alpha: float) -> float:
    ended = (*words, EOS)
    total = sum(log_probabilities(seed, source, ended[:place])[token] for place, token in enumerate(ended))
    return total / ((5 + len(ended)) / 6) ** alpha


def all_outputs(
    seed: int, source: Prefix, limit: int, alpha: float, allowed: Callable[[Prefix], bool] = lambda _: True
) -> list[Exact]:
    """Every sequence of words that ends in eos within `limit` tokens and is allowed, best first."""
    found = [
        Exact(list(words), score_of(seed, source, words, alpha))
        for length in range(limit)
        for words in itertools.product(WORDS, repeat=length)
        if allowed(words)
    ]
    return sorted(found, key=lambda exact: -exact.score)


def limit_of(source: Prefix, config: SearchConfig) -> int:
    return int(len(source) * config.max_length_ratio) + config.max_length_offset


def run(
    model: SearchModel,
    sources: list[Prefix],
    config: SearchConfig,
    constraints: list[Constraints] | None = None,
    forbidden: list[list[int]] | None = None,
) -> list[list[Hypothesis]]:
    """The results of search, which must be the same where the model itself finds continuations."""
    tokens = torch.tensor([token for source in sources for token in source])
    search = BeamSearch(config, BOS, EOS, NEVER, forbidden=forbidden or [])
    layout = Layout.of([len(source) for source in sources])
    found = search(model, tokens, layout, constraints)
    if type(model) is ToyModel and not model.chooses:
        again = search(ToyModel(model.seed, chooses=True), tokens, layout, constraints)
        for of_one, also in zip(found, again, strict=True):
            assert [hypothesis.tokens for hypothesis in also] == [hypothesis.tokens for hypothesis in of_one]
            for hypothesis, other in zip(of_one, also, strict=True):
                assert other.score == pytest.approx(hypothesis.score, abs=1e-5)
                assert other.limited == hypothesis.limited
    return found


def holds(words: Sequence[int], phrase: Sequence[int]) -> bool:
    """Whether `phrase` stands in `words`."""
    size = len(phrase)
    return any(tuple(words[start : start + size]) == tuple(phrase) for start in range(len(words) - size + 1))


def assert_same(found: list[Hypothesis], expected: list[Exact]) -> None:
    assert [hypothesis.tokens for hypothesis in found] == [exact.tokens for exact in expected]
    for hypothesis, exact in zip(found, expected, strict=True):
        assert hypothesis.score == pytest.approx(exact.score, abs=1e-5)


SOURCES: list[Prefix] = [(4, 3), (5, 4, 3), (3,), (6, 3)]
