"""seq2seq-evaluate: translate a test set, or take hypotheses, and print scores as JSON."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seq2seq.cli.common import UNMET, add_model_options, find_model, load_translator, parser, require_streams, run
from seq2seq.config import compose
from seq2seq.data.corpus import Pair, read_pairs
from seq2seq.evaluate.scores import below_minimums, compare, has_no_ngram, language_mismatch
from seq2seq.evaluate.test_set import aligned, read_named_test_sets, read_test_set, scored, translated_once
from seq2seq.support.errors import RunError, UserError
from seq2seq.support.files import write_text
from seq2seq.support.manifest import MANIFEST
from seq2seq.support.progress import say

if TYPE_CHECKING:
    from seq2seq.translate.translator import Translator

SUMMARY = "Score translations: BLEU, chrF and TER by sacreBLEU, each with its signature, as JSON on standard output."
EXAMPLES = """The test set is --source and --reference, or --test-set, else the one that the model's configuration names
(data.test.*). sacreBLEU downloads its test sets once, to $SACREBLEU or ~/.sacrebleu; wmt14 is newstest2014 as the
workshop scored it (2,737 sentences in English-German), wmt14/full all of it (3,003).

examples:
  seq2seq-evaluate --model runs/quickstart/model
  seq2seq-evaluate --test-set wmt14,wmt14/full --paper-bleu
  seq2seq-evaluate --source test.en --reference test.de --lowercase --paper-bleu
  seq2seq-evaluate --hypotheses output.de --reference test.de
  seq2seq-evaluate --compare baseline.de new.de --reference test.de
  seq2seq-evaluate --min-bleu 35     in CI: exit code 3 when the score is lower
"""


def options() -> argparse.ArgumentParser:
    """The command's options."""
    made = parser("seq2seq-evaluate", SUMMARY, EXAMPLES)
    add_model_options(made)
    made.add_argument("--source", type=Path, metavar="FILE", help="test sentences, one per line")
    made.add_argument("--reference", type=Path, metavar="FILE", help="their reference translations")
    made.add_argument(
        "--test-set",
        metavar="NAME[,NAME]",
        help="in place of those two, sacreBLEU's test sets of these names; of several, scores are JSON by name",
    )
    made.add_argument("--hypotheses", type=Path, metavar="FILE", help="score these lines; nothing is translated")
    made.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="paired bootstrap of two files of hypotheses"
    )
    made.add_argument("--output", type=Path, metavar="FILE", help="write the translations there too")
    made.add_argument("--lowercase", action="store_true", help="ignore case")
    made.add_argument(
        "--paper-bleu",
        action="store_true",
        help="also BLEU on Moses tokens, and the same with German compounds split as in the paper",
    )
    made.add_argument("--source-language", metavar="L", help="for --test-set (default: the model's)")
    made.add_argument(
        "--target-language", metavar="L", help="for --test-set and for what a word is (default: the model's)"
    )
    made.add_argument("--min-bleu", type=float, metavar="X", help="exit with 3 when BLEU (of the first) is below X")
    made.add_argument("--min-exact", type=float, metavar="X", help="exit with 3 when fewer than X %% are exactly right")
    made.add_argument("--min-exact-each", type=float, metavar="X", help="the same for each label of the test set")
    return made


def evaluate(arguments: argparse.Namespace) -> None:
    """Print the scores; raises RunError when they are below a required minimum."""
    require_streams("seq2seq-evaluate > scores.json", reads=False)
    _require_sense(arguments)
    test_sets = _test_sets(arguments)
    if not all(test_sets.values()):
        raise UserError(f"{arguments.reference or 'the test set'}: no lines")
    pairs = list(test_sets.values())
    if arguments.min_exact_each is not None and not any(pair.label for pair in pairs[0]):
        raise UserError("--min-exact-each: the pairs of this test set have no labels; take --min-exact")
    references = [pair.target for pair in pairs[0]]
    translator = None
    if not (arguments.hypotheses or arguments.compare):
        _settle_model(arguments)
        translator = load_translator(arguments)
    language = _language(arguments, "target", required=arguments.paper_bleu)
    if advice := language_mismatch(references, language):
        say(f"{advice}; type --target-language L")
    elif has_no_ngram(references, language):
        say("BLEU counts runs of four words, of which these references have none: even their equals have BLEU 0")
    if arguments.compare:
        systems = [(str(path), aligned(path, references)) for path in arguments.compare]
        found = compare(systems, references, language=language, lowercase=arguments.lowercase)
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    if translator:
        hypotheses = translated_once(lambda texts: _translated(translator, texts), pairs)
    else:
        hypotheses = [aligned(arguments.hypotheses, references)]
    try:
        if arguments.output:
            write_text(arguments.output, "".join(f"{line}\n" for line in hypotheses[0]))
    finally:
        first = _print_scores(test_sets, hypotheses, language, arguments)
    low = below_minimums(first, arguments.min_bleu, arguments.min_exact, arguments.min_exact_each)
    if low:
        raise RunError("; ".join(low))


def _translated(translator: Translator, texts: Sequence[str]) -> list[str]:
    found = translator.translate_n_best(texts)
    unmet = [translation.unmet for translation in found if translation.unmet]
    if unmet:
        say(f"{UNMET}: {len(unmet):,}; the first: {unmet[0]}")
    return [translation.texts[0] for translation in found]


def _require_sense(arguments: argparse.Namespace) -> None:
    """Raise UserError for an output that cannot be written, and for options that would do nothing."""
    if arguments.output and not arguments.output.parent.is_dir():
        raise UserError(f"--output {arguments.output}: no such folder; type: mkdir -p {arguments.output.parent}")
    if arguments.output and arguments.output.is_dir():
        raise UserError(f"--output {arguments.output}: a folder; give a file: --output {arguments.output}/output.txt")
    for name in ("min_bleu", "min_exact", "min_exact_each"):
        value = getattr(arguments, name)
        if value is not None and not 0 <= value <= 100:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be from 0 to 100")
    for name in ("source", "reference", "hypotheses", "glossary", "forbid"):
        if arguments.output and _are_one_file(arguments.output, getattr(arguments, name)):
            raise UserError(f"--output {arguments.output}: would replace the file given as --{name}; give another")
    if arguments.compare:
        for name in ("hypotheses", "output", "paper_bleu", "min_bleu", "min_exact", "min_exact_each"):
            value = getattr(arguments, name)
            if value is not None and value is not False:
                raise UserError(f"--{name.replace('_', '-')} with --compare, which only compares: leave out either")
    if arguments.source_language and not arguments.test_set:
        raise UserError(f"--source-language {arguments.source_language}: it is for --test-set; leave it out")
    if arguments.hypotheses or arguments.compare:
        _require_no_translating_options(arguments, "--hypotheses" if arguments.hypotheses else "--compare")
    if arguments.output and _is_stdout(arguments.output):
        raise UserError(f"--output {arguments.output}: the scores go there, to standard output; give another file")


def _require_no_translating_options(arguments: argparse.Namespace, instead: str) -> None:
    """Raise UserError for options of translation; --model may name the languages and the test set."""
    translating = argparse.ArgumentParser()
    add_model_options(translating)
    for name, default in vars(translating.parse_args([])).items():
        given = getattr(arguments, name)
        if name != "model" and given != default:
            option = f"--{'no-' if given is False else ''}{name.replace('_', '-')}"
            raise UserError(f"{option} with {instead}: nothing is translated; leave out either")


def _are_one_file(path: Path, other: Path | None) -> bool:
    return other is not None and path.exists() and other.exists() and path.samefile(other)


def _is_stdout(path: Path) -> bool:
    """Whether this is the file that standard output goes to."""
    return path.is_file() and os.path.samestat(path.stat(), os.fstat(1))


def _print_scores(
    test_sets: dict[str, list[Pair]], hypotheses: list[list[str]], language: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Print the scores; returns those of the first test set."""
    lowercase, paper = arguments.lowercase, arguments.paper_bleu
    results = {
        name: scored(lines, test_sets[name], name, language=language, lowercase=lowercase, paper=paper)
        for name, lines in zip(test_sets, hypotheses, strict=True)
    }
    first = next(iter(results.values()))
    print(json.dumps(results if len(results) > 1 else first, indent=2, ensure_ascii=False))
    return first


def _settle_model(arguments: argparse.Namespace) -> Path:
    # Found only once: a training run in progress may put a newer one there.
    arguments.model = str(find_model(arguments.model))
    return Path(arguments.model)


def _config(arguments: argparse.Namespace) -> Any:
    from seq2seq.model.directory import require_model

    directory = _settle_model(arguments)
    require_model(directory)
    return compose.load(directory / "config.yaml")


def _language(arguments: argparse.Namespace, side: str, *, required: bool = True) -> str:
    """The `source` or `target` language: the option's, else the model's; empty where none is needed or named."""
    given = getattr(arguments, f"{side}_language")
    # One that is no longer there is missed only where it is needed.
    named = os.environ.get("SEQ2SEQ_MODEL")
    has_model = arguments.model or (named and Path(named, MANIFEST).is_file())
    if given or has_model or not (arguments.hypotheses or arguments.compare):
        return str(given or getattr(_config(arguments).data, f"{side}_language"))
    if required:
        raise UserError(f"the {side} language is not known; add --{side}-language L, or --model DIR")
    return ""


def _test_sets(arguments: argparse.Namespace) -> dict[str, list[Pair]]:
    """The test sets by name; one without a name of its own has the key ""."""
    if arguments.test_set:
        names = list(dict.fromkeys(arguments.test_set.split(",")))
        for_one = ("hypotheses", "compare", "output") if len(names) > 1 else ()
        for option in ("source", "reference", *for_one):
            if getattr(arguments, option):
                remedy = f"leave out --{option}{', or name one test set' if option in for_one else ''}"
                raise UserError(f"--{option} with --test-set {arguments.test_set}: {remedy}")
        return read_named_test_sets(names, _language(arguments, "source"), _language(arguments, "target"))
    if arguments.source and not arguments.reference:
        raise UserError("--source without --reference: nothing to compare with; add --reference FILE")
    if not arguments.reference:
        config = _config(arguments)
        if not config.data.test.is_given:
            raise UserError("the model's configuration names no test set; add --source FILE --reference FILE")
        return {"": list(read_pairs(config.data, "test", config.seed))}
    if not (arguments.source or arguments.hypotheses or arguments.compare):
        raise UserError("--reference without --source: nothing to translate; add --source FILE or --hypotheses FILE")
    return {"": read_test_set(arguments.source, arguments.reference)}


def main() -> None:
    """The command."""
    run(options, evaluate)


if __name__ == "__main__":
    main()
