"""seq2seq-train: prepare the data where it is not prepared, train, validate, leave a model directory."""

from __future__ import annotations

import sys

from seq2seq.cli.hydra_command import run_hydra_command
from seq2seq.config.schema import Config

SUMMARY = "Train a translation model; the result is a model directory, RUN_DIR/model, for seq2seq-translate."


def train(config: Config) -> None:
    """Prepare and train; a run of other settings is refused before its prepared data are touched."""
    from pathlib import Path

    from seq2seq.data.prepare import prepare
    from seq2seq.train.checkpoint import Checkpoints
    from seq2seq.train.trainer import Trainer

    Checkpoints(Path(config.run_dir)).require_same_settings(config)
    Trainer(config, prepare(config)).run()


def main() -> None:
    """The command."""
    sys.exit(run_hydra_command("seq2seq-train", SUMMARY, train))


if __name__ == "__main__":
    main()
