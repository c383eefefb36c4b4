"""seq2seq-translate: N lines in, N lines out, in order."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seq2seq.cli.common import UNMET, add_model_options, load_translator, parser, require_streams, run
from seq2seq.support.errors import UserError
from seq2seq.support.progress import say

if TYPE_CHECKING:
    from seq2seq.translate.translation import Translation
    from seq2seq.translate.translator import Translator

SUMMARY = "Translate standard input, one sentence a line, to standard output: as many lines, in the same order."
EXAMPLES = """examples:
  seq2seq-translate < input.txt > output.txt
  echo "forty-seven" | seq2seq-translate --model runs/quickstart/model --beam-size 8 --scores
  seq2seq-translate --jsonl --n-best 4 < input.txt
  seq2seq-translate --sampling --top-p 0.9 --n-best 5 < input.txt
  seq2seq-translate --glossary terms.tsv --forbid never.txt < input.txt
  seq2seq-translate --stream --beam-size 1
"""


def options() -> argparse.ArgumentParser:
    """The command's options."""
    made = parser("seq2seq-translate", SUMMARY, EXAMPLES, reads_text=True)
    add_model_options(made)
    made.add_argument(
        "--prefix", type=Path, metavar="FILE", help="what each output must begin with, one per line; empty: anything"
    )
    made.add_argument(
        "--scores", action="store_true", help="print the score (log-probability / length penalty), tab, text"
    )
    made.add_argument(
        "--jsonl",
        action="store_true",
        help="print one JSON object a line: text, score, status; with --n-best also hypotheses",
    )
    made.add_argument(
        "--token-scores", action="store_true", help="with --jsonl: also all tokens with their log-probabilities"
    )
    made.add_argument(
        "--align",
        choices=("pharaoh", "matrix"),
        help="with --jsonl: also word alignments by attention, source-target from 0 (0-0 2-1); matrix: and all weights",
    )
    made.add_argument("--stream", action="store_true", help="print each translation as it is generated (--beam-size 1)")
    return made


def translate(arguments: argparse.Namespace) -> None:
    """Translate window by window, flushing after each."""
    from seq2seq.translate.lines import decode, windows
    from seq2seq.translate.prefixes import Prefixes

    require_streams("seq2seq-translate < input.txt > output.txt")
    if arguments.stream and (arguments.jsonl or arguments.scores):
        raise UserError("--stream prints text alone; leave out --jsonl and --scores")
    explained = arguments.token_scores or bool(arguments.align)
    if explained and (not arguments.jsonl or arguments.ensemble):
        flag = "--token-scores" if arguments.token_scores else "--align"
        raise UserError(
            f"{flag}: it is for JSON of one model; " + ("leave out --ensemble" if arguments.ensemble else "add --jsonl")
        )
    translator = load_translator(arguments)
    if arguments.stream:
        translator.require_streaming()
    if sys.stdin.isatty():
        say("type a sentence and Enter; Ctrl-D ends")
    prefixes = Prefixes(arguments.prefix)
    replaced = damaged = lines = unmet = 0
    first_unmet = ""
    for window in windows(sys.stdin.buffer):
        decoded = [decode(line) for line in window]
        texts, starts = [text for text, _ in decoded], prefixes.take(len(decoded))
        damaged += sum(count > 0 for _, count in decoded)
        replaced += sum(count for _, count in decoded)
        if arguments.stream:
            whys = [_stream(translator, text, start) for text, start in zip(texts, starts, strict=True)]
        else:
            found = translator.translate_n_best(texts, starts)
            told = _described(translator, found, arguments) if explained else [[]] * len(found)
            for translation, (_, count), about in zip(found, decoded, told, strict=True):
                _write(_render(translation, count, about, translator.search.n_best, arguments))
            sys.stdout.buffer.flush()
            whys = [translation.unmet for translation in found]
        unmet += sum(map(bool, whys))
        for number, why in enumerate(whys, lines + 1):
            first_unmet = first_unmet or (why and f"line {number}: {why}")
        lines += len(window)
    if replaced:
        say(
            f"{replaced} invalid UTF-8 sequences in {damaged} lines were read as U+FFFD; "
            "check the encoding of the input"
        )
    prefixes.require_end()
    if unmet:
        raise UserError(f"{UNMET}: {unmet:,}; the first: {first_unmet}")


def _stream(translator: Translator, text: str, prefix: str) -> str:
    """Write an output as it is found; returns why it could not begin with this prefix, if it could not."""
    why = translator.why_impossible(text, prefix)
    for piece in itertools.chain(translator.stream(text, "" if why else prefix), ["\n"]):
        _write(piece)
        sys.stdout.buffer.flush()
    return why


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))


def _described(
    translator: Translator, found: list[Translation], arguments: argparse.Namespace
) -> list[list[dict[str, Any]]]:
    """What --token-scores and --align tell about each hypothesis of each translation."""
    from seq2seq.translate.scoring import described

    return [
        [
            described(translator.tokenizer, parts, tokens=arguments.token_scores, align=arguments.align)
            for parts in of_one
        ]
        for of_one in translator.explain(found, attention=bool(arguments.align))
    ]


def _render(
    translation: Translation, replaced: int, about: list[dict[str, Any]], n_best: int, arguments: argparse.Namespace
) -> str:
    hypotheses = list(zip(translation.texts, translation.scores, strict=True))
    if arguments.jsonl:
        rows = [{"text": text, "score": score} for text, score in hypotheses]
        for row, more in zip(rows, about, strict=False):
            row |= more
        if replaced:
            translation.flags.append("replaced")
        line = {**rows[0], "status": translation.status}
        if replaced:
            line["replaced"] = replaced
        if translation.unmet:
            line["unmet"] = translation.unmet
        if n_best > 1:
            line["hypotheses"] = rows
        return json.dumps(line, ensure_ascii=False) + "\n"
    # Every input line has N output lines, even if search found fewer hypotheses.
    hypotheses += [("", float("-inf"))] * (n_best - len(hypotheses))
    return "".join(f"{score:.4f}\t{text}\n" if arguments.scores else f"{text}\n" for text, score in hypotheses)


def main() -> None:
    """The command."""
    run(options, translate)


if __name__ == "__main__":
    main()
