"""Loss spikes: sudden rises of the loss that stay, the first sign of a training that breaks down."""

from __future__ import annotations

from statistics import median

WINDOW = 20
"""Updates from which the usual loss is known; more of them would miss rises while the loss still falls fast."""
LAST, ENOUGH = 5, 3
"""So many of the last updates must be above the limit: one alone is a hard batch, and an easy one may come between."""
SPREADS, LEAST = 3.0, 1.2
"""The limit above the median: so many median deviations, and at least so much, in nats a token."""


def watched(losses: list[float], loss: float) -> list[float]:
    """The losses to be kept, in nats a token, once `loss` has come after them."""
    return [*losses, loss][-(WINDOW + LAST) :]


def limit(losses: list[float]) -> float:
    """The loss above which the last ones are suspicious, by those before them."""
    before = losses[:-LAST]
    middle = median(before)
    return middle + max(SPREADS * median(abs(loss - middle) for loss in before), LEAST)


def spike_length(losses: list[float]) -> int | None:
    """How many updates ago a spike began, this one counted; None where there is none, or too little is known."""
    if len(losses) < WINDOW + LAST:
        return None
    most = limit(losses)
    above = [loss > most for loss in losses[-LAST:]]
    return LAST - above.index(True) if sum(above) >= ENOUGH else None
