"""Training and translation speed on the device at hand, on random text of the lengths of real sentences.

    python tools/bench.py [--model small|base|big] [--vocab-size N] [--batch-tokens N] [--rounds 5] [--output FILE]

Prints a table to stderr and the figures as JSON to stdout. A round trains, then translates; the figure is the median
of the rounds. Weights are random, so translation runs to the limit of length: tokens a second, not quality.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seq2seq.config.compose import compose
from seq2seq.config.schema import Config, SearchConfig
from seq2seq.data.batches import Batch
from seq2seq.data.tokenizer import BOS, EOS
from seq2seq.model.translation import TranslationModel, build_model, count_parameters
from seq2seq.ops.packing import Layout
from seq2seq.search.beam import BeamSearch
from seq2seq.support.devices import choose_device, choose_precision, keep_freed_memory
from seq2seq.train.loss import batch_loss
from seq2seq.train.optimizer import build_optimizer
from tools.figures import machine

STEPS = 10
SENTENCES = 64
OUTPUT_TOKENS = 20


def random_batch(rng: np.random.Generator, device: torch.device, vocab_size: int, batch_tokens: int) -> Batch:
    """About `batch_tokens` tokens a side, in sentences of 8 to 20 tokens, similarly long as in a real batch."""
    length = int(rng.integers(8, 18))
    lengths = rng.integers(length, length + 3, batch_tokens // (length + 1)).tolist()
    tokens = torch.from_numpy(rng.integers(4, vocab_size, sum(lengths))).to(device)
    layout = Layout.of(lengths, device)
    return Batch(tokens, layout, tokens, tokens.roll(-1), layout)


def train_rate(model: TranslationModel, config: Config, precision: torch.dtype, rng: np.random.Generator) -> float:
    """Target tokens a second over STEPS updates of `data.batch_tokens`."""
    device = model.output_weight.device
    optimizer = build_optimizer(model, config.optimizer)
    model.train()
    batches = [random_batch(rng, device, model.vocab_size, config.data.batch_tokens) for _ in range(STEPS + 1)]
    started = 0.0
    for index, batch in enumerate(batches):
        if index == 1:
            started = _now(device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            loss, _ = batch_loss(model, batch, 0.1)
        (loss / batch.target_layout.total).backward()
        optimizer.step()
        optimizer.zero_grad()
    return sum(batch.target_layout.total for batch in batches[1:]) / (_now(device) - started)


def translate_rate(model: TranslationModel, beam_size: int, rng: np.random.Generator) -> float:
    """Output tokens a second for SENTENCES sentences of OUTPUT_TOKENS each."""
    device = model.output_weight.device
    model.eval()
    tokens = torch.from_numpy(rng.integers(4, model.vocab_size, SENTENCES * OUTPUT_TOKENS)).to(device)
    settings = SearchConfig(beam_size=beam_size, max_length_ratio=0.0, max_length_offset=OUTPUT_TOKENS)
    # With a penalty this strong no short hypothesis wins before the limit.
    settings.length_penalty = 50.0 if beam_size > 1 else 0.0
    search = BeamSearch(settings, BOS, EOS, [])
    started = _now(device)
    found = search(model, tokens, Layout.of([OUTPUT_TOKENS] * SENTENCES, device))
    return sum(len(best.tokens) + 1 for best, *_ in found) / (_now(device) - started)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="small", choices=("small", "base", "big"))
    options.add_argument("--vocab-size", type=int, default=8000)
    options.add_argument("--batch-tokens", type=int, default=4096)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--device", default="auto")
    options.add_argument("--output", type=Path)
    arguments = options.parse_args()
    keep_freed_memory()
    config = compose(["+recipe=files", f"model={arguments.model}", f"data.batch_tokens={arguments.batch_tokens}"])
    device = choose_device(arguments.device)
    model = build_model(config.model, arguments.vocab_size, 1).to(device)
    formats = [torch.float32, choose_precision("auto", device)]
    rng = np.random.default_rng(1)
    rates: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for precision in dict.fromkeys(formats):
            name = f"training {str(precision).removeprefix('torch.')}"
            rates.setdefault(name, []).append(train_rate(model, config, precision, rng))
        for beam_size in (1, 4):
            rates.setdefault(f"translating float32 beam {beam_size}", []).append(translate_rate(model, beam_size, rng))
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "model": arguments.model,
        "vocab_size": arguments.vocab_size,
        "batch_tokens": arguments.batch_tokens,
        "parameters": count_parameters(model),
        "rounds": arguments.rounds,
        "command": f"python {' '.join(sys.argv)}",
        "target_tokens_per_second": {name: round(statistics.median(values)) for name, values in rates.items()},
    }
    for name, rate in result["target_tokens_per_second"].items():
        print(f"{name:<32} {rate:>10,} target tokens/s", file=sys.stderr)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
