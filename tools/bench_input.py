"""Data from disk into batches: speed, start-up, memory, and encoding beside SentencePiece alone.

    python -m tools.bench_input [--pairs 100000 1000000 10000000] [--start-pairs 5000000] [--text FILE ...]
                                 [--parts encoding batches start] [--rounds 5] [--output FILE]

Prints a table to stderr and the figures as JSON to stdout. Stores are generated in a temporary folder, with lengths
like those of real text (26 tokens a side on average, 37,000 pieces), and read back from the page cache. Start-up,
memory and speed are each measured in a fresh process, on one core. Encoding is measured on the `--text` files, source
and target (also .gz .xz .bz2 .zst); without them, on the embedded corpus. Figures are medians of the rounds.

tokens a second   source and target tokens of ready batches, through Sampler and micro_batches; `first` is a whole
                  first epoch, in which all blocks are checked
start-up          seconds from a prepared directory to the first batch: opening, order of an epoch, batch; no imports
memory            bytes of anonymous memory (RssAnon) per pair, beyond what the process had before it opened the store:
                  `steady` in training, `peak_first` while the first order is made, `peak` while a later one is made
encoding          lines a second from the Arrow table to the finished store, and those of SentencePiece's own batch
                  encoding of the same lines with as many threads
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seq2seq.config.schema import DataConfig, TokenizerConfig
from seq2seq.data.batches import Sampler, micro_batches
from seq2seq.data.phrasebook import draw
from seq2seq.data.prepare import Prepared, _encode
from seq2seq.data.store import Store, StoreWriter
from seq2seq.data.text_files import read_lines
from seq2seq.data.tokenizer import Tokenizer, train_tokenizer
from seq2seq.support.files import write_json
from seq2seq.support.progress import bars_of_datasets, silence
from tools.origin import give_out, origin

PARTS = ["encoding", "batches", "start"]
VOCAB_SIZE = 37_000
BATCH_TOKENS = 25_000
BLOCK = 100_000
MEASURED_TOKENS = 20_000_000


def generate(directory: Path, pairs: int, vocab_size: int = VOCAB_SIZE) -> None:
    """Write a store of random tokens with log-normal lengths, 1 to 250."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(pairs)
    writer = StoreWriter(directory, vocab_size)
    for start in range(0, pairs, BLOCK):
        count = min(BLOCK, pairs - start)
        source = rng.lognormal(3.1, 0.6, count)
        for side, lengths in enumerate((source, source * rng.lognormal(0.03, 0.2, count))):
            lengths = lengths.clip(1, 250).astype(np.int32)
            writer.write(side, rng.integers(4, vocab_size, lengths.sum(), dtype=np.uint16), lengths)
    writer.finish()


def write_tokenizer(directory: Path, lines: list[str]) -> None:
    """Train a vocabulary and put it where preparation does."""
    (directory / "tokenizer").mkdir(parents=True)
    model = train_tokenizer(lines, TokenizerConfig(vocab_size=8000)).model
    (directory / "tokenizer" / "tokenizer.model").write_bytes(model)


def phrases(count: int) -> list[str]:
    """Sources and targets of the embedded corpus."""
    return [side for phrase in itertools.islice(draw(1, held_out=False), count) for side in phrase[:2]]


def generate_prepared(directory: Path, pairs: int) -> None:
    """Write a directory like one that `seq2seq-prepare` leaves, with all that opening it needs."""
    for split, count in (("train", pairs), ("valid", 1000)):
        generate(directory / split, count)
    write_json(directory / "valid" / "text.json", [])
    write_tokenizer(directory, phrases(10_000))


def rss_anon() -> int:
    """Anonymous memory of this process in bytes."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, "this kernel does not tell RssAnon"
    return int(found[1]) << 10


@contextmanager
def peak_of_rss_anon() -> Iterator[list[int]]:
    """The most anonymous memory seen while the block runs, sampled every millisecond."""
    seen, done = [rss_anon()], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            seen[0] = max(seen[0], rss_anon())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def measure_start(directory: Path) -> dict[str, float]:
    """Seconds to the first batch of a prepared directory."""
    times = [time.perf_counter()]
    data = Prepared(directory)
    times.append(time.perf_counter())
    updates = Sampler(data.train, BATCH_TOKENS, 1).epoch(0)
    times.append(time.perf_counter())
    next(micro_batches(data.train, updates[0], 1))
    times.append(time.perf_counter())
    steps = dict(zip(("open", "order", "batch"), map(float.__sub__, times[1:], times), strict=True))
    return {**steps, "all": times[-1] - times[0]}


def measure_memory(directory: Path) -> dict[str, float]:
    """Bytes of anonymous memory per pair."""
    # A first order and batch of a few pairs, so that allocators and lazy imports have taken their share before.
    few = Store(directory.parent / "few")
    next(micro_batches(few, Sampler(few, BATCH_TOKENS, 1).epoch(0)[0], 1))
    before = rss_anon()
    with peak_of_rss_anon() as peak:
        store = Store(directory)
        sampler = Sampler(store, BATCH_TOKENS, 1)
        updates = sampler.epoch(0)
    first, steady = peak[0], rss_anon()
    with peak_of_rss_anon() as peak:
        following = sampler.epoch(1)
    assert len(updates) and len(following)
    bytes_of = {"steady": steady, "peak_first": first, "peak": max(first, peak[0])}
    return {name: (value - before) / len(store) for name, value in bytes_of.items()}


def measure_rate(directory: Path) -> dict[str, float]:
    """Tokens a second into batches, with blocks still to be checked and without."""
    torch.set_num_threads(1)
    store = Store(directory)
    updates = Sampler(store, BATCH_TOKENS, 1).epoch(0)
    rates = {}
    for name in ("first", "later"):
        tokens, started = 0, time.perf_counter()
        for pairs in updates:
            for _, batch, _ in micro_batches(store, pairs, 1):
                tokens += batch.source_layout.total + batch.target_layout.total
            if name == "later" and tokens > MEASURED_TOKENS:
                break
        rates[name] = tokens / (time.perf_counter() - started)
    return rates


def measure_encoding(folder: Path, threads: int) -> dict[str, float]:
    """Lines a second: SentencePiece alone, and the whole of encoding."""
    import datasets

    table = datasets.load_from_disk(str(folder / "clean" / "train"))
    lines = [*table["source"][:], *table["target"][:]]
    alone = Tokenizer.load(folder / "tokenizer" / "tokenizer.model")._processor
    started = time.perf_counter()
    alone.encode(lines, num_threads=threads)
    middle = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        _encode(Path(name), folder, "train", DataConfig(prepared_dir=str(folder), workers=threads))
    ended = time.perf_counter()
    return {"sentencepiece": len(lines) / (middle - started), "whole": len(lines) / (ended - middle)}


MEASURES = {"start": measure_start, "memory": measure_memory, "rate": measure_rate}


def in_a_process(measure: str, directory: Path) -> dict[str, float]:
    """The figures of a measure in a process of its own, on one core."""
    command = [sys.executable, "-m", "tools.bench_input", "--measure", measure, str(directory)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found: dict[str, float] = json.loads(subprocess.run(command, env=environment, check=True, stdout=-1).stdout)
    return found


def median(rounds: list[dict[str, float]], digits: int) -> dict[str, float]:
    """The median of each figure over the rounds."""
    return {name: round(statistics.median(found[name] for found in rounds), digits) for name in rounds[0]}


def corpus_to_encode(folder: Path, files: list[Path], lines: int) -> None:
    """A clean table and a vocabulary, as preparation has them before it encodes."""
    import datasets

    text = [line for path in files for line in read_lines(path)]
    if not files:
        both = phrases(lines)
        text = both[::2] + both[1::2]
    half = len(text) // 2
    table = datasets.Dataset.from_dict({"source": text[:half], "target": text[half : 2 * half]})
    with bars_of_datasets(shown=False):
        table.save_to_disk(folder / "clean" / "train")
    write_tokenizer(folder, text[:: max(1, len(text) // 100_000)])


def measured(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """The figures of the requested parts."""
    silence()
    repeat = range(options.rounds)
    figures: dict[str, Any] = {}
    if "encoding" in options.parts:
        corpus_to_encode(root / "text", options.text, 100_000)
        rounds = [measure_encoding(root / "text", os.cpu_count() or 1) for _ in repeat]
        figures["encoding_lines_per_second"] = median(rounds, 0)
        shares = [found["whole"] / found["sentencepiece"] for found in rounds]
        figures["encoding_share"] = round(statistics.median(shares), 3)
    if "batches" in options.parts:
        generate(root / "few", 1000)
        figures |= {"tokens_per_second": {}, "bytes_per_pair": {}}
        for pairs in options.pairs:
            generate(root / "store", pairs)
            figures["tokens_per_second"][pairs] = median([in_a_process("rate", root / "store") for _ in repeat], 0)
            figures["bytes_per_pair"][pairs] = median([in_a_process("memory", root / "store") for _ in repeat], 2)
            shutil.rmtree(root / "store")
    if "start" in options.parts:
        generate_prepared(root / "prepared", options.start_pairs)
        starts = median([in_a_process("start", root / "prepared") for _ in repeat], 3)
        figures["start_seconds"] = {options.start_pairs: starts}
    return figures


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    options.add_argument("--start-pairs", type=int, default=5_000_000)
    options.add_argument("--text", type=Path, nargs="*", default=[])
    options.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--output", type=Path)
    options.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    options.add_argument("directory", type=Path, nargs="?", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure](arguments.directory)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-input-") as name:
        figures = measured(arguments, Path(name))
    result: dict[str, Any] = {
        **origin("torch", "numpy", "sentencepiece", "datasets"),
        "rounds": arguments.rounds,
        "batch_tokens": BATCH_TOKENS,
        **figures,
    }
    for name, value in figures.items():
        for row, cells in value.items() if isinstance(value, dict) else [("", value)]:
            shown = "  ".join(f"{k} {v:,}" for k, v in cells.items()) if isinstance(cells, dict) else f"{cells:,}"
            print(f"{name:<28} {row:>14}  {shown}", file=sys.stderr)
    give_out(result, arguments.output)


if __name__ == "__main__":
    main()
