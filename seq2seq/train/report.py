"""What a run reports: console lines, log.jsonl, TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seq2seq.support.errors import FULL_DISK
from seq2seq.support.progress import say

SHORT = 5.0
"""The computing of an update is counted before the line on it begins, which distorts the rate of so short a time."""


class Report:
    """Writes `log.jsonl` and, where TensorBoard is installed, its events; prints a line every few seconds of training.

    The first update has a line of its own, without rates: its time includes what is compiled. Neither has a line on
    less than `SHORT` seconds, with which a run may end.
    Without a `run_dir` nothing is written: only one of several ranks reports. `trained` is the training time so far, in
    seconds.
    """

    def __init__(self, run_dir: Path | None, log_seconds: float, trained: float = 0.0) -> None:
        log = run_dir / "log.jsonl" if run_dir else Path(os.devnull)
        if log.is_file():
            _drop_torn_line(log)
        # Unbuffered: what a full disk has no room for must not stay here.
        self._log = log.open("ab", buffering=0)
        self._log_seconds = log_seconds
        self._told = self._warm = False
        self._events: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(run_dir / "tensorboard")) if run_dir else None
        except ImportError:
            pass
        self._clear(trained)

    def _clear(self, trained: float) -> None:
        self._since = self._trained = trained
        self._nll = self._loss = 0.0
        self._source_tokens = self._target_tokens = self._steps = 0

    def update(
        self,
        step: int,
        sums: tuple[float, float],
        tokens: tuple[int, int],
        rate: float,
        trained: float,
        left: tuple[int, float],
    ) -> None:
        """Count an update: sums of (loss, nll), numbers of (source, target) tokens; `left`: steps, and seconds at most.

        `trained` is the training time up to it in seconds, not counting saves and validations.
        """
        self._loss += sums[0]
        self._nll += sums[1]
        self._source_tokens += tokens[0]
        self._target_tokens += tokens[1]
        self._steps += 1
        self._step, self._rate, self._trained, self._left = step, rate, trained, left
        if not self._warm or trained - self._since >= self._log_seconds:
            self.tell()

    def tell(self) -> None:
        """Write and print a line on the updates since the last line, if there are any."""
        if not self._steps:
            return
        seconds, nll = self._trained - self._since, self._nll / self._target_tokens
        values = {
            "loss": self._loss / self._target_tokens,
            "perplexity": math.exp(min(nll, 50.0)),
            "learning_rate": self._rate,
        }
        pace = ""
        if self._warm and seconds >= min(SHORT, self._log_seconds):
            rates = self._source_tokens / seconds, self._target_tokens / seconds
            values["source_tokens_per_second"], values["target_tokens_per_second"] = rates
            time_left = max(0.0, min(self._left[0] * seconds / self._steps, self._left[1]))
            pace = f"  {rates[0]:,.0f} + {rates[1]:,.0f} tokens/s  {time_left / 60:.1f} min left"
        say(
            f"step {self._step:,}  loss {values['loss']:.3f}  perplexity {values['perplexity']:.2f}  "
            f"lr {self._rate:.2e}{pace}"
        )
        self.record("train", self._step, values)
        self._warm = True
        self._clear(self._trained)

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write a line to `log.jsonl`, and its numbers to TensorBoard."""
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        with self._full_disk_allowed():
            self._append(json.dumps(line, ensure_ascii=False) + "\n")
        with self._full_disk_allowed():
            for name, value in values.items() if self._events else ():
                if isinstance(value, int | float):
                    self._events.add_scalar(f"{kind}/{name}", value, step)

    def _append(self, line: str) -> None:
        """Write a line to `log.jsonl`, or nothing of it."""
        size = os.fstat(self._log.fileno()).st_size
        rest = line.encode()
        try:
            while rest:
                rest = rest[self._log.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._log.truncate(size)
            raise

    @contextlib.contextmanager
    def _full_disk_allowed(self) -> Iterator[None]:
        """Report once that the disk is too full for the log, and go on: that is no reason to end training."""
        try:
            yield
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            if not self._told:
                say("the disk is full: log.jsonl has no room for some lines, nor have TensorBoard's events")
            self._told = True

    def close(self) -> None:
        """Flush and close the files."""
        with self._full_disk_allowed():
            self._log.close()
        with self._full_disk_allowed():
            if self._events:
                self._events.close()


def _drop_torn_line(log: Path) -> None:
    """Cut off what a killed run wrote of its last line: a kill can end a write where a page of memory does."""
    with log.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
