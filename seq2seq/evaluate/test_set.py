"""The pairs that are scored: two files, or a test set that sacreBLEU knows by name."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from http.client import HTTPException
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any
from urllib.error import URLError

from sacrebleu import utils

from seq2seq.data.corpus import Pair
from seq2seq.data.text_files import read_lines
from seq2seq.evaluate.scores import paper_bleu, scores
from seq2seq.support.errors import UserError, nearest
from seq2seq.support.progress import say


def read_test_set(source: Path | None, reference: Path) -> list[Pair]:
    """The pairs of two line-aligned files; without `source`, references alone. Raises UserError."""
    references = list(read_lines(reference))
    sources = aligned(source, references) if source else [""] * len(references)
    return [Pair(*pair) for pair in zip(sources, references, strict=True)]


def read_named_test_sets(names: Sequence[str], source_language: str, target_language: str) -> dict[str, list[Pair]]:
    """The pairs of sacreBLEU's test sets with these names, such as `wmt14`.

    sacreBLEU downloads them once, to $SACREBLEU or ~/.sacrebleu. Raises UserError for an unknown name or language
    pair, more than one reference, and a failed download.
    """
    pair = f"{source_language}-{target_language}"
    for name in names:
        _require_known(name, pair)
    return {name: _read_named(name, pair) for name in names}


def _require_known(name: str, pair: str) -> None:
    known = utils.get_available_testsets()
    if name not in known:
        hint = nearest(name, known) or "; sacrebleu --list names them"
        raise UserError(f"--test-set {name}: sacreBLEU has no such test set{hint}")
    pairs = utils.get_langpairs_for_testset(name)
    if pair not in pairs:
        raise UserError(
            f"--test-set {name} has no {pair}; it has {', '.join(sorted(pairs))}: "
            "choose by --source-language L --target-language L"
        )


def _read_named(name: str, pair: str) -> list[Pair]:
    source, references = _files(name, pair)
    if len(references) != 1:
        raise UserError(
            f"--test-set {name} has {len(references)} references for {pair}, and one is scored here; "
            f"for all of them type: sacrebleu -t {name} -l {pair} -i HYPOTHESES"
        )
    found = read_test_set(source, references[0])
    if not found:
        raise UserError(f"--test-set {name}: {source} is empty; type rm -r {_folder(name)} and try again")
    return found


def _folder(name: str) -> Path:
    return Path(utils.SACREBLEU_DIR) / name


def _files(name: str, pair: str) -> tuple[Path, list[Path]]:
    """The files of source and references, downloaded if missing. Raises UserError."""
    folder = _folder(name)
    if not list(folder.glob(f"*.{pair}.src")):
        say(f"downloading the test set {name} to {folder}")
    # Before it gives up with SystemExit, sacreBLEU logs why.
    log, logger = BufferingHandler(100), logging.getLogger("sacrebleu")
    log.setLevel(logging.ERROR)
    logger.addHandler(log)
    try:
        return Path(utils.get_source_file(name, pair)), [Path(path) for path in utils.get_reference_files(name, pair)]
    except (Exception, SystemExit) as error:  # Downloading, unpacking and parsing raise errors of many kinds.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        said = log.buffer[0].getMessage() if log.buffer else f"{type(error).__name__}: {error}"
        if isinstance(error, (URLError, HTTPException, ConnectionError, TimeoutError)):
            remedy = (
                f"where there is a network type sacrebleu -t {name} -l {pair} --echo src, "
                f"and copy its ~/.sacrebleu/{name} to {folder}"
            )
        else:
            remedy = f"type rm -r {folder} and try again"
        raise UserError(
            f"--test-set {name} ({pair}) is not available: {' '.join(said.split())}; {remedy}, "
            "or give --source FILE --reference FILE"
        ) from None
    finally:
        logger.removeHandler(log)


def translated_once(
    translate: Callable[[Sequence[str]], Sequence[str]], test_sets: Sequence[Sequence[Pair]]
) -> list[list[str]]:
    """The translations of each test set; a source that occurs in several, or several times, is translated once."""
    sources = list(dict.fromkeys(pair.source for pairs in test_sets for pair in pairs))
    translations = dict(zip(sources, translate(sources), strict=True))
    return [[translations[pair.source] for pair in pairs] for pairs in test_sets]


def scored(
    hypotheses: Sequence[str],
    pairs: Sequence[Pair],
    name: str = "",
    *,
    language: str = "",
    lowercase: bool = False,
    paper: bool = False,
) -> dict[str, Any]:
    """`scores` of a test set, under its name; with `paper` also `paper_bleu`. `language` is the target language."""
    references, labels = [pair.target for pair in pairs], [pair.label for pair in pairs]
    result = {"test_set": name} if name else {}
    result |= scores(hypotheses, references, labels, language=language, lowercase=lowercase)
    if paper:
        result |= paper_bleu(hypotheses, references, language, lowercase=lowercase)
    return result


def aligned(path: Path, references: list[str]) -> list[str]:
    """The lines of a file. Raises UserError unless they are as many as the references."""
    lines = list(read_lines(path))
    if len(lines) != len(references):
        raise UserError(f"{path} has {len(lines)} lines; the reference has {len(references)}")
    return lines
