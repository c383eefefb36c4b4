"""What search knows of a model, what it is asked for, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from seq2seq.ops.packing import Layout
from seq2seq.ops.topk import Candidates


class SearchModel(Protocol):
    """All that search knows of a model: six calls, for S slots with K hypotheses each.

    `step` continues hypothesis `parents[s, k]` of slot s (its place in the step before) with `tokens[s, k]` and gives
    hidden rows [S, K, ...]; `logits` makes logits [S, K, V] of all of them or of some slots. `best` finds the `count`
    best continuations of hypotheses with these scores [S, K], none of them a token in `never`, where the model can do
    so without logits. `keep` goes on with these slots alone, [S] numbers before, in this order.
    """

    def encode(self, tokens: Tensor, layout: Layout) -> Any: ...

    def start(self, memory: Any) -> Any: ...

    def step(self, state: Any, tokens: Tensor, parents: Tensor) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...

    def best(self, hidden: Tensor, scores: Tensor, count: int, never: Tensor) -> Candidates | None: ...

    def keep(self, state: Any, slots: Tensor) -> None: ...


@dataclass(frozen=True)
class Constraints:
    """What the output of one sentence must hold, as token ids: `prefix` at its start, each of `phrases` anywhere."""

    prefix: list[int] = field(default_factory=list)
    phrases: list[list[int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.prefix or self.phrases)


class Hypothesis(NamedTuple):
    """A finished output: token ids without bos and eos, and log-probability / length penalty.

    `limited` tells that eos came only because the output was as long as was allowed.
    """

    tokens: list[int]
    score: float
    limited: bool = False
