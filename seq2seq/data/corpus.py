"""Reading sentence pairs: text files side by side, TSV, JSONL, `datasets`, or the embedded phrasebook.

Files are read as bytes and split on `\\n` only: Unicode's other line separators are part of a sentence.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from seq2seq.config.schema import CorpusConfig, DataConfig
from seq2seq.data import phrasebook
from seq2seq.data.clean import text_hash
from seq2seq.data.text_files import BLANKS, SUFFIXES, read_lines, require
from seq2seq.support.errors import UserError, first_line
from seq2seq.support.files import sha256_of
from seq2seq.support.progress import bar, bars_of_datasets


class Pair(NamedTuple):
    """A sentence and its translation.

    `label` groups pairs in scores (the phrasebook's kinds), else empty; `place` is where it was read: file and line.
    """

    source: str
    target: str
    label: str = ""
    place: str = ""


def paths_of(value: Any) -> list[Path]:
    """The paths in a `source` or `target` key: none, one, or a list."""
    if not value:
        return []
    return [Path(item).expanduser() for item in (value if isinstance(value, list) else [value])]


def name_of(corpus: CorpusConfig) -> str:
    """The corpus in words for messages: its files, or its data set."""
    files = [str(path) for path in (*paths_of(corpus.source), *paths_of(corpus.target))]
    return ", ".join(files) or corpus.dataset or "the phrasebook"


def identity(corpus: CorpusConfig, seed: int) -> dict[str, Any]:
    """What the corpus is made of, to tell whether it changed: the sha256 of each file, or names.

    Only phrases are drawn by the seed: other corpora are the same whatever it is.
    """
    files = {side: paths_of(getattr(corpus, side)) for side in ("source", "target")}
    for path in itertools.chain(*files.values()):
        require(path)
    if files["source"]:
        return {side: [sha256_of(path) for path in paths] for side, paths in files.items()}
    named = {key: getattr(corpus, key) for key in ("dataset", "subset", "split", "phrases")}
    if corpus.phrases and not corpus.dataset:
        # What is drawn depends on the versions of Babel and num2words, and on ours.
        named["drawn"] = text_hash(*map(str, itertools.islice(phrasebook.draw(seed, held_out=False), 600)))
    folder = Path(corpus.dataset or "")
    if corpus.dataset and folder.is_dir():
        named["files"] = [sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()]
    return named


def read_pairs(data: DataConfig, split: str, seed: int, digests: dict[str, str] | None = None) -> Iterator[Pair]:
    """The pairs of `train`, `valid` or `test`, in order, as in the corpus but without leading and trailing blanks.

    At the end `digests[split]` is the hex SHA-256 of all, `source\\ttarget\\n` each. Raises UserError for a missing,
    misaligned, malformed or wrongly encoded corpus, with file and line, and for one whose `sha256` is not that given.
    """
    digest = hashlib.sha256()
    for pair in _pairs(data, split, seed):
        digest.update(f"{pair.source}\t{pair.target}\n".encode())
        yield pair
    if digests is not None:
        digests[split] = digest.hexdigest()
    require_sha256(data, split, digest.hexdigest(), "the pairs read have")


def require_sha256(data: DataConfig, split: str, found: str | None, what: str, remedy: str = "") -> None:
    """Raise UserError when the `sha256` of a corpus is given and is not `found`; `what` says in words whose that is."""
    given = getattr(data, split).sha256
    if given and given != found:
        raise UserError(
            f"data.{split}.sha256={given}, but {what} {found or 'an unknown one'}; "
            f"type data.{split}.sha256=null to take them as they are{remedy}"
        )


def _pairs(data: DataConfig, split: str, seed: int) -> Iterator[Pair]:
    corpus: CorpusConfig = getattr(data, split)
    if corpus.source:
        sources, targets = paths_of(corpus.source), paths_of(corpus.target)
        if targets and len(sources) != len(targets):
            raise UserError(f"data.{split}: {len(sources)} source files but {len(targets)} target files")
        for source, target in itertools.zip_longest(sources, targets):
            if target and _parser_of(source):
                raise UserError(f"{source}: holds both sides; leave data.{split}.target={target} out")
            yield from _side_by_side(source, target) if target else _one_file(source, data)
    elif corpus.dataset:
        yield from _from_datasets(corpus, data, split)
    elif corpus.phrases:
        drawn = phrasebook.draw(seed, held_out=split != "train")
        chosen = itertools.islice(drawn if split == "train" else _share(drawn, split), corpus.phrases)
        for number, phrase in enumerate(chosen, 1):
            yield Pair(phrase.source, phrase.target, phrase.kind, f"phrase {number} of the phrasebook")
    else:
        raise UserError(
            f"no {split} corpus; type data.{split}.source=FILE data.{split}.target=FILE (also .gz .xz .bz2 .zst), "
            f"data.{split}.source=FILE.tsv or .jsonl, or data.{split}.dataset=NAME"
        )


def _share(phrases: Iterator[phrasebook.Phrase], split: str) -> Iterator[phrasebook.Phrase]:
    """The held-out phrases that belong to `valid` (a fifth, by hash) or to `test` (the others), each once."""
    seen: set[str] = set()
    for phrase in phrases:
        if phrase.source not in seen and (text_hash(phrase.source) % 5 == 0) == (split == "valid"):
            seen.add(phrase.source)
            yield phrase


def _side_by_side(source: Path, target: Path) -> Iterator[Pair]:
    missing = object()
    sides = itertools.zip_longest(read_lines(source), read_lines(target), fillvalue=missing)
    for number, (left, right) in enumerate(sides, 1):
        if left is missing or right is missing:
            raise _misaligned(source, target)
        yield Pair(cast(str, left), cast(str, right), place=f"{source}:{number}")


def _misaligned(source: Path, target: Path) -> UserError:
    """The error, with both line counts and the line from which a shifted alignment fits the sentence lengths better."""
    left, right = (np.array([len(line) + 1 for line in read_lines(path)], float) for path in (source, target))
    shift, common = abs(len(left) - len(right)), min(len(left), len(right))
    longer, shorter = (left, right) if len(left) > len(right) else (right, left)
    straight = np.abs(np.log(longer[:common] / shorter))
    shifted = np.abs(np.log(longer[shift:] / shorter))
    cost = np.concatenate(([0.0], np.cumsum(straight))) + shifted.sum() - np.concatenate(([0.0], np.cumsum(shifted)))
    return UserError(
        f"{source} has {len(left)} lines but {target} has {len(right)}; "
        f"by their lengths the lines stop matching at line {int(cost.argmin()) + 1}"
    )


def _parser_of(path: Path) -> Callable[[str, DataConfig], Pair] | None:
    """What reads a line of a file that holds both sides; None for plain text."""
    name = path.name.removesuffix(path.suffix) if path.suffix in SUFFIXES else path.name
    if name.endswith((".jsonl", ".json")):
        return _parse_json
    return _parse_tsv if name.endswith(".tsv") else None


def _one_file(path: Path, data: DataConfig) -> Iterator[Pair]:
    parse = _parser_of(path)
    if not parse:
        raise UserError(f"{path}: a single file must be .tsv or .jsonl; for plain text give data.*.target too")
    for number, line in enumerate(read_lines(path, is_table=True), 1):
        try:
            yield parse(line, data)._replace(place=f"{path}:{number}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: {error}") from None


def _parse_tsv(line: str, _: DataConfig) -> Pair:
    columns = line.split("\t")
    if len(columns) != 2:
        raise ValueError(f"{len(columns)} columns; exactly 2 are needed: source, tab, target")
    return Pair(columns[0].strip(BLANKS), columns[1].strip(BLANKS))


def _parse_json(line: str, data: DataConfig) -> Pair:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at character {error.pos + 1}") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object, of which each line must hold one")
    return _from_row(row, data)


def _from_row(row: dict[str, Any], data: DataConfig) -> Pair:
    """A pair out of `{"translation": {"en": …, "de": …}}`, `{"en": …, "de": …}` or `{"source": …, "target": …}`."""
    nested = row.get("translation")
    fields = nested if isinstance(nested, dict) else row
    for source, target in ((data.source_language, data.target_language), ("source", "target")):
        if isinstance(fields.get(source), str) and isinstance(fields.get(target), str):
            pair = Pair(fields[source].strip(BLANKS), fields[target].strip(BLANKS))
            "".join(pair).encode()  # JSON can spell half a character (a lone surrogate), which no text may hold.
            return pair
    raise ValueError(
        f"no text under {data.source_language} and {data.target_language}, nor under source and target "
        f"(found: {', '.join(map(str, fields))}); set data.source_language and data.target_language"
    )


def _from_datasets(corpus: CorpusConfig, data: DataConfig, split: str) -> Iterator[Pair]:
    name = str(corpus.dataset)
    rows = _loaded(corpus, split)
    with bar(f"reading {name}", len(rows)) as progress:
        for number, row in enumerate(rows):
            progress.update(1)
            try:
                yield _from_row(row, data)._replace(place=f"{name}, row {number}")
            except ValueError as error:
                raise UserError(f"data set {name}, row {number}: {error}") from None


def _loaded(corpus: CorpusConfig, split: str) -> Any:
    """The rows of a data set, its splits checked against the sizes that it records. Raises UserError."""
    import datasets

    name = str(corpus.dataset)
    try:
        if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(name)
        else:
            with bars_of_datasets(shown=True):
                loaded = datasets.load_dataset(name, corpus.subset, split=corpus.split, verification_mode="all_checks")
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unloadable(error, corpus, split) from None
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if corpus.split not in loaded:
        raise _no_split(corpus, split, ", ".join(sorted(loaded)))
    return loaded[corpus.split]


def _no_split(corpus: CorpusConfig, split: str, known: str) -> UserError:
    return UserError(
        f"data.{split}.split={corpus.split or 'null'}: no such split in data set {corpus.dataset}; "
        f"type data.{split}.split=NAME, one of {known}"
    )


def _unloadable(error: Exception, corpus: CorpusConfig, split: str) -> UserError:
    """The error that `datasets` raised, in one line that says what to do."""
    from datasets import exceptions

    # For a split in many files it lists the length of each; what to do would be cut off after that.
    name, said = str(corpus.dataset), first_line(error)[:1000].rstrip(":")
    _, _, known = said.partition("Should be one of ")
    if said.startswith("Unknown split") and known:
        return _no_split(corpus, split, known.removesuffix("."))
    said = f"{type(error).__name__}: {said}"
    files = (
        f"for files of your own type data.{split}.source=FILE data.{split}.target=FILE, and the other splits likewise"
    )
    if not isinstance(error, (exceptions.SplitsVerificationError, exceptions.ChecksumVerificationError)):
        return UserError(
            f"data set {name} (subset {corpus.subset}, split {corpus.split}) cannot be loaded: {said}; {files}"
        )
    local = Path(name).is_dir()
    again = "correct its README.md" if local else "put HF_HOME=NEW_FOLDER before the command to download it anew"
    return UserError(f"data set {name} is not as described: {said}; {again}, or {files}")
