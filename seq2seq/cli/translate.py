"""seq2seq-translate: N lines in, N lines out, in order."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from seq2seq.cli.common import add_model_options, load_translator, parser
from seq2seq.support.errors import UserError, exit_code_of
from seq2seq.support.progress import say

if TYPE_CHECKING:
    from seq2seq.translate.translator import Translation

SUMMARY = "Translate standard input, one sentence a line, to standard output: as many lines, in the same order."
EXAMPLES = """examples:
  seq2seq-translate < input.txt > output.txt
  echo "forty-seven" | seq2seq-translate --model runs/quickstart/model --beam-size 8 --scores
  seq2seq-translate --jsonl --n-best 4 < input.txt
"""


def options() -> argparse.ArgumentParser:
    """The command's options."""
    made = parser("seq2seq-translate", SUMMARY, EXAMPLES)
    add_model_options(made)
    made.add_argument(
        "--n-best", type=int, default=1, metavar="N", help="hypotheses printed for each line: N lines instead of one"
    )
    made.add_argument(
        "--scores", action="store_true", help="print the score (log-probability / length penalty), tab, text"
    )
    made.add_argument(
        "--jsonl", action="store_true", help="print one JSON object a line: text, score, status, hypotheses"
    )
    return made


def translate(arguments: argparse.Namespace) -> None:
    """Translate window by window, flushing after each."""
    from seq2seq.translate.lines import decode, windows

    if arguments.n_best < 1:
        raise UserError(f"--n-best {arguments.n_best}: must be at least 1")
    translator = load_translator(arguments, arguments.n_best)
    if sys.stdin.isatty():
        say("type a sentence and Enter; Ctrl-D ends")
    replaced = lines = 0
    for window in windows(sys.stdin.buffer):
        decoded = [decode(line) for line in window]
        lines += sum(count > 0 for _, count in decoded)
        replaced += sum(count for _, count in decoded)
        for translation, (_, count) in zip(
            translator.translate_n_best([text for text, _ in decoded]), decoded, strict=True
        ):
            sys.stdout.buffer.write(_render(translation, count, arguments).encode("utf-8", errors="replace"))
        sys.stdout.buffer.flush()
    if replaced:
        say(f"{replaced} invalid UTF-8 sequences in {lines} lines were read as U+FFFD; check the encoding of the input")


def _render(translation: Translation, replaced: int, arguments: argparse.Namespace) -> str:
    hypotheses = list(zip(translation.texts, translation.scores, strict=True))
    if arguments.jsonl:
        row = {"text": hypotheses[0][0], "score": hypotheses[0][1], "status": translation.status}
        if replaced:
            row["replaced"] = replaced
        if arguments.n_best > 1:
            row["hypotheses"] = [{"text": text, "score": score} for text, score in hypotheses]
        return json.dumps(row, ensure_ascii=False) + "\n"
    # Every input line has its N lines, also where search found fewer hypotheses.
    hypotheses += [("", float("-inf"))] * (arguments.n_best - len(hypotheses))
    return "".join(f"{score:.4f}\t{text}\n" if arguments.scores else f"{text}\n" for text, score in hypotheses)


def main() -> None:
    """The command."""
    arguments = options().parse_args()
    sys.exit(exit_code_of("seq2seq-translate", lambda: translate(arguments)))


if __name__ == "__main__":
    main()
