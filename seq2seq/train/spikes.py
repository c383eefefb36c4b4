"""Loss spikes: sudden, lasting rises of the loss, the first sign of a training run that breaks down."""

from __future__ import annotations

from statistics import median

WINDOW = 20
"""Updates from which the usual loss is estimated; more would miss rises while the loss still falls fast."""
LAST, ENOUGH = 5, 3
"""Of the LAST updates, ENOUGH must be above the limit: one alone is a hard batch, and an easy one may come between."""
SPREADS, LEAST = 3.0, 1.2
"""The limit is SPREADS median absolute deviations above the median, but at least LEAST nats per token above it."""


def watched(losses: list[float], loss: float) -> list[float]:
    """The losses to be kept, in nats per token, once `loss` is appended."""
    return [*losses, loss][-(WINDOW + LAST) :]


def limit(losses: list[float]) -> float:
    """The loss above which the last ones are suspicious, judged by those before them."""
    before = losses[:-LAST]
    middle = median(before)
    return middle + max(SPREADS * median(abs(loss - middle) for loss in before), LEAST)


def spike_length(losses: list[float]) -> int | None:
    """How many updates ago a spike began, counting this one; None if there is none, or too little is known."""
    if len(losses) < WINDOW + LAST:
        return None
    most = limit(losses)
    above = [loss > most for loss in losses[-LAST:]]
    return LAST - above.index(True) if sum(above) >= ENOUGH else None
