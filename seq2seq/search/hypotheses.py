"""What search knows of a model, and what it returns."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from seq2seq.ops.packing import Layout


class SearchModel(Protocol):
    """All that search knows of a model: three calls, and logits [S, K, V] for S slots with K hypotheses each.

    `step` continues row `parents[s, k]` of the step before (slot · K + place) with `tokens[s, k]`; all parents in a
    row come from one slot, and a slot that none names is released.
    """

    def encode(self, tokens: Tensor, layout: Layout) -> Any: ...

    def start(self, memory: Any) -> Any: ...

    def step(self, state: Any, tokens: Tensor, parents: Tensor) -> Tensor: ...


class Hypothesis(NamedTuple):
    """A finished output: token ids without bos and eos, and log-probability / length penalty."""

    tokens: list[int]
    score: float
