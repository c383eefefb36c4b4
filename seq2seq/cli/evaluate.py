"""seq2seq-evaluate: translate a test set, or take hypotheses, and print scores as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from seq2seq.cli.common import add_model_options, find_model, load_translator, parser
from seq2seq.config import compose
from seq2seq.data.corpus import Pair, is_given, read_pairs
from seq2seq.evaluate.scores import compare, scores, tokenised_bleu
from seq2seq.evaluate.test_set import aligned, read_test_set
from seq2seq.support.errors import RunError, UserError, exit_code_of
from seq2seq.support.files import write_text

SUMMARY = "Score translations: BLEU, chrF and TER by sacreBLEU, each with its signature, as JSON on standard output."
EXAMPLES = """The test set is --source and --reference, else the one that the model's configuration names (data.test.*).

examples:
  seq2seq-evaluate --model runs/quickstart/model
  seq2seq-evaluate --source test.en --reference test.de --lowercase --paper-bleu
  seq2seq-evaluate --hypotheses output.de --reference test.de
  seq2seq-evaluate --compare baseline.de new.de --reference test.de
  seq2seq-evaluate --min-bleu 35     in CI: exit code 3 when the score is lower
"""


def options() -> argparse.ArgumentParser:
    """The command's options."""
    made = parser("seq2seq-evaluate", SUMMARY, EXAMPLES)
    add_model_options(made)
    made.add_argument("--source", type=Path, metavar="FILE", help="test sentences, one a line")
    made.add_argument("--reference", type=Path, metavar="FILE", help="their reference translations")
    made.add_argument("--hypotheses", type=Path, metavar="FILE", help="score these lines; nothing is translated")
    made.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="paired bootstrap of two files of hypotheses"
    )
    made.add_argument("--output", type=Path, metavar="FILE", help="write the translations there too")
    made.add_argument("--lowercase", action="store_true", help="ignore case")
    made.add_argument(
        "--paper-bleu",
        action="store_true",
        help="also BLEU on Moses tokens, without and with compounds split as in the paper",
    )
    made.add_argument("--target-language", metavar="L", help="for --paper-bleu (default: the model's)")
    made.add_argument("--min-bleu", type=float, metavar="X", help="exit with 3 when BLEU is below X")
    made.add_argument("--min-exact", type=float, metavar="X", help="exit with 3 when fewer than X %% are exactly right")
    made.add_argument("--min-exact-each", type=float, metavar="X", help="the same for each label of the test set")
    return made


def evaluate(arguments: argparse.Namespace) -> None:
    """Print the scores; raises RunError when they are under a bar."""
    if arguments.compare:
        references = [pair.target for pair in _test_set(arguments)]
        systems = [(str(path), aligned(path, references)) for path in arguments.compare]
        print(json.dumps(compare(systems, references, lowercase=arguments.lowercase), indent=2, ensure_ascii=False))
        return
    if arguments.output and not arguments.output.parent.is_dir():
        raise UserError(f"--output {arguments.output}: no such folder; type: mkdir -p {arguments.output.parent}")
    pairs = _test_set(arguments)
    references = [pair.target for pair in pairs]
    language = arguments.target_language
    if arguments.paper_bleu and not language:
        if arguments.hypotheses and not arguments.model:
            raise UserError("--paper-bleu of --hypotheses: add --target-language L, such as de")
        language = _config(arguments).data.target_language
    if arguments.hypotheses:
        hypotheses = aligned(arguments.hypotheses, references)
    else:
        hypotheses = load_translator(arguments).translate([pair.source for pair in pairs])
    if arguments.output:
        write_text(arguments.output, "".join(f"{line}\n" for line in hypotheses))
    labels = [pair.label for pair in pairs]
    result = scores(hypotheses, references, labels, lowercase=arguments.lowercase)
    if arguments.paper_bleu:
        for key, split_compounds in (("tokenised_bleu", False), ("paper_bleu", True)):
            result[key] = tokenised_bleu(
                hypotheses, references, language, lowercase=arguments.lowercase, split_compounds=split_compounds
            )
    print(json.dumps(result, indent=2, ensure_ascii=False))
    _check_bars(arguments, result)


def _check_bars(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    found = [
        ("BLEU", result["bleu"]["score"], "--min-bleu", arguments.min_bleu),
        ("exact", result["exact"], "--min-exact", arguments.min_exact),
        *(
            (f"exact ({label})", share, "--min-exact-each", arguments.min_exact_each)
            for label, share in result.get("exact_each", {}).items()
        ),
    ]
    low = [
        f"{name} {value} is below {flag} {bar}" for name, value, flag, bar in found if bar is not None and value < bar
    ]
    if low:
        raise RunError("; ".join(low))


def _config(arguments: argparse.Namespace) -> Any:
    # Found once: a training beside this may put a newer one there.
    arguments.model = str(find_model(arguments.model))
    return compose.load(Path(arguments.model) / "config.yaml")


def _test_set(arguments: argparse.Namespace) -> list[Pair]:
    if arguments.source and not arguments.reference:
        raise UserError("--source without --reference: nothing to compare with; add --reference FILE")
    if not arguments.reference:
        config = _config(arguments)
        if not is_given(config.data.test):
            raise UserError("the model's configuration names no test set; add --source FILE --reference FILE")
        return list(read_pairs(config.data, "test", config.seed))
    if not (arguments.source or arguments.hypotheses or arguments.compare):
        raise UserError("--reference without --source: nothing to translate; add --source FILE or --hypotheses FILE")
    return read_test_set(arguments.source, arguments.reference)


def main() -> None:
    """The command."""
    arguments = options().parse_args()
    sys.exit(exit_code_of("seq2seq-evaluate", lambda: evaluate(arguments)))


if __name__ == "__main__":
    main()
