"""One contestant of tools/bench_decode.py: reads a job as a line of JSON, then translates once for each line."""

from __future__ import annotations

import gc
import json
import multiprocessing
import resource
import sys
import time

STARTED = time.perf_counter()

from collections.abc import Callable  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from seq2seq.config.compose import compose  # noqa: E402
from seq2seq.config.schema import ModelConfig  # noqa: E402
from seq2seq.data.tokenizer import EOS, PAD  # noqa: E402
from seq2seq.model.directory import load_model_directory  # noqa: E402
from seq2seq.model.translation import TranslationModel, build_model  # noqa: E402
from seq2seq.ops.topk import Candidates  # noqa: E402
from seq2seq.support.devices import keep_freed_memory  # noqa: E402
from seq2seq.translate.translator import BATCH_TOKENS_OF_GPU, Translator  # noqa: E402

Turn = Callable[[list[str]], tuple[list[str], int | None]]
"""Texts to translations, and how many rows the decoder computed (None: not known)."""


def loaded(job: dict[str, Any]) -> tuple[Translator, ModelConfig]:
    """The job's model and its settings; with `forced`, a base model with random weights and the same vocabulary."""
    config, tokenizer, model, _ = load_model_directory(Path(job["model"]))
    if "forced" in job:
        config = compose(["run_dir=runs/bench", "model=base"])
        model = build_model(config.model, tokenizer.vocab_size, 1)
    return Translator.of(model.eval(), tokenizer, config), config.model


def ours(job: dict[str, Any]) -> Turn:
    """Our translator."""
    translator, _ = loaded(job)
    counted = count_rows(translator.model)
    translator.model.place(torch.device(job["device"]), getattr(torch, job["dtype"]))
    chosen = {name: job[name] for name in ("beam_size", "length_penalty", "stop") if name in job}
    # Two with eos, which CTranslate2 does not count in its one: no side gives an empty output.
    translator.search = replace(translator.search, min_length=2, **chosen)
    translator.deterministic = job.get("deterministic", False)
    if "forced" in job:
        translator.search = replace(translator.search, max_length_ratio=0.0, max_length_offset=job["forced"])
        never_end_early(translator, job["forced"])
    translator.workers = job["workers"]
    if job["device"] == "cuda":
        translator.batch_tokens = BATCH_TOKENS_OF_GPU

    def turn(texts: list[str]) -> tuple[list[str], int | None]:
        counted.value = 0
        return translator.translate(texts), counted.value

    return turn


def count_rows(model: TranslationModel) -> Any:
    """A counter (`value`) of the rows given to the decoder, in this process and those forked from it."""
    counted: Any = multiprocessing.Value("q", 0)
    step = model.step

    def counting(state: Any, tokens: Tensor, parents: Tensor) -> Tensor:
        with counted.get_lock():
            counted.value += tokens.numel()
        return step(state, tokens, parents)

    model.step = counting  # type: ignore[method-assign]
    return counted


def never_end_early(translator: Translator, length: int) -> None:
    """Forbid eos before the last step, as CTranslate2's minimum length does."""
    start, step = translator.model.start, translator.model.step
    logits, best = translator.model.logits, translator.model.best
    steps = [0]

    def starting(memory: Any) -> Any:
        steps[0] = 0
        return start(memory)

    def stepping(state: Any, tokens: Tensor, parents: Tensor) -> Tensor:
        steps[0] += 1
        return step(state, tokens, parents)

    def without_eos(hidden: Tensor) -> Tensor:
        found = logits(hidden)
        if steps[0] < length:
            found[:, :, EOS] = -1e4
        return found

    def best_without_eos(hidden: Tensor, scores: Tensor, count: int, never: Tensor) -> Candidates | None:
        return best(hidden, scores, count, torch.cat((never, never.new_tensor([EOS]))) if steps[0] < length else never)

    translator.model.best = best_without_eos  # type: ignore[method-assign]
    translator.model.start = starting  # type: ignore[method-assign]
    translator.model.step = stepping  # type: ignore[method-assign]
    translator.model.logits = without_eos  # type: ignore[method-assign]


def by_ctranslate2(job: dict[str, Any]) -> Turn:
    """CTranslate2 with the same weights."""
    import ctranslate2

    from tools.ctranslate2_model import piece, token, write_ctranslate2_model

    folder = Path(job["folder"]) / ("ctranslate2-base" if "forced" in job else "ctranslate2")
    translator, config = loaded(job)
    if not folder.exists():
        write_ctranslate2_model(translator.model, config, folder)
    theirs = ctranslate2.Translator(
        str(folder),
        device=job["device"],
        compute_type=job["dtype"],
        inter_threads=job["workers"],
        intra_threads=1,
    )
    length = {"min_decoding_length": 1}
    if "forced" in job:
        length = {"min_decoding_length": job["forced"], "max_decoding_length": job["forced"]}

    def turn(texts: list[str], batch: int | None = None) -> tuple[list[str], int | None]:
        sources = [[*map(piece, ids), "</s>"] for ids in translator.tokenizer.encode(texts, torch.get_num_threads())]
        found = theirs.translate_batch(
            sources,
            beam_size=job["beam_size"],
            length_penalty=job["length_penalty"],
            max_batch_size=batch or job["batch"],
            **length,
        )
        outputs = [[token(name) for name in result.hypotheses[0]] for result in found]
        return translator.tokenizer.decode(outputs, torch.get_num_threads()), None

    find_fastest_batch(turn, job, (32, 64, 96))
    return turn


def by_transformers(job: dict[str, Any]) -> Turn:
    """Hugging Face's Marian with the same weights, in one process with as many threads as others have workers."""
    from tools.marian_weights import as_marian

    translator, config = loaded(job)
    device = torch.device(job["device"])
    model = as_marian(translator.model, config).to(device, getattr(torch, job["dtype"]))
    threads = torch.get_num_threads()
    torch.set_num_threads(job["workers"])
    length = {"min_new_tokens": job.get("forced", 1)}

    @torch.inference_mode()
    def turn(texts: list[str], batch: int | None = None) -> tuple[list[str], int | None]:
        sources = [[*ids, EOS] for ids in translator.tokenizer.encode(texts, threads)]
        order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
        outputs: list[list[int]] = [[] for _ in sources]
        for places in (
            order[start : start + (batch or job["batch"])] for start in range(0, len(order), batch or job["batch"])
        ):
            tokens = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(sources[place]) for place in places], batch_first=True, padding_value=PAD
            ).to(device)
            found = model.generate(
                tokens,
                attention_mask=(tokens != PAD).long(),
                num_beams=job["beam_size"],
                length_penalty=job["length_penalty"],
                max_new_tokens=job.get("forced", tokens.shape[1] + 50),
                suppress_tokens=translator.tokenizer.never_generated,
                use_cache=True,
                forced_eos_token_id=EOS,
                do_sample=False,
                **length,
            )
            for place, row in zip(places, found.tolist(), strict=True):
                outputs[place] = row[1:].copy() if EOS not in row[1:] else row[1 : row.index(EOS, 1)]
        return translator.tokenizer.decode(outputs, threads), None

    find_fastest_batch(turn, job, (32, 64, 128))
    return turn


def find_fastest_batch(turn: Callable[..., Any], job: dict[str, Any], sizes: tuple[int, ...]) -> None:
    """Set `batch` to the batch size that is fastest on a sample; on GPUs, of larger sizes and on the whole text."""
    on_gpu = job["device"] == "cuda"
    sample = Path(job["source"]).read_text("utf-8").split("\n")[: -1 if on_gpu else 192]
    turn(sample[:16], 16)
    times = {}
    for batch in (256, 512, 1024) if on_gpu else sizes:
        started = time.perf_counter()
        turn(sample, batch)
        times[batch] = time.perf_counter() - started
    job["batch"] = min(times, key=lambda batch: times[batch])


SYSTEMS: dict[str, Callable[[dict[str, Any]], Turn]] = {
    "ours": ours,
    "ctranslate2": by_ctranslate2,
    "transformers": by_transformers,
}


def tokens_of(job: dict[str, Any], translations: list[str]) -> int:
    """Target tokens, eos counted: the forced steps, or the pieces of the translations."""
    if "forced" in job:
        return int(job["forced"]) * len(translations)
    tokenizer = load_model_directory(Path(job["model"])).tokenizer
    return sum(len(ids) + 1 for ids in tokenizer.encode(translations))


def peak_megabytes() -> float:
    """Peak memory of this process plus that of its largest child."""
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def main() -> None:
    """Get ready, then take turns until the input ends."""
    keep_freed_memory()
    imported = time.perf_counter() - STARTED
    job = json.loads(sys.stdin.readline())
    asked = time.perf_counter()
    turn = SYSTEMS[sys.argv[1]](job)
    texts = Path(job["source"]).read_text("utf-8").split("\n")[:-1][: job.get("lines")]
    turn(texts[:64])
    # As our commands do: what is loaded stays to the end, so garbage collection need not scan it each time.
    gc.freeze()
    started = imported + time.perf_counter() - asked
    parts = [[text] for text in texts] if "one_by_one" in job else [texts]
    # Once, untimed, before others may begin: for new shapes, code is compiled and memory is taken from the system.
    for part in parts:
        turn(part)
    print(json.dumps({"start_seconds": started, "batch": job.get("batch")}), flush=True)
    for _ in sys.stdin:
        found: list[str] = []
        each, rows = [], []
        for part in parts:
            started = time.perf_counter()
            translations, computed = turn(part)
            each.append(time.perf_counter() - started)
            found += translations
            rows.append(computed)
        total = None if None in rows else sum(filter(None, rows))
        answer = {"texts": found, "tokens": tokens_of(job, found), "rows": total, "seconds": sum(each), "each": each}
        print(json.dumps({**answer, "peak_megabytes": peak_megabytes()}), flush=True)


if __name__ == "__main__":
    main()
