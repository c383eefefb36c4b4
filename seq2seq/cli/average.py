"""seq2seq-average: a model directory from the mean of several checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from seq2seq.cli.common import parser, require_positive, run
from seq2seq.config import compose
from seq2seq.support.errors import UserError
from seq2seq.support.progress import say

SUMMARY = "Average the weights of a run's last checkpoints into a new model directory."
EXAMPLES = """examples:
  seq2seq-average runs/multi30k_en_de --last 5 --output averaged
  seq2seq-average runs/multi30k_en_de --steps 5000,5500,6000 --output averaged
"""


def options() -> argparse.ArgumentParser:
    """The command's options."""
    made = parser("seq2seq-average", SUMMARY, EXAMPLES)
    made.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the directory of a training run")
    made.add_argument(
        "--last",
        type=int,
        metavar="N",
        help="how many, the newest ones at multiples of trainer.save_every (default: 5)",
    )
    made.add_argument("--steps", metavar="A,B,…", help="the checkpoints of these steps instead")
    made.add_argument("--output", type=Path, required=True, metavar="DIR", help="the model directory to write")
    return made


def average(arguments: argparse.Namespace) -> None:
    """Write the averaged model. Raises UserError for missing or damaged checkpoints."""
    from seq2seq.data.tokenizer import Tokenizer
    from seq2seq.model.directory import read_manifest, save_model_directory
    from seq2seq.support.manifest import MANIFEST, damage
    from seq2seq.train.averaging import average_weights
    from seq2seq.train.checkpoint import Checkpoints, step_of

    if arguments.output.exists():
        raise UserError(f"{arguments.output}: already there; give another --output")
    require_positive(arguments, "last")
    if arguments.last and arguments.steps:
        raise UserError(f"--last {arguments.last} with --steps {arguments.steps}: leave out either")
    last = arguments.last or 5
    checkpoints = Checkpoints(arguments.run_dir)
    found = checkpoints.all()
    if not found:
        raise UserError(f"{checkpoints.directory}: no checkpoints there; give the directory of a training run")
    trained = arguments.run_dir / "model"
    if not (trained / MANIFEST).is_file():
        raise UserError(f"{trained}: not there before the run's first validation; type the training command again")
    there = ", ".join(str(step_of(path)) for path in found)
    if arguments.steps is None:
        every = compose.load(found[-1] / "config.yaml").trainer.save_every
        chosen = checkpoints.regular(every)[-last:]
        if len(chosen) < last:
            raise UserError(
                f"{arguments.run_dir}: {len(chosen)} of {last} checkpoints at multiples of "
                f"trainer.save_every={every} found (steps there: {there}); choose others: --steps A,B,…"
            )
    else:
        steps, by_step = arguments.steps.split(","), {str(step_of(path)): path for path in found}
        chosen = [path for step, path in by_step.items() if step in steps]
        if absent := [step for step in steps if step not in by_step]:
            raise UserError(
                f"--steps {arguments.steps}: {arguments.run_dir} has no checkpoint of step {', '.join(absent)} "
                f"(steps there: {there})"
            )
    for folder in chosen:
        if fault := damage(folder):
            raise UserError(f"{folder}/{fault}; choose others: --steps A,B,…")
    manifest = read_manifest(trained)
    save_model_directory(
        arguments.output,
        compose.load(chosen[-1] / "config.yaml"),
        Tokenizer.load(trained / "tokenizer.model"),
        average_weights([path / "model.safetensors" for path in chosen]),
        **{key: manifest[key] for key in ("data_sha256", "longest_source") if key in manifest},
        steps=[step_of(path) for path in chosen],
    )
    say(f"{arguments.output}: the mean of {', '.join(path.name for path in chosen)}")


def main() -> None:
    """The command."""
    run(options, average)


if __name__ == "__main__":
    main()
