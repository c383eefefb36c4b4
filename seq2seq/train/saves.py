"""What a run saves: checkpoints, which a thread writes, and its best model; a full disk costs a save, not the run."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn, optim

from seq2seq.config.schema import Config
from seq2seq.data.prepare import Prepared
from seq2seq.model.directory import save_model_directory
from seq2seq.model.translation import TranslationModel
from seq2seq.model.weights import own_weights
from seq2seq.support.errors import RunError
from seq2seq.support.files import read_json
from seq2seq.train.background import Background
from seq2seq.train.checkpoint import Checkpoints, Progress, Snapshot
from seq2seq.train.distributed import World
from seq2seq.train.full_disk import FullDisk


class Saves:
    """The saves of one run; rank 0 alone writes them. `thread` is that which writes checkpoints."""

    def __init__(self, config: Config, data: Prepared, world: World) -> None:
        self.config, self.data, self.world = config, data, world
        self.run_dir = Path(config.run_dir)
        self.end_file = self.run_dir / "end.json"
        self.checkpoints = Checkpoints(self.run_dir)
        self.thread = Background()
        self._disk = FullDisk(self.run_dir, config.trainer.on_full_disk)

    def error(self) -> RunError | None:
        """The error of a run that ends with something unsaved, or None."""
        return self._disk.error()

    def end(self) -> dict[str, Any]:
        """The step at which the run ended, and its BLEU; 0 and -1 if it has not, or if the file is damaged."""
        try:
            end = read_json(self.end_file)
            step, bleu = int(end["step"]), float(end["bleu"])
            if math.isfinite(bleu):
                return {"step": step, "bleu": bleu}
        except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            pass
        return {"step": 0, "bleu": -1.0}

    def checkpoint(
        self, model: nn.Module, optimizer: optim.Optimizer, progress: Progress, average: nn.Module | None
    ) -> None:
        """Have a checkpoint of the present state written while training goes on. Raises RunError."""
        if self.world.is_main:
            # Two copies might not fit in memory.
            self.thread.wait()
            self.thread.start(partial(self._write, Snapshot.of(model, optimizer, progress, average)))

    def _write(self, snapshot: Snapshot) -> None:
        with self._disk.saving("checkpoint", snapshot.progress.step, snapshot.size):
            self.checkpoints.save(snapshot, self.config)

    def model(self, model: TranslationModel, step: int, values: dict[str, Any]) -> bool:
        """Make this the run's model; returns whether the disk had room for it, which rank 0 tells the others."""
        weights = own_weights(model)
        if self.world.is_main:
            size = sum(weight.nbytes for weight in weights.values())
            with self._disk.saving("model", step, size):
                save_model_directory(
                    self.run_dir / "model",
                    self.config,
                    self.data.tokenizer,
                    weights,
                    data_sha256=self.data.data_sha256,
                    longest_source=self.data.longest_source,
                    steps=step,
                    valid={key: values[key] for key in ("loss", "bleu", "signature")},
                )
        return bool(self.world.gather(self._disk.is_saved("model"))[0])
