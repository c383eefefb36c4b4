"""What search requires of a model, what it is asked for, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from seq2seq.ops.packing import Layout
from seq2seq.ops.topk import Candidates

Slots = slice | Tensor
"""Some of the slots: a range of them, or their numbers [S]."""


class SearchModel(Protocol):
    """All that search requires of a model: six methods, for S slots with K hypotheses each.

    `step` extends hypothesis `parents[s, k]` of slot s (its index in the previous step) with `tokens[s, k]` and returns
    hidden rows [S, K, ...]; `logits` turns those of all or some slots into logits [S, K, V]. `best` finds the `count`
    best continuations of hypotheses with these scores [S, K], none of them a token in `never`, where the model can do
    so without logits. `keep` keeps only these slots, given by their previous numbers [S], in this order.
    """

    def encode(self, tokens: Tensor, layout: Layout) -> Any: ...

    def start(self, memory: Any) -> Any: ...

    def step(self, state: Any, tokens: Tensor, parents: Tensor) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...

    def best(self, hidden: Tensor, scores: Tensor, count: int, never: Tensor) -> Candidates | None: ...

    def keep(self, state: Any, slots: Tensor) -> None: ...


@dataclass(frozen=True)
class Constraints:
    """What the output of one sentence must contain, as token ids: `prefix` at its start, each of `phrases` anywhere."""

    prefix: list[int] = field(default_factory=list)
    phrases: list[list[int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.prefix or self.phrases)


class Hypothesis(NamedTuple):
    """A finished output: token ids without bos and eos, and log-probability / length penalty.

    `limited` says that the output is as long as it may be: eos may have come only because of that.
    """

    tokens: list[int]
    score: float
    limited: bool = False
