"""seq2seq-score: the exact log-probability of given translations, one line per pair, in order."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seq2seq.cli.common import add_device_options, find_model, parser, prepare_process, require_streams, run
from seq2seq.support.errors import UserError
from seq2seq.support.progress import say

if TYPE_CHECKING:
    from seq2seq.translate.scoring import PairScore, Scorer

SUMMARY = "Score given translations: print the log-probability of each target given its source, and its mean per token."
EXAMPLES = """Pairs are the lines of two files, or of standard input: source, tab, target. Each gives a line of output:
log-probability (natural, eos counted), tab, the mean per token; with --tokens, tab, that of each token and of eos; with
--align, tab, word alignment. The last line on standard error has the perplexity, exp(-sum / tokens).

examples:
  seq2seq-score --source test.en --target test.de > scores.txt
  paste test.en test.de | seq2seq-score --model runs/quickstart/model
  seq2seq-score --source test.en --target test.de --align pharaoh | cut -f 3 > test.align
  seq2seq-score --source test.en --target test.de --jsonl --tokens --align matrix
"""
Window = tuple[int, list[tuple[str, str]]]


def options() -> argparse.ArgumentParser:
    """The command's options."""
    made = parser("seq2seq-score", SUMMARY, EXAMPLES, reads_text=True)
    made.add_argument("--source", type=Path, metavar="FILE", help="source sentences, one per line (also .gz, .xz, …)")
    made.add_argument("--target", type=Path, metavar="FILE", help="their translations, line by line")
    add_device_options(made)
    made.add_argument("--tokens", action="store_true", help="also the log-probability of each token, eos last")
    made.add_argument(
        "--align",
        choices=("pharaoh", "matrix"),
        help="also word alignments by attention, source-target from 0 (0-0 2-1); matrix, for --jsonl: and all weights",
    )
    made.add_argument(
        "--align-layer",
        type=int,
        metavar="N",
        help="the decoder layer that aligns, from 1 (default: the last; the last but one of six or more)",
    )
    made.add_argument("--jsonl", action="store_true", help="print one JSON object a line: text, score, status, …")
    return made


def score(arguments: argparse.Namespace) -> None:
    """Score window by window, flushing after each."""
    require_streams("paste test.en test.de | seq2seq-score > scores.txt", reads=arguments.source is None)
    if (arguments.source is None) != (arguments.target is None):
        missing = "--target" if arguments.target is None else "--source"
        raise UserError(f"{missing} is missing: give both files, or pairs with a tab on standard input")
    if arguments.align == "matrix" and not arguments.jsonl:
        raise UserError("--align matrix is for JSON; add --jsonl, or type --align pharaoh")
    if arguments.align_layer is not None and not arguments.align:
        raise UserError(f"--align-layer {arguments.align_layer} without --align: add --align pharaoh")
    directory = find_model(arguments.model)
    windows = _files(arguments.source, arguments.target) if arguments.source else _standard_input()

    from seq2seq.translate.scoring import Scorer, perplexity

    prepare_process(arguments)
    scorer = Scorer.load(directory, device=arguments.device, dtype=arguments.dtype)
    scorer.batch_tokens = arguments.batch_tokens or scorer.batch_tokens
    names = (str(arguments.source or "standard input"), str(arguments.target or "standard input"))
    pairs, tokens, sums = 0, 0, 0.0
    counts: Counter[str] = Counter()
    first_of: dict[str, int] = {}
    for first, window in windows:
        found = scorer.score(
            window, attention=bool(arguments.align), layer=arguments.align_layer, names=names, first=first
        )
        for number, (pair, own) in enumerate(zip(window, found, strict=True), first):
            line = _json(scorer, pair, own, arguments) if arguments.jsonl else _columns(scorer, own, arguments)
            sys.stdout.buffer.write(f"{line}\n".encode())
            status = scorer.status(own)
            counts[status] += 1
            first_of.setdefault(status, number)
            pairs, tokens, sums = pairs + 1, tokens + len(own.token_log_probs), sums + own.score
        sys.stdout.buffer.flush()
    _say_unusual(counts, first_of, scorer.longest_source)
    if not pairs:
        say("no pairs: the input is empty")
        return
    say(
        f"{pairs:,} pairs, {tokens:,} target tokens with eos, log-probability {sums:.4f}, "
        f"perplexity {perplexity(sums, tokens):.4f}"
    )


def _files(source: Path, target: Path) -> Iterator[Window]:
    """The pairs of two files in windows, each with the number of its first pair; both are read through beforehand."""
    from seq2seq.data.text_files import read_lines
    from seq2seq.translate.lines import WINDOW

    counts = [sum(1 for _ in read_lines(path)) for path in (source, target)]
    if counts[0] != counts[1]:
        raise UserError(
            f"{source} has {counts[0]:,} lines, {target} has {counts[1]:,}: "
            "line n of the one must be the translation of line n of the other"
        )
    pairs = zip(read_lines(source), read_lines(target), strict=True)
    return ((first, list(islice(pairs, WINDOW))) for first in range(1, counts[0] + 1, WINDOW))


def _standard_input() -> Iterator[Window]:
    """The pairs of standard input, source and target separated by a tab, as they arrive."""
    from seq2seq.data.text_files import BLANKS
    from seq2seq.translate.lines import decode, windows

    if sys.stdin.isatty():
        say("type a sentence, tab, its translation and Enter; Ctrl-D ends")
    first = 1
    for window in windows(sys.stdin.buffer):
        pairs = []
        for number, line in enumerate(window, first):
            text, replaced = decode(line)
            if replaced:
                raise UserError(f"standard input:{number}: not UTF-8; convert it: iconv -f latin1 -t utf-8")
            source, *targets = text.split("\t")
            if len(targets) != 1:
                raise UserError(
                    f"standard input:{number}: {len(targets)} tabs; a line is source, tab, target: paste FILE FILE, "
                    "or give text with tabs as --source FILE --target FILE"
                )
            pairs.append((source.strip(BLANKS), targets[0].strip(BLANKS)))
        yield first, pairs
        first += len(window)


def _columns(scorer: Scorer, found: PairScore, arguments: argparse.Namespace) -> str:
    from seq2seq.translate.alignment import pharaoh

    columns = [f"{found.score:.4f}", f"{found.per_token:.4f}"]
    if arguments.tokens:
        columns.append(" ".join(f"{log_prob:.4f}" for log_prob in found.token_log_probs))
    if arguments.align:
        columns.append(pharaoh(scorer.links(found)))
    return "\t".join(columns)


def _json(scorer: Scorer, pair: tuple[str, str], found: PairScore, arguments: argparse.Namespace) -> str:
    from seq2seq.translate.scoring import described

    row: dict[str, Any] = {
        "text": pair[1],
        "score": round(found.score, 6),
        "per_token": round(found.per_token, 6),
        "status": scorer.status(found),
        **described(scorer.tokenizer, [found], tokens=arguments.tokens, align=arguments.align),
    }
    return json.dumps(row, ensure_ascii=False)


def _say_unusual(counts: Counter[str], first_of: dict[str, int], longest: int | None) -> None:
    for kind, what in (
        ("empty", "pairs have an empty side; training leaves such out, so that their scores say little"),
        ("long", f"sources have more than {longest} pieces, the most in training; their scores may say little"),
    ):
        if counts[kind]:
            say(f"{counts[kind]:,} {what} (first: line {first_of[kind]:,})")


def main() -> None:
    """The command."""
    run(options, score)


if __name__ == "__main__":
    main()
