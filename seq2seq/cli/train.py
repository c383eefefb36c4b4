"""seq2seq-train: prepare the data if it is not prepared, train, validate, leave a model directory."""

from __future__ import annotations

import os
import sys

from seq2seq.cli.hydra_command import run_hydra_command
from seq2seq.cli.launch import launch
from seq2seq.cli.rank import train_as_rank
from seq2seq.config.schema import Config
from seq2seq.support.ranks import is_rank

SUMMARY = "Train a translation model; the result is a model directory, RUN_DIR/model, for seq2seq-translate."


def train(config: Config) -> None:
    """Train in this process, or with `trainer.devices` ranks on this machine."""
    if config.trainer.devices > 1 and not is_rank():
        launch(config)
    else:
        train_as_rank(config)


def main() -> None:
    """The command."""
    code = run_hydra_command("seq2seq-train", SUMMARY, train)
    if is_rank():
        # As in `rank.main`: not the interpreter's own exit.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
