"""Translation speed: ours beside CTranslate2 and, if named, Hugging Face's Marian, with the same weights.

    python -m tools.bench_decode MODEL_DIR SOURCE REFERENCE [--rounds 5] [--rows NAME ...]
        [--contestants NAME ...] [--device cpu|cuda] [--output FILE]

Each contestant lives in a process of its own and works only when it is its turn; a round is one turn each, each figure
the median over the rounds. Beside each speed: BLEU, the share of lines identical to those of our float32, the rows that
its decoder computed, and peak memory. Start-up time is not part of the speeds but a column of its own; a whole process
for one sentence is measured too, beside one that only imports PyTorch. Prints a table to stderr and the figures as JSON
to stdout. No contestant may give an empty output.
CTranslate2 runs at its best: the best of several batch sizes, two workers of one thread each, and AVX-512. With
--device cuda all are measured there, in one process each, CTranslate2 and Marian at the best of three batch sizes. A
contestant that cannot run is left out, and a line says so.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from seq2seq.evaluate.scores import bleu
from seq2seq.support.errors import RunError
from seq2seq.support.progress import say
from tools.benchmarks import decode, one_line_seconds
from tools.origin import give_out, origin
from tools.worker import JsonProcess

PROCESSORS = 2
CTRANSLATE2 = {"CT2_FORCE_CPU_ISA": "AVX512"}
CONTESTANTS = ["ours bfloat16", "ours int8", "ours float32", "ctranslate2 int8", "ctranslate2 float32"]
SETTINGS: dict[str, dict[str, Any]] = {
    "beam": {"beam_size": 4, "length_penalty": 0.0},
    "greedy": {"beam_size": 1, "length_penalty": 0.0},
    "product": {"beam_size": 4, "length_penalty": 0.6},
    "stop": {"beam_size": 4, "length_penalty": 0.6, "stop": "beam"},
    "alone": {"beam_size": 4, "length_penalty": 0.0, "lines": 200, "deterministic": True},
    "base": {"beam_size": 4, "length_penalty": 0.0, "lines": 200, "forced": 30},
    "latency": {"beam_size": 4, "length_penalty": 0.0, "lines": 100, "one_by_one": True},
    "base-latency": {"beam_size": 4, "length_penalty": 0.0, "lines": 8, "forced": 30, "one_by_one": True},
}
"""What each row of the table sets: `product` has each side's own length penalty, in `stop` ours ends a text as
CTranslate2 does, in `alone` ours is --deterministic, `base` and `base-latency` have random weights."""


class Contestant:
    """A process that translates the whole text each time it is asked to."""

    def __init__(self, name: str, job: dict[str, Any]) -> None:
        self.name = name
        system, self.dtype = name.split()
        environment = {"OMP_NUM_THREADS": "1"} if job["device"] == "cpu" else {}
        if job["device"] == "cpu" and system == "ctranslate2":
            environment |= CTRANSLATE2
        self.process = JsonProcess("tools.decode_contestant", system, environment=environment)
        self.rounds: list[dict[str, Any]] = []
        self.ready: dict[str, Any] = {}

    def begin(self, job: dict[str, Any]) -> None:
        """Have it load its model. Raises RunError where it cannot."""
        self.ready = self._ask({**job, "dtype": self.dtype})

    def turn(self) -> None:
        """One round."""
        self.rounds.append(self._ask({}))

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            self.process.ask(question)
            return self.process.answer()
        except RunError as error:
            raise RunError(f"{self.name} {error}") from None


def measure(names: list[str], job: dict[str, Any], rounds: int, references: list[str]) -> dict[str, Any]:
    """The figures of one row of the table, by contestant."""
    contestants = {}
    # On a GPU all start at once, to save its time; on two cores their imports would slow each other down.
    started = {name: Contestant(name, job) for name in names} if job["device"] == "cuda" else {}
    for name in names:
        contestant = started.get(name) or Contestant(name, job)
        try:
            contestant.begin(job)
            contestants[name] = contestant
        except RunError as error:
            say(f"left out: {error}")
    for _ in range(rounds):
        for contestant in contestants.values():
            contestant.turn()
    # Lines, not tokens: the text is the same for all, and with `forced` so is the number of steps.
    figures: dict[str, Any] = {}
    ours = contestants["ours float32"].rounds[0]["texts"] if "ours float32" in contestants else None
    for name, contestant in contestants.items():
        contestant.process.end()
        last = contestant.rounds[-1]
        seconds = [turn["seconds"] for turn in contestant.rounds]
        figures[name] = {
            "sentences_per_second": round(len(last["texts"]) / statistics.median(seconds), 1),
            "target_tokens_per_second": round(last["tokens"] / statistics.median(seconds)),
            "seconds": [round(value, 3) for value in seconds],
            "bleu": None if "forced" in job else round(bleu(last["texts"], references[: len(last["texts"])])[0], 2),
            "same_lines": ours and sum(map(str.__eq__, last["texts"], ours)) / len(ours),
            "decoder_rows": last.get("rows"),
            "peak_megabytes": round(last["peak_megabytes"]),
            "start_seconds": round(contestant.ready["start_seconds"], 2),
            "batch": contestant.ready.get("batch"),
        }
        if "one_by_one" in job:
            each = sorted(value for turn in contestant.rounds for value in turn["each"])
            figures[name]["p50_milliseconds"] = round(1000 * each[len(each) // 2], 1)
            figures[name]["p99_milliseconds"] = round(1000 * each[len(each) * 99 // 100], 1)
    return figures


def process_seconds(model: Path, line: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of whole processes, in turns: one that imports PyTorch, and `seq2seq-translate` for one line."""
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "seq2seq-translate": [str(Path(sys.executable).with_name("seq2seq-translate")), "--model", str(model)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, input=f"{line}\n", text=True, check=True, capture_output=True)
            seconds[name].append(round(time.perf_counter() - started, 3))
    return seconds


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", type=Path, help="model directory")
    options.add_argument("source", type=Path, help="sentences, one per line")
    options.add_argument("reference", type=Path, help="their reference translations")
    options.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of all contestants (default: 5)")
    options.add_argument("--rows", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="default: all")
    options.add_argument("--contestants", nargs="+", default=CONTESTANTS, metavar="NAME", help="default: all")
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    options.add_argument("--output", type=Path, metavar="FILE", help="write the figures there as JSON")
    arguments = options.parse_args()
    references = arguments.reference.read_text("utf-8").split("\n")[:-1]
    result: dict[str, Any] = {
        **origin("torch", "ctranslate2", "transformers"),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "rounds": arguments.rounds,
        "rows": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for row in arguments.rows:
            job = {"model": str(arguments.model), "source": str(arguments.source), "folder": folder, **SETTINGS[row]}
            job["device"] = arguments.device
            if arguments.device == "cuda" and row == "base":
                del job["lines"]
            job["workers"] = 1 if "one_by_one" in job or arguments.device != "cpu" else PROCESSORS
            result["rows"][row] = measure(arguments.contestants, job, arguments.rounds, references)
            say("\n".join(decode({**result, "rows": {row: result["rows"][row]}})))
    if arguments.device == "cpu":
        first = arguments.source.read_text("utf-8").split("\n")[0]
        result["process_seconds"] = process_seconds(arguments.model, first, 2 * arguments.rounds - 1)
        say(one_line_seconds(result))
    give_out(result, arguments.output)


if __name__ == "__main__":
    main()
