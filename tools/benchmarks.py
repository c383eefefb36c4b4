"""Put the figures of docs/benchmarks/*.json, which the bench_*.py tools wrote, into the tables of BENCHMARKS.md.

    python -m tools.benchmarks

The text between `<!-- NAME -->` and `<!-- end -->` is rendered from docs/benchmarks/NAME.json; a test checks it. Also
draws docs/benchmarks/growth-*.svg.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.pages import fill, head, picture, row
from tools.parts import BETWEEN

ROOT = Path(__file__).resolve().parent.parent
PAGE, FOLDER = ROOT / "BENCHMARKS.md", ROOT / "docs" / "benchmarks"


def rendered(name: str) -> str:
    """The Markdown of docs/benchmarks/NAME.json."""
    figures = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    versions = "".join(f", {package} {version}" for package, version in figures.get("versions", {}).items())
    measured = f"{figures['date']}; {figures['machine']}{versions}; {figures['rounds']} rounds."
    return "\n".join([f"`{figures['command']}`", "", measured, "", *TABLES[name.partition("-")[0]](figures)]) + "\n"


def span(values: dict[str, float], form: str) -> str:
    """Median, least and greatest."""
    median, least, most = (format(values[key], form) for key in ("median", "min", "max"))
    return f"{median} ({least}–{most})"


def train(figures: dict[str, Any]) -> Iterator[str]:
    """Training compared with peers, by number format."""
    yield f"{sizes(figures)}. Ratios are medians of those within a round."
    for precision, found in figures["formats"].items():
        yield from train_table(precision, found)


def train_table(precision: str, found: dict[str, Any]) -> Iterator[str]:
    """Training beside peers in one number format."""
    rate, others = found["matrix_flops_per_second"]["median"] / 1e9, found["processors_busy_for_others"]["median"]
    yield ""
    yield (
        f"**{precision}**, {found['device']}, {found['threads']} threads; matrix product {rate:,.0f} GFLOP/s; "
        f"processors busy for others: {others:.2f}"
    )
    yield ""
    ratios = found["ratios"]
    yield from head(
        *("", "target tokens/s", "of the matrix rate", "pads", "peak MiB", "s to first update"),
        *(f"{own} ÷ it" for own in ratios),
    )
    for name, values in found["contestants"].items():
        yield row(
            name,
            span(values["target_tokens_per_second"], ",.0f"),
            f"{values['share_of_matrix_rate']['median']:.0%}",
            f"{values['padding_share']:.1%}",
            f"{values['peak_memory_bytes'] / 2**20:,.0f}",
            f"{max(values['seconds_to_first_update'].values()):.1f}",
            *(span(over[name], ".2f") if name in over else "" for over in ratios.values()),
        )


def parts(figures: dict[str, Any]) -> Iterator[str]:
    """Where the time of an update goes; on a GPU, that of its kernels."""
    on_gpu = any(found["device"] != "cpu" for found in figures["formats"].values())
    yield f"{sizes(figures)}. Milliseconds of {'the kernels of ' * on_gpu}an update, and shares of it."
    for precision, found in figures["formats"].items():
        yield from ("", f"**{precision}**, {found['device']}, {found['threads']} threads:", "")
        contestants = {name: dict(taken) for name, taken in found["milliseconds"].items()}
        if on_gpu:
            for taken in contestants.values():
                # Under the profiler kernels wait to be launched.
                del taken[BETWEEN]
                taken["all"] = sum(time for part, time in taken.items() if part != "all")
        yield from head("", *contestants)
        for part in next(iter(contestants.values())):
            cells = (f"{taken[part]:,.1f} ({taken[part] / taken['all']:.0%})" for taken in contestants.values())
            yield row(part, *cells)


def sizes(figures: dict[str, Any]) -> str:
    """What was trained, on what."""
    model = f"{figures['model']}, {figures['vocab_size']:,} pieces, {figures['batch_tokens']:,} tokens an update"
    return f"{model}, {figures['corpus']}"


def growth(figures: dict[str, Any]) -> Iterator[str]:
    """How the time per token grows."""
    for precision, found in figures["formats"].items():
        for axis, costs in found["microseconds_per_target_token"].items():
            yield from ("", f"**{precision}**, µs for a target token by {axis.replace('_', ' ')}:", "")
            yield from head(*costs)
            yield row(*(f"{cost['median']:,.0f}" for cost in costs.values()))


def draw(name: str) -> None:
    """Draw the same figures as docs/benchmarks/NAME.svg."""
    figures = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    (found,) = (measured["microseconds_per_target_token"] for measured in figures["formats"].values())
    size = (4.2 * len(found), 3.2)
    with picture(FOLDER / f"{name}.svg", ncols=len(found), figsize=size, sharey=True) as plots:
        for axes, (axis, costs) in zip(plots, found.items(), strict=True):
            axes.plot([int(size) for size in costs], [cost["median"] for cost in costs.values()], marker="o")
            axes.set(xscale="log", yscale="log", xlabel=axis.replace("_", " "))
            axes.grid(alpha=0.3)
        plots[0].set(ylabel="µs for a target token")


PEERS = {
    "ours bfloat16": ("ctranslate2 float16", "ctranslate2 bfloat16", "ctranslate2 float32"),
    "ours int8": ("ctranslate2 int8",),
    "ours float32": ("ctranslate2 float32",),
}
"""What each of ours is compared with, the first that took part: CTranslate2 has no bfloat16 on these CPUs."""


TRANSFORMERS = ("transformers bfloat16", "transformers float32")


def quotient(own: str, peers: tuple[str, ...], contestants: dict[str, Any]) -> str:
    """The median over the rounds of a peer's time divided by ours; empty where no peer took part."""
    rounds = [contestants[name]["seconds"] for name in (*(name for name in peers if name in contestants), own)]
    if len(rounds) == 1:
        return ""
    return f"{statistics.median(theirs / ours for theirs, ours in zip(rounds[0], rounds[-1], strict=True)):.2f}"


def decode(figures: dict[str, Any]) -> Iterator[str]:
    """Translation compared with CTranslate2 and, where it took part, Transformers."""
    rows = figures["rows"]
    if figures.get("device", "cpu") != "cpu":
        yield from (f"On the GPU, one {figures['device']}.", "")
    beside = {"÷ CTranslate2": PEERS}
    if any(name in TRANSFORMERS for contestants in rows.values() for name in contestants):
        beside["÷ Transformers"] = dict.fromkeys(PEERS, TRANSFORMERS)
    speeds, others = ("lines/s", "target tokens/s"), ("decoder rows", "peak MiB", "start, s", "p50, p99 ms")
    yield from head("row", "", *speeds, *beside, "BLEU", "lines as our float32", *others)
    for name, contestants in rows.items():
        for contestant, found in contestants.items():
            yield row(
                name,
                contestant,
                found["sentences_per_second"],
                f"{found['target_tokens_per_second']:,}" if "target_tokens_per_second" in found else "",
                *(quotient(contestant, peers.get(contestant, ()), contestants) for peers in beside.values()),
                "" if found["bleu"] is None else found["bleu"],
                "" if found["same_lines"] is None else f"{found['same_lines']:.1%}",
                "" if found["decoder_rows"] is None else f"{found['decoder_rows']:,}",
                found["peak_megabytes"],
                found["start_seconds"],
                f"{found['p50_milliseconds']}, {found['p99_milliseconds']}" if "p50_milliseconds" in found else "",
            )
    if "process_seconds" in figures:
        yield from ("", one_line_seconds(figures))


def one_line_seconds(figures: dict[str, Any]) -> str:
    """How long whole processes take for one line."""
    medians = {name: statistics.median(found) for name, found in figures["process_seconds"].items()}
    return "One line, whole processes: " + ", ".join(f"{name} {own:.2f} s" for name, own in medians.items())


def input_line(figures: dict[str, Any]) -> Iterator[str]:
    """Data from disk into batches."""
    yield from head("what", "pairs", "figures")
    for name, by_size in figures.items():
        if isinstance(by_size, dict) and name != "versions":
            for size, values in by_size.items():
                cells = values.items() if isinstance(values, dict) else [("", values)]
                label = f"{int(size):,}" if size.isdigit() else size
                shown = (f"{key} {value:,.10g}".strip() for key, value in cells)
                yield row(name.replace("_", " "), label, ", ".join(shown))
        elif name == "encoding_share":
            yield row("encoding, share of SentencePiece alone", "", f"{by_size:.1%}")


TABLES: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "train": train,
    "parts": parts,
    "growth": growth,
    "decode": decode,
    "input": input_line,
}


if __name__ == "__main__":
    for path in FOLDER.glob("growth-*.json"):
        draw(path.stem)
    fill(PAGE, rendered)
