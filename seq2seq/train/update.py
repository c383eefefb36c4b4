"""An update of the weights: what it is made from, and its outcome, which the host may not know yet."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seq2seq.data.batches import MicroBatch


class Update(NamedTuple):
    """An update to be made: the numbers of its pairs, its source and target token counts, this rank's parts of it."""

    pairs: list[int]
    tokens: tuple[int, int]
    parts: list[MicroBatch]


class Pending:
    """An update whose outcome the device may still be computing: the sums of loss and nll, the norm of the gradient.

    `tokens` are its source and target token counts, `pairs` the numbers of its pairs in the store.
    """

    def __init__(self, step: int, rate: float, tokens: tuple[int, int], pairs: list[int], outcome: Tensor) -> None:
        self.step, self.rate, self.tokens, self.pairs = step, rate, tokens, pairs
        self._outcome = outcome.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if outcome.is_cuda else None
        if self._copied:
            self._copied.record()

    def outcome(self) -> list[float]:
        """Loss, nll and norm; waits until they are there, but not for any later work of the device."""
        if self._copied:
            self._copied.synchronize()
        return self._outcome.tolist()
