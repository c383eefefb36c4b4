"""Running a Hydra application with our help, errors and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import seq2seq
from seq2seq.config.compose import COMPOSING, checked, conf_dir, explained, options_of
from seq2seq.config.schema import Config
from seq2seq.support.errors import Stopped, UserError, exit_code_of
from seq2seq.support.processors import spin
from seq2seq.support.ranks import is_rank
from seq2seq.support.streams import make_dependable

HELP = """{summary}

usage: {command} +recipe=NAME [key=value ...]

recipes:
  {recipes}

common keys:
  run_dir=DIR                               where everything is written (default: runs/NAME)
  data.train.source=FILE data.train.target=FILE
                                            parallel text of your own: plain, .gz, .xz, .bz2, .zst; or
                                            data.train.source=FILE.tsv / FILE.jsonl alone; lists: '[a,b]'
  data.valid.source=… data.valid.target=…   the same for validation (else the recipe's own; with +recipe=files some of
                                            the training pairs are held out)
  data.source_language=en data.target_language=de
  tokenizer={tokenizers} tokenizer.vocab_size=8000
  model={models}
                                            (default: the recipe's, else base); or model/encoder=… model/decoder=…,
                                            model.d_model=512, …
  schedule={schedules} schedule.peak=X schedule.warmup_steps=N
  optimizer={optimizers} optimizer.clip_norm=X
  trainer.max_steps=N trainer.max_minutes=M trainer.patience=N trainer.device=cpu trainer.precision=float32
  trainer.devices=N                         that many GPUs of this machine; of several machines: torchrun
  init_from=DIR                             go on from a model directory, with its vocabulary, on other data
  search={searches} search.beam_size=4 search.length_penalty=0.6
  +ablation=ROW                             after +recipe=NAME: one row of the paper's table 3, such as A_heads_1,
                                            B_key_size_16, E_learned_positions; +recipe=table3 runs them all

flags:
  --cfg job         print the composed configuration and exit: every key there is
  --config-dir DIR  also find recipes of your own there: DIR/recipe/NAME.yaml
  --multirun, -m    one run for each value of key=a,b,c, in RUN_DIR/0, RUN_DIR/1, … (rows of table 3: RUN_DIR/ROW)
  --version         print the version
  --hydra-help      Hydra's own flags

A run that was stopped is resumed by the same command.
"""


def run_hydra_command(command: str, summary: str, task: Callable[[Config], None]) -> int:
    """Compose the configuration from the command line, check it, and run `task` with it; returns the exit code."""
    make_dependable()
    # More would cost training beside other processes much of its speed (docs/log.md).
    spin(2_000)
    arguments = sys.argv[1:]
    if "--version" in arguments:
        print(f"{command} {seq2seq.__version__}")
        return 0
    if {"-h", "--help"} & set(arguments) or not arguments:
        help_text = HELP.format(
            command=command,
            summary=summary,
            recipes="\n  ".join(options_of("recipe")),
            **{f"{group}s": "|".join(options_of(group)) for group in ("model", "tokenizer", "schedule", "optimizer")},
            searches="|".join(options_of("search")),
        )
        print(help_text, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    # Hydra then lets its own exceptions through, which we turn into messages and exit codes.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    failures: list[Exception] = []
    rows: set[str] = set()
    parsing = contextlib.ExitStack()

    def job(composed: DictConfig) -> None:
        # What runs now may parse arguments of its own.
        parsing.close()
        if failures:
            return
        try:
            if HydraConfig.get().mode == RunMode.MULTIRUN and is_rank():
                raise UserError("several runs under torchrun: start each by itself, or use trainer.devices=N")
            task(_of_job(composed, rows))
        except Exception as error:
            # If it were raised here, Hydra would print a line of its own about it.
            failures.append(error)

    def run() -> None:
        try:
            with parsing:
                parsing.enter_context(_parsed_our_way(command))
                hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
        except COMPOSING as error:
            raise explained(error, [argument for argument in arguments if "=" in argument]) from None
        except KeyboardInterrupt:
            raise Stopped(signal.SIGINT, "stopped by SIGINT; rerun the same command to resume") from None
        except yaml.YAMLError as error:
            raise UserError(f"not valid YAML: {' '.join(str(error).split())}") from None
        if failures:
            raise failures[0]

    return exit_code_of(command, run)


@contextlib.contextmanager
def _parsed_our_way(command: str) -> Iterator[None]:
    """A context in which mistakes in Hydra's flags are told in one line, and settings may stand between flags.

    Its help texts are not checked: one text of Hydra 1.3 is not a string, which argparse refuses since Python 3.14.
    """

    def error(_: argparse.ArgumentParser, message: str) -> NoReturn:
        raise UserError(f"{message}; {command} --help lists the flags, and settings are typed key=value")

    intermixed = argparse.ArgumentParser.parse_intermixed_args
    ours = {"error": error, "parse_args": intermixed, "_check_help": lambda *_: None}
    theirs = {name: getattr(argparse.ArgumentParser, name) for name in ours if hasattr(argparse.ArgumentParser, name)}
    for name in theirs:
        setattr(argparse.ArgumentParser, name, ours[name])
    try:
        yield
    finally:
        for name, function in theirs.items():
            setattr(argparse.ArgumentParser, name, function)


def _of_job(composed: DictConfig, rows: set[str]) -> Config:
    """The checked configuration; a multirun's jobs have run directories named by their row of table 3, or number.

    Rows differ only in the model and its training, so they all read the data of the common directory.
    """
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN or OmegaConf.is_missing(composed, "run_dir"):
        return checked(composed)
    row, number = hydra_config.runtime.choices.get("ablation"), hydra_config.job.num
    if row is None or row in rows:
        # A second job of the same row differs in something else, such as the seed, and so may its data.
        composed.run_dir += f"/{number}" if row is None else f"/{row}_{number}"
        return checked(composed)
    rows.add(row)
    config = checked(composed)
    config.run_dir += f"/{row}"
    return config
