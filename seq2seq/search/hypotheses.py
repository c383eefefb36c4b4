"""What search knows of a model, and what it returns."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from seq2seq.ops.packing import Layout


class SearchModel(Protocol):
    """All that search knows of a model: five calls, for S slots with K hypotheses each.

    `step` continues hypothesis `parents[s, k]` of slot s (its place in the step before) with `tokens[s, k]` and gives
    hidden rows [S, K, ...]; `logits` makes logits [S, K, V] of all of them or of some slots. `keep` goes on with these
    slots alone, [S] numbers before, in this order.
    """

    def encode(self, tokens: Tensor, layout: Layout) -> Any: ...

    def start(self, memory: Any) -> Any: ...

    def step(self, state: Any, tokens: Tensor, parents: Tensor) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...

    def keep(self, state: Any, slots: Tensor) -> None: ...


class Hypothesis(NamedTuple):
    """A finished output: token ids without bos and eos, and log-probability / length penalty."""

    tokens: list[int]
    score: float
