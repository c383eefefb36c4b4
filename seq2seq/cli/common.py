"""What the argparse commands share: version, finding a model, loading a translator."""

from __future__ import annotations

import argparse
import gc
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import seq2seq
from seq2seq.cli.search_options import add_search_options, chosen, settings_named_as_options
from seq2seq.config.schema import MOST_TOKENS
from seq2seq.support.errors import UserError, exit_code_of
from seq2seq.support.manifest import MANIFEST
from seq2seq.support.processors import available_processors, spin
from seq2seq.support.progress import say
from seq2seq.support.streams import make_dependable

if TYPE_CHECKING:
    from seq2seq.translate.translator import Translator

UNMET = "lines translated without the prefix or terms asked for"
MOST_THREADS = 16
"""Threads for each processor beyond which a number is taken for a mistake: some systems cannot start as many."""


def run(options: Callable[[], argparse.ArgumentParser], body: Callable[[argparse.Namespace], None]) -> None:
    """A whole command: its options are read, its body is run, and its process ends with the exit code."""
    make_dependable()
    # As few as in training would cost the search of a single sentence a tenth of its time (docs/log.md).
    spin(10_000)
    made = options()
    arguments = made.parse_args()
    sys.exit(exit_code_of(made.prog, lambda: body(arguments)))


def require_streams(example: str, *, reads: bool = True) -> None:
    """Raise UserError if standard output, or with `reads` standard input, is closed."""
    if sys.stdout is None or (reads and sys.stdin is None):
        raise UserError(f"standard {'input or ' if reads else ''}output is closed; type: {example}")


class Parser(argparse.ArgumentParser):
    """A parser that explains a mistake in one line, without the usage of a whole screen."""

    reads_text = False
    """Whether the command reads text from standard input."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2; a command alone, where it needs more, shows its usage."""
        if len(sys.argv) == 1:
            super().error(message)
        stray = message.removeprefix("unrecognized arguments: ")
        if self.reads_text and stray != message and Path(stray).is_file():
            message = f"{message}; text is read from standard input: < {shlex.quote(stray)}"
        self.exit(UserError.exit_code, f"{self.prog}: {message}; {self.prog} --help lists the options\n")


def parser(command: str, summary: str, epilog: str, *, reads_text: bool = False) -> argparse.ArgumentParser:
    """A parser with --version and examples under its help."""
    made = Parser(command, description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.reads_text = reads_text
    made.add_argument("--version", action="version", version=f"{command} {seq2seq.__version__}")
    return made


def add_device_options(
    options: argparse.ArgumentParser,
    devices: str = "auto, cpu, cuda, cuda:1",
    batches: str = "source and target tokens per batch (default: 4096)",
) -> None:
    """The options of commands that compute with a model."""
    options.add_argument(
        "--model", metavar="DIR", help="model directory (default: $SEQ2SEQ_MODEL, else the newest under runs/)"
    )
    options.add_argument("--device", default="auto", help=f"{devices} (default: auto)")
    options.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "int8"), help="default: float32; int8 is for CPUs"
    )
    options.add_argument("--threads", type=int, metavar="N", help="compute in one process of N threads")
    options.add_argument("--batch-tokens", type=int, metavar="N", help=batches)


def add_model_options(options: argparse.ArgumentParser) -> None:
    """The options of commands that translate."""
    add_device_options(
        options,
        "auto, cpu, cuda, or several GPUs: cuda:0,cuda:1",
        "source tokens per batch (default: 8192, on GPUs 32768); with several workers up to half as many more, so that "
        "all end together",
    )
    options.add_argument(
        "--ensemble",
        metavar="DIR",
        action="append",
        default=[],
        help="another model of the same vocabulary, to search together with it (may be given several times)",
    )
    options.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes of one thread that share the work (default: as many as processors; 1 with --threads or a GPU)",
    )
    options.add_argument(
        "--deterministic",
        action="store_true",
        help="bitwise the same scores whatever else is translated; on GPUs line by line, many times slower",
    )
    options.add_argument(
        "--glossary",
        type=Path,
        metavar="FILE",
        help="terms, one pair a line (source, tab, target): where the source has one, the output has the other",
    )
    options.add_argument("--forbid", type=Path, metavar="FILE", help="words and phrases not to be used, one per line")
    add_search_options(options)


def prepare_process(arguments: argparse.Namespace) -> None:
    """Set this process's threads and memory handling according to the options. Raises UserError."""
    import torch

    from seq2seq.support.devices import keep_freed_memory

    require_positive(arguments, "threads")
    require_positive(arguments, "batch_tokens", MOST_TOKENS)
    if arguments.threads:
        processors = available_processors()
        if arguments.threads > MOST_THREADS * processors:
            raise UserError(
                f"--threads {arguments.threads}: there are {processors} processors; type --threads {processors}"
            )
        torch.set_num_threads(arguments.threads)
    keep_freed_memory()


def require_positive(arguments: argparse.Namespace, name: str, most: int | None = None) -> None:
    """Raise UserError if the option of this name was given a value below 1, or above `most`."""
    value = getattr(arguments, name)
    given = f"--{name.replace('_', '-')} {value}"
    if value is not None and value < 1:
        raise UserError(f"{given}: must be at least 1")
    if value is not None and most is not None and value > most:
        raise UserError(f"{given}: must be at most {most}")


def load_translator(arguments: argparse.Namespace) -> Translator:
    """The translator that the options ask for. Raises UserError."""
    directory = find_model(arguments.model)

    from seq2seq.data.text_files import read_lines
    from seq2seq.translate.glossary import Glossary
    from seq2seq.translate.translator import Translator

    prepare_process(arguments)
    require_positive(arguments, "workers")
    with settings_named_as_options():
        translator = Translator.load(
            directory, *arguments.ensemble, device=arguments.device, dtype=arguments.dtype, **chosen(arguments)
        )
    translator.batch_tokens = arguments.batch_tokens or translator.batch_tokens
    translator.deterministic = arguments.deterministic
    if arguments.glossary:
        translator.glossary = Glossary.load(arguments.glossary)
    if arguments.forbid:
        translator.forbidden = [line for line in read_lines(arguments.forbid) if line]
    one_process = bool(arguments.threads) or translator.model.device.type == "cuda" or bool(translator.devices)
    if arguments.workers and one_process:
        raise UserError("--workers is for processes of one thread on the CPU: drop it, or drop --threads and --device")
    if not one_process:
        # Elsewhere the state of the system's libraries may not survive a fork.
        default = available_processors() if sys.platform.startswith("linux") else 1
        translator.workers = arguments.workers or default
    # What a command has loaded stays until it ends: garbage collection would copy the pages that the workers share.
    gc.freeze()
    return translator


def _written(path: Path) -> float:
    """When a file was written."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        # A training run is putting another model in its place.
        return time.time()


def find_model(given: str | None) -> Path:
    """The directory given, else $SEQ2SEQ_MODEL, else the newest under runs/, named on stderr. Raises UserError."""
    named = given or os.environ.get("SEQ2SEQ_MODEL")
    if named:
        return Path(named)
    manifests = sorted(Path("runs").glob(f"**/model/{MANIFEST}"), key=_written)
    if not manifests:
        raise UserError("no model under runs/; train one: seq2seq-train +recipe=quickstart, or give one: --model DIR")
    say(f"model: {manifests[-1].parent}")
    return manifests[-1].parent
