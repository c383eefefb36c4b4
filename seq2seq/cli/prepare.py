"""seq2seq-prepare: only the data stages of a recipe."""

from __future__ import annotations

import sys

from seq2seq.cli.hydra_command import run_hydra_command
from seq2seq.config.schema import Config
from seq2seq.support.progress import say

SUMMARY = (
    "Clean the corpora, train the tokenizer, encode: what seq2seq-train does first. What is up to date is left alone."
)


def prepare_data(config: Config) -> None:
    """Prepare the data, and say what there is."""
    from seq2seq.data.prepare import prepare

    data = prepare(config)
    source, target = (int(lengths.sum()) for lengths in data.train.lengths)
    say(
        f"{config.data.prepared_dir}: {len(data.train):,} training pairs "
        f"({source:,} source and {target:,} target tokens), {len(data.valid):,} validation pairs, "
        f"{data.tokenizer.vocab_size:,} pieces"
    )


def main() -> None:
    """The command."""
    sys.exit(run_hydra_command("seq2seq-prepare", SUMMARY, prepare_data))


if __name__ == "__main__":
    main()
