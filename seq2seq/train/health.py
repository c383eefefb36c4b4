"""Training health: non-finite gradients and sudden rises of the loss are detected and reported."""

from __future__ import annotations

import math

from seq2seq.config.schema import TrainerConfig
from seq2seq.data.prepare import Prepared
from seq2seq.support.errors import RunError, UserError
from seq2seq.support.progress import say
from seq2seq.train.checkpoint import REMEDY, Progress
from seq2seq.train.distributed import World
from seq2seq.train.report import Report
from seq2seq.train.spikes import limit, spike_length, watched
from seq2seq.train.update import Pending

SHOWN = 8
"""How many lines a message names; the log has all."""
MOST_ROLLBACKS = 3
"""How often a run goes back without reaching its next save."""


class Health:
    """Judges the outcomes of updates, in order; its counts are kept in the run's progress."""

    def __init__(
        self, settings: TrainerConfig, progress: Progress, report: Report, data: Prepared, world: World
    ) -> None:
        self._settings, self._progress, self._report = settings, progress, report
        self._data, self._world = data, world

    def accept(self, update: Pending, loss: float, norm: float) -> bool:
        """Whether the update, whose summed loss this is, changed the weights: whether its gradient norm is finite.

        All ranks must call it, with the same loss and norm. Raises RunError after `trainer.max_skipped` updates in a
        row that did not change them.
        """
        progress, most = self._progress, self._settings.max_skipped
        loss /= update.tokens[1]
        if math.isfinite(norm):
            progress.skipped = 0
            return True
        progress.skipped += 1
        # By one rank for all: the whole table of cleaned pairs is checked first.
        lines = self._world.gather(self._lines(update.pairs) if self._world.is_main else [])[0]
        # As strings: JSON has no NaN or infinity.
        self._report.record("skipped", update.step, {"loss": str(loss), "norm": str(norm), "lines": lines})
        shown = ", ".join(lines[:SHOWN]) + (", …" if len(lines) > SHOWN else "")
        message = (
            f"step {update.step}: the loss is {loss}, the norm of its gradient {norm}; the weights were not updated "
            f"(its lines: {shown}; all {len(lines)} in log.jsonl)"
        )
        if progress.skipped >= most:
            raise RunError(f"{message}; {most} in a row, the limit of trainer.max_skipped. {REMEDY}")
        say(f"{message}; going on ({progress.skipped} in a row, trainer.max_skipped={most})")
        return False

    def _lines(self, pairs: list[int]) -> list[str]:
        try:
            return self._data.places(pairs)
        except UserError as error:
            # Missing names are no reason to end training.
            say(f"the lines of the update are not known: {error}")
            return [f"pair {pair} of the encoded training data, counted from 0" for pair in pairs]

    def spike(self, update: Pending, loss: float) -> int | None:
        """The step where the loss rose and stayed up, if the run is to go back to before it; None: it goes on.

        Raises RunError if the run went back to the same checkpoint too often.
        """
        progress, policy = self._progress, self._settings.on_loss_spike
        if policy == "off":
            return None
        losses = progress.losses = watched(progress.losses, loss / update.tokens[1])
        length = spike_length(losses)
        if length is None:
            return None
        since, highest, most = update.step - length + 1, max(losses[-length:]), limit(losses)
        # The usual loss is estimated afresh, so that the same rise is reported only once.
        progress.losses = []
        message = f"step {update.step}: the loss rose to {highest:.3f}, since step {since} above the limit {most:.3f}"
        self._report.record("spike", update.step, {"since": since, "loss": highest, "limit": most})
        if policy == "warn":
            say(f"{message} (trainer.on_loss_spike=rollback would go back)")
            return None
        if progress.rollbacks >= MOST_ROLLBACKS:
            raise RunError(f"{message}; going back {MOST_ROLLBACKS} times did not help. {REMEDY}")
        say(message)
        return since
