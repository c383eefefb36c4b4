"""Loss spikes: sudden rises of the loss that stay, the first sign of a training that breaks down."""

from __future__ import annotations

from statistics import median

WINDOW = 20
"""Updates before a rise from which the usual loss is known; longer ones miss rises while the loss still falls fast."""
IN_A_ROW = 3
"""Updates that must all be above the limit: one alone is a hard batch."""
SPREADS, LEAST = 3.0, 1.0
"""The limit above the median: so many median deviations, and at least so much, in nats a token."""


def is_spike(losses: list[float]) -> bool:
    """Whether the last `IN_A_ROW` losses, in nats a token, are all far above the `WINDOW` before them, if there are."""
    before, last = losses[:-IN_A_ROW], losses[-IN_A_ROW:]
    return len(before) >= WINDOW and min(last) > limit(before)


def limit(losses: list[float]) -> float:
    """The loss that is suspicious after these."""
    middle = median(losses)
    return middle + max(SPREADS * median(abs(loss - middle) for loss in losses), LEAST)


def watched(losses: list[float], loss: float) -> list[float]:
    """The losses to be kept, once `loss` has come after them."""
    return [*losses, loss][-(WINDOW + IN_A_ROW) :]
