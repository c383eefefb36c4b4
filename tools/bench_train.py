"""Training speed compared with that of peers: the same data, batches, sizes, optimizer and threads.

    python tools/bench_train.py [--model small|base|big] [--formats float32 bfloat16] [--rounds 11] [--output FILE]
    python tools/bench_train.py --growth [N] [--pairs N ...]
    python tools/bench_train.py --parts [--updates N] [--warm N]

Prints a table to stderr and the figures as JSON to stdout. Every contestant is a process of its own, asleep while
another computes; a round runs each of them once over the same updates, and each round starts with a different one.
Figures are medians of the rounds, ratios medians of the ratios within a round. Instead, `--growth` shows how our time
per token grows with the batch, the length of sentences and the size of a generated corpus, and `--parts` where the time
of an update goes, by the names of operations (tools/parts.py). Text comes from the folder $SEQ2SEQ_SHARED_DATA; without
it, random pieces in sentences of typical lengths take its place, and the figures say so.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seq2seq.config.compose import compose
from seq2seq.data.prepare import prepare
from seq2seq.data.store import Store, write_store
from seq2seq.support.devices import choose_device
from seq2seq.support.errors import exit_code_of
from seq2seq.support.progress import say
from tools.bench_input import generate
from tools.benchmarks import train_table
from tools.contestants import CONTESTANTS, OURS, RANKS
from tools.origin import give_out, origin
from tools.training_worker import MATRIX, Job, Stretch
from tools.worker import ENVIRONMENT, ROOT, Worker, quotients

PEERS = [name for name in CONTESTANTS if name != OURS]
LONGEST_SENTENCE = 4096
RANDOM_PAIRS = 15_000
"""Two epochs of 25,000 tokens an update are then 34 updates, after which a GPU has recorded all shapes."""
DEFAULTS = {"small": ("multi30k", 8000, 4096), "base": ("ende", 37_000, 2048), "big": ("ende", 37_000, 2048)}
"""Corpus, vocabulary size and tokens per update for each model size."""


def real_corpus(name: str, shared: Path, vocab_size: int) -> tuple[Path, int]:
    """Multi30k or all of ende, prepared as for training: its encoded store and its vocabulary size."""
    files = {"train": sorted((shared / "ende").glob("*.en.xz")), "valid": [shared / "newstest" / "newstest2013.en"]}
    if name == "multi30k":
        files = {split: [shared / name / f"{split}.en"] for split in ("train", "valid")}
    overrides = [f"run_dir={ROOT / 'build' / 'bench' / f'{name}-{vocab_size}'}", f"tokenizer.vocab_size={vocab_size}"]
    for split, sources in files.items():
        for side, language in (("source", ".en"), ("target", ".de")):
            paths = ",".join(str(path.with_name(path.name.replace(".en", language))) for path in sources)
            overrides.append(f"data.{split}.{side}=[{paths}]")
    config = compose(["+recipe=files", *overrides])
    return Path(config.data.prepared_dir) / "train", prepare(config).tokenizer.vocab_size


def usual_lengths(count: int) -> NDArray[np.int64]:
    """Lengths of `count` sentence pairs, eos counted, [2, count]: log-normal, sides of a pair about a fifth apart."""
    rng = np.random.default_rng(1)
    source = rng.lognormal(np.log(24), 0.5, count)
    return np.stack((source, source * rng.lognormal(0.0, 0.2, count))).round().clip(2, 128).astype(np.int64)


def random_corpus(lengths: NDArray[np.int64], vocab_size: int, folder: Path) -> Path:
    """A store of random pieces in sentences of these lengths [2, pairs], eos counted."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    source, target = ([rng.integers(4, vocab_size, length - 1).tolist() for length in side] for side in lengths)
    write_store(folder, [(source, target)], vocab_size)
    return folder


def compare(jobs: list[Job], stretch: Stretch, rounds: int, warm: int = 0, seconds: float = math.inf) -> dict[str, Any]:
    """The figures of one number format; the first of `jobs` is the matrix product, the second ours.

    No round begins after `seconds`, but at least one counts.
    """
    ends = time.monotonic() + seconds
    with ExitStack() as stack:
        workers, first_updates = [], {}
        started: Iterable[Worker] = (stack.enter_context(Worker(job)) for job in jobs)
        # On a GPU all start at once, to save its time; on two cores their imports would slow each other down.
        at_once = choose_device(jobs[0].device).type == "cuda"
        for worker in list(started) if at_once else started:
            job = worker.job
            worker.build()
            ended = worker.run(replace(stretch, count=1))["ended"]
            since = {} if at_once else {"process_start": worker.started}
            since["build"] = worker.built["build_started"]
            first_updates[job.contestant] = {f"from_{name}": ended - began for name, began in since.items()}
            if job.contestant != MATRIX and warm:
                worker.run(replace(stretch, count=warm))
            workers.append(worker)
            say(f"{job.precision}: {job.contestant} is ready")
        for turn in range(rounds + 1):
            if turn > 1 and time.monotonic() > ends:
                break
            updates = replace(stretch, first=1 + turn * stretch.count)
            for worker in rotated(workers, turn):
                answer = worker.run(updates)
                # The first round only warms up.
                if turn:
                    worker.answers.append(answer)
    matrix, *contestants = workers
    rates = {worker.job.contestant: worker.per_second("target_tokens") for worker in contestants}
    return {
        "device": matrix.built["device"],
        "threads": matrix.built["threads"],
        "rounds": len(matrix.answers),
        "processors_busy_for_others": spread([load for worker in workers for load in worker.answered("others")]),
        "matrix_flops_per_second": spread(matrix.per_second("flops")),
        "contestants": {
            worker.job.contestant: {
                "parameters": worker.built["parameters"],
                "target_tokens_per_second": spread(worker.per_second("target_tokens")),
                "tokens_per_second": spread(worker.per_second("tokens")),
                "share_of_matrix_rate": spread(quotients(*(each.per_second("flops") for each in (worker, matrix)))),
                "padding_share": 1 - sum(worker.answered("tokens")) / sum(worker.answered("rows")),
                "peak_memory_bytes": worker.answers[-1]["peak_memory"],
                "seconds_to_first_update": first_updates[worker.job.contestant],
            }
            for worker in contestants
        },
        "ratios": {
            own: {name: spread(quotients(rates[own], rates[name])) for name in rates if name != own}
            for own in (OURS, *RANKS)
            if own in rates
        },
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def rotated(items: list[Any], by: int) -> list[Any]:
    """The items, rotated to start with number `by` (modulo their count)."""
    by %= len(items)
    return items[by:] + items[:by]


def growth(job: Job, stretch: Stretch, limit: int, corpora: list[int], rounds: int, folder: Path) -> dict[str, Any]:
    """Our microseconds per target token, from the store to the updated weights.

    By tokens per update, by sentence length, and by pairs in the corpus; the last two with random pieces.
    """
    sizes = [2**power for power in range(3, limit.bit_length())]
    points = [("batch_tokens", size, replace(stretch, batch_tokens=size)) for size in sizes if size >= 512]
    if limit not in sizes:
        points.append(("batch_tokens", limit, replace(stretch, batch_tokens=limit)))
    for length in (size for size in sizes if size <= LONGEST_SENTENCE):
        tokens = max(length, stretch.batch_tokens)
        store = random_corpus(np.full((2, tokens // length), length), job.vocab_size, folder / str(length))
        points.append(("sentence_length", length, replace(stretch, store=str(store), batch_tokens=tokens)))
    for pairs in corpora:
        generate(folder / f"corpus-{pairs}", pairs, job.vocab_size)
        points.append(("corpus_pairs", pairs, replace(stretch, store=str(folder / f"corpus-{pairs}"))))
    costs: dict[str, dict[str, list[float]]] = {axis: {} for axis, *_ in points}
    with Worker(job) as worker:
        worker.build()
        for turn in range(rounds + 1):
            for axis, size, point in points:
                answer = worker.run(replace(point, first=turn * point.count))
                if turn:
                    cost = 1e6 * answer["seconds"] / answer["target_tokens"]
                    costs[axis].setdefault(str(size), []).append(cost)
    spreads = {axis: {size: spread(values) for size, values in by_size.items()} for axis, by_size in costs.items()}
    return {"device": worker.built["device"], "microseconds_per_target_token": spreads}


def by_part(jobs: list[Job], stretch: Stretch, rounds: int, warm: int) -> dict[str, Any]:
    """Milliseconds per update of each contestant, in total and by part; updates take longer while they are profiled."""
    found: dict[str, list[dict[str, float]]] = {job.contestant: [] for job in jobs}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(job)) for job in jobs]
        for worker in workers:
            worker.build()
            worker.run(replace(stretch, count=max(warm, 1)))
        for turn in range(rounds):
            for worker in rotated(workers, turn):
                answer = worker.run(replace(stretch, first=turn * stretch.count, watched=True))
                found[worker.job.contestant].append({"all": answer["seconds"], **answer["parts"]})
    return {
        "device": workers[0].built["device"],
        "threads": workers[0].built["threads"],
        "milliseconds": {
            contestant: {
                part: 1e3 / stretch.count * statistics.median(each[part] for each in taken) for part in taken[0]
            }
            for contestant, taken in found.items()
        },
    }


def corpus_of(arguments: argparse.Namespace, folder: Path) -> tuple[str, Path, int]:
    """The name of the corpus to train on, its store, and its vocabulary size."""
    name, vocab_size, _ = DEFAULTS[arguments.model]
    name, vocab_size = arguments.corpus or name, arguments.vocab_size or vocab_size
    shared = os.environ.get("SEQ2SEQ_SHARED_DATA")
    if shared:
        return name, *real_corpus(name, Path(shared), vocab_size)
    say("SEQ2SEQ_SHARED_DATA is not set: random pieces stand for a text")
    return "random", random_corpus(usual_lengths(RANDOM_PAIRS), vocab_size, folder / "random"), vocab_size


def peers_of(arguments: argparse.Namespace) -> list[str]:
    """The requested peers whose packages are installed; those of several ranks only on CPUs."""
    on_gpu = choose_device(arguments.device).type != "cpu"
    peers = [name for name in arguments.peers if not (on_gpu and name in RANKS)]
    if importlib.util.find_spec("transformers"):
        return peers
    say("Marian is left out: transformers is not installed; type, in the checkout: pip install './[bench]'")
    return [name for name in peers if not name.startswith("Marian")]


def bench(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures that were requested."""
    corpus, store, vocab_size = corpus_of(arguments, folder)
    batch_tokens = arguments.batch_tokens or DEFAULTS[arguments.model][2]
    peers = peers_of(arguments)
    model = asdict(compose(["run_dir=runs/bench", f"model={arguments.model}", *arguments.set]).model)
    formats = {}
    for precision in arguments.formats:
        matrix, ours, *others = (
            Job(name, precision, arguments.device, arguments.micro_batches, vocab_size, model)
            for name in (MATRIX, OURS, *peers)
        )
        stretch = Stretch(str(store), batch_tokens, 0, arguments.updates)
        if arguments.parts:
            formats[precision] = by_part([ours, *others], stretch, arguments.rounds, arguments.warm)
        elif arguments.growth:
            formats[precision] = growth(
                ours, stretch, arguments.growth, arguments.pairs, arguments.rounds, folder / precision
            )
        else:
            formats[precision] = compare(
                [matrix, ours, *others], stretch, arguments.rounds, arguments.warm, arguments.seconds
            )
            say("\n".join(train_table(precision, formats[precision])))
    return {
        **origin("torch", "transformers"),
        "environment": ENVIRONMENT,
        "model": arguments.model,
        "settings": arguments.set,
        "corpus": corpus,
        "vocab_size": vocab_size,
        "mean_lengths": [round(float(side.mean()), 1) for side in Store(store).lengths],
        "batch_tokens": batch_tokens,
        "micro_batches": arguments.micro_batches,
        "rounds": min(found.get("rounds", arguments.rounds) for found in formats.values()),
        "updates_per_round": arguments.updates,
        "updates_before_the_rounds": arguments.warm,
        "formats": formats,
    }


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="small", choices=DEFAULTS)
    options.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="sizes, such as model.d_model=64")
    options.add_argument("--corpus", choices=("multi30k", "ende"), help="default: by size")
    options.add_argument("--vocab-size", type=int, metavar="N", help="default: by size")
    options.add_argument("--batch-tokens", type=int, metavar="N", help="default: by size")
    options.add_argument("--micro-batches", type=int, default=1, metavar="N", help="parts of an update")
    options.add_argument("--formats", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    options.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    options.add_argument("--rounds", type=int, default=11, metavar="N", help="rounds of all contestants (default: 11)")
    options.add_argument(
        "--updates", type=int, default=1, metavar="N", help="updates per contestant and round (default: 1)"
    )
    options.add_argument(
        "--warm",
        type=int,
        default=0,
        metavar="N",
        help="warm-up updates of each contestant (on GPUs: to record CUDA graphs and to take the memory)",
    )
    options.add_argument("--seconds", type=float, default=math.inf, metavar="N", help="begin no round after that time")
    options.add_argument("--device", default="auto")
    options.add_argument("--parts", action="store_true", help="where an update's time goes, by PyTorch's profiler")
    options.add_argument("--growth", nargs="?", const=25_000, type=int, metavar="N", help="up to N tokens an update")
    options.add_argument(
        "--pairs",
        nargs="*",
        type=int,
        default=[10_000, 100_000, 1_000_000, 10_000_000],
        metavar="N",
        help="with --growth: sizes of the corpora; 10 million pairs take 1.1 GB in the folder for temporary files",
    )
    options.add_argument("--output", type=Path)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        give_out(bench(arguments, Path(folder)), arguments.output)


if __name__ == "__main__":
    sys.exit(exit_code_of("bench_train", main))
