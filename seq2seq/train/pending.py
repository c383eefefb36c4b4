"""An update that the host has asked for and not yet heard of."""

from __future__ import annotations

import torch
from torch import Tensor


class Pending:
    """An update whose outcome the device may still be computing: the sums of loss and nll, the norm of the gradient."""

    def __init__(self, step: int, rate: float, tokens: tuple[int, int], outcome: Tensor) -> None:
        self.step, self.rate, self.tokens = step, rate, tokens
        self._outcome = outcome.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if outcome.is_cuda else None
        if self._copied:
            self._copied.record()

    def outcome(self) -> list[float]:
        """Loss, nll and norm, once they are there; nothing that came after them is waited for."""
        if self._copied:
            self._copied.synchronize()
        return self._outcome.tolist()
