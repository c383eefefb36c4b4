"""Training speed beside that of peers: the same data, batches, sizes, optimizer and threads, one update at a time.

    python tools/bench_train.py [--model small|base|big] [--formats float32 bfloat16] [--rounds 5] [--output FILE]
    python tools/bench_train.py --growth

Prints a table to stderr and the figures as JSON to stdout. Every contestant is a process of its own, asleep while
another computes; a round runs each of them once, in an order that rotates, over the same updates. Figures are medians
of the rounds, ratios medians of the ratios within a round. `--growth` instead shows how our time for a token grows with
the batch and with the length of the sentences.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seq2seq.config.compose import compose
from seq2seq.data.prepare import prepare
from seq2seq.data.store import Store, write_store
from seq2seq.data.tokenizer import EOS
from seq2seq.support.errors import RunError, exit_code_of
from seq2seq.support.progress import say
from tools.contestants import CONTESTANTS, OURS
from tools.figures import machine
from tools.training_worker import MATRIX, Job, Stretch

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = {"small": ("multi30k", 8000, 4096), "base": ("ende", 37_000, 2048), "big": ("ende", 37_000, 2048)}
"""Corpus, vocabulary and tokens of an update for each size."""
SPINNING = {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000")}
"""As the commands set it (`seq2seq.cli`)."""


@dataclass(frozen=True)
class Corpus:
    """An encoded store to train on, and its true number of pieces."""

    name: str
    store: Path
    vocab_size: int

    def described(self) -> dict[str, Any]:
        """Name, size and mean lengths, for the record."""
        lengths = Store(self.store).lengths
        means = {
            f"mean_{side}_tokens": round(float(lengths[i].mean()), 1) for i, side in enumerate(("source", "target"))
        }
        return {"name": self.name, "pairs": len(lengths[0]), "vocab_size": self.vocab_size, **means}


def real_corpus(name: str, shared: Path, vocab_size: int, folder: Path) -> Corpus:
    """Multi30k or all of ende out of the folder of real text, prepared as for training."""
    train, valid = sorted((shared / "ende").glob("*.en.xz")), shared / "newstest" / "newstest2013.en"
    if name == "multi30k":
        train, valid = [shared / "multi30k" / "train.en"], shared / "multi30k" / "valid.en"
    corpora = []
    for split, files in (("train", train), ("valid", [valid])):
        for side, language in (("source", ".en"), ("target", ".de")):
            names = [str(file.parent / file.name.replace(".en", language)) for file in files]
            corpora.append(f"data.{split}.{side}=[{','.join(names)}]")
    overrides = ["+recipe=files", f"run_dir={folder / f'{name}-{vocab_size}'}", f"tokenizer.vocab_size={vocab_size}"]
    config = compose([*overrides, *corpora])
    prepared = prepare(config)
    return Corpus(name, Path(config.data.prepared_dir) / "train", prepared.tokenizer.vocab_size)


def random_lengths(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Lengths of `count` sentence pairs, [count, 2]: log-normal as in news, both sides alike to about a fifth."""
    source = rng.lognormal(np.log(24), 0.5, count)
    target = source * rng.lognormal(0.0, 0.2, count)
    return np.stack((source, target), 1).round().clip(2, 128).astype(np.int64)


def random_corpus(lengths: NDArray[np.int64], vocab_size: int, folder: Path) -> Corpus:
    """A store of random pieces in sentences of these lengths, eos counted."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    sides = [[rng.integers(4, vocab_size, length - 1).tolist() for length in side] for side in lengths.T]
    write_store(folder, [(sides[0], sides[1])], vocab_size, EOS)
    return Corpus("random", folder, vocab_size)


class Worker:
    """A contestant's process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.training_worker"],
            cwd=ROOT,
            env={**os.environ, **SPINNING, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.built = self.ask(asdict(job))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind:
            self.process.kill()
        self.process.communicate()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send a line, wait for the answer. Raises RunError when the process has ended."""
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            code = self.process.wait()
            what = f"{self.job.contestant} in {self.job.precision}"
            raise RunError(
                f"{what}: its process ended with code {code}; its last words are above; if memory ran out (code -9), "
                "type a smaller --batch-tokens or more --micro-batches"
            ) from None

    def run(self, stretch: Stretch) -> dict[str, Any]:
        """Updates, with what they took."""
        return self.ask(asdict(stretch))


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def rotated(items: list[Any], by: int) -> list[Any]:
    """The items in an order that begins with another one each time."""
    by %= len(items)
    return items[by:] + items[:by]


def compare(jobs: list[Job], stretch: Stretch, rounds: int) -> dict[str, Any]:
    """Run contestants of one number format by turns; one round to warm up is not counted."""
    with ExitStack() as stack:
        workers = []
        for job in jobs:
            worker = stack.enter_context(Worker(job))
            first = worker.run(replace(stretch, count=1))
            say(f"{job.precision}: {job.contestant} is ready")
            times = (worker.started, worker.built["build_started"])
            workers.append((worker, [], [first["ended"] - since for since in times]))
        for turn in range(rounds + 1):
            updates = replace(stretch, first=1 + turn * stretch.count)
            for worker, answers, _ in rotated(workers, turn):
                answer = worker.run(updates)
                if turn:
                    answers.append(answer)
    matrix = [answer["flops"] / answer["seconds"] for answer in workers[0][1]]
    rates, rows = {}, {}
    for worker, answers, (since_start, since_build) in workers[1:]:
        seconds = [answer["seconds"] for answer in answers]
        target, source = ([answer[f"{side}_tokens"] for answer in answers] for side in ("target", "source"))
        rates[worker.job.contestant] = [tokens / time for tokens, time in zip(target, seconds, strict=True)]
        both = [(s + t) / time for s, t, time in zip(source, target, seconds, strict=True)]
        shares = [answer["flops"] / answer["seconds"] / rate for answer, rate in zip(answers, matrix, strict=True)]
        rows[worker.job.contestant] = {
            "target_tokens_per_second": spread(rates[worker.job.contestant]),
            "tokens_per_second": spread(both),
            "share_of_matrix_rate": spread(shares),
            "padding_share": 1 - (sum(source) + sum(target)) / sum(answer["rows"] for answer in answers),
            "peak_memory_bytes": answers[-1]["peak_memory"],
            "seconds_to_first_update": {"from_process_start": since_start, "from_build": since_build},
            "parameters": worker.built["parameters"],
        }
    return {
        "matrix_flops_per_second": spread(matrix),
        "device": workers[0][0].built["device"],
        "threads": workers[0][0].built["threads"],
        "contestants": rows,
        "ours_over": {
            peer: spread([a / b for a, b in zip(rates[OURS], rates[peer], strict=True)])
            for peer in rates
            if peer != OURS
        },
    }


def table(precision: str, figures: dict[str, Any]) -> str:
    """The figures of a number format for people."""
    rate = figures["matrix_flops_per_second"]["median"] / 1e9
    widths = (-15, 24, 8, 10, 6, 7, 13, 18)
    rows = [("", "target tokens/s", "both/s", "of matrix", "pads", "MiB", "first update", "ours over it")]
    for name, row in figures["contestants"].items():
        ratio = figures["ours_over"].get(name)
        rows.append(
            (
                name,
                "{median:,.0f} ({min:,.0f}-{max:,.0f})".format(**row["target_tokens_per_second"]),
                f"{row['tokens_per_second']['median']:,.0f}",
                f"{row['share_of_matrix_rate']['median']:.1%}",
                f"{row['padding_share']:.1%}",
                f"{row['peak_memory_bytes'] / 2**20:,.0f}",
                f"{row['seconds_to_first_update']['from_process_start']:.1f} s",
                "{median:.2f} ({min:.2f}-{max:.2f})".format(**ratio) if ratio else "",
            )
        )
    head = f"{precision}, {figures['device']}, {figures['threads']} threads; matrix product {rate:,.0f} GFLOP/s"
    body = (
        " ".join(f"{cell:{'<' if w < 0 else '>'}{abs(w)}}" for cell, w in zip(row, widths, strict=True)) for row in rows
    )
    return "\n".join(("", head, *body))


def growth(job: Job, corpus: Corpus, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Microseconds for a target token of ours, by tokens of an update and by length of sentences of random pieces."""
    stretches: dict[str, dict[int, Stretch]] = {"batch_tokens": {}, "sentence_length": {}}
    for tokens in arguments.growth_tokens:
        stretches["batch_tokens"][tokens] = Stretch(str(corpus.store), tokens, 0, 1)
    for length in arguments.growth_lengths:
        tokens = max(length, arguments.batch_tokens)
        pairs = np.full((tokens // length, 2), length)
        store = random_corpus(pairs, corpus.vocab_size, folder / f"length-{length}").store
        stretches["sentence_length"][length] = Stretch(str(store), tokens, 0, 1)
    points = [(axis, at, stretch) for axis, by_size in stretches.items() for at, stretch in by_size.items()]
    costs: dict[str, dict[int, list[float]]] = {axis: {at: [] for at in by_size} for axis, by_size in stretches.items()}
    with Worker(job) as worker:
        for turn in range(arguments.rounds + 1):
            for axis, at, stretch in rotated(points, turn):
                answer = worker.run(replace(stretch, first=turn))
                if turn:
                    costs[axis][at].append(answer["seconds"] / answer["target_tokens"] * 1e6)
    return {axis: {str(at): spread(values) for at, values in by_size.items()} for axis, by_size in costs.items()}


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", choices=DEFAULTS)
    parser.add_argument(
        "--corpus", choices=("multi30k", "ende", "random"), help="default: by size; random: no real text"
    )
    parser.add_argument("--vocab-size", type=int, metavar="N")
    parser.add_argument("--batch-tokens", type=int, metavar="N")
    parser.add_argument("--micro-batches", type=int, default=1, metavar="N")
    parser.add_argument("--formats", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=4, help="in a round (default: 4)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: all)")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--growth-tokens", nargs="+", type=int, default=[512, 1024, 2048, 4096, 8192, 16384, 25000])
    parser.add_argument("--growth-lengths", nargs="+", type=int, default=[2**n for n in range(3, 13)])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides, such as model.d_model=64")
    parser.add_argument("--prepared", type=Path, default=ROOT / "build" / "bench", help="where encoded corpora stay")
    parser.add_argument("--output", type=Path)
    return parser


def bench(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All that was asked for."""
    corpus_name, vocab_size, batch_tokens = DEFAULTS[arguments.model]
    arguments.batch_tokens = arguments.batch_tokens or batch_tokens
    vocab_size = arguments.vocab_size or vocab_size
    shared = os.environ.get("SEQ2SEQ_SHARED_DATA")
    if shared and arguments.corpus != "random":
        corpus = real_corpus(arguments.corpus or corpus_name, Path(shared), vocab_size, arguments.prepared)
    else:
        lengths = random_lengths(np.random.default_rng(1), 30_000)
        corpus = random_corpus(lengths, vocab_size, folder / "random")
    config = compose(["+recipe=files", f"model={arguments.model}", *arguments.set])
    contestants = [MATRIX, *arguments.contestants]
    if not importlib.util.find_spec("transformers"):
        contestants = [name for name in contestants if not name.startswith("Marian")]
        say("Marian is left out: transformers is not installed; type, in the checkout: pip install './[bench]'")
    jobs = {
        precision: [
            Job(
                name,
                precision,
                arguments.device,
                arguments.threads,
                arguments.micro_batches,
                corpus.vocab_size,
                asdict(config.model),
            )
            for name in contestants
        ]
        for precision in arguments.formats
    }
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "command": f"python {' '.join(sys.argv)}",
        "versions": {name: version(name) for name in ("torch", "transformers") if importlib.util.find_spec(name)},
        "environment": SPINNING,
        "model": arguments.model,
        "corpus": corpus.described(),
        "batch_tokens": arguments.batch_tokens,
        "micro_batches": arguments.micro_batches,
        "rounds": arguments.rounds,
    }
    if arguments.growth:
        points = {}
        for precision in arguments.formats:
            points[precision] = growth(jobs[precision][1], corpus, arguments, folder / precision)
        return result | {"microseconds_per_target_token": points}
    result |= {"updates_per_round": arguments.updates, "formats": {}}
    stretch = Stretch(str(corpus.store), arguments.batch_tokens, 0, arguments.updates)
    for precision in arguments.formats:
        result["formats"][precision] = compare(jobs[precision], stretch, arguments.rounds)
        print(table(precision, result["formats"][precision]), file=sys.stderr, flush=True)
    return result


def main() -> None:
    """Measure and print."""
    arguments = options().parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        text = json.dumps(bench(arguments, Path(folder)), indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_code_of("bench_train", main))
