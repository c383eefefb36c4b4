"""From raw corpora to what training reads, in stages; a stage whose inputs and settings have not changed is skipped.

clean/       train and valid as Arrow tables, the report on what was dropped
tokenizer/   tokenizer.model
train/       the encoded store
valid/       the encoded store, and the raw text for BLEU
"""

from __future__ import annotations

import functools
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seq2seq.config.schema import Config, DataConfig
from seq2seq.data import corpus
from seq2seq.data.clean import LENGTH_RULES, CleaningReport, length_reason, text_hash, text_reason
from seq2seq.data.corpus import Pair
from seq2seq.data.prefetch import prefetched
from seq2seq.data.stages import fingerprint_of, require_place, require_sound, stage
from seq2seq.data.store import FORMAT, Store, write_store
from seq2seq.data.tokenizer import Tokenizer, train_tokenizer
from seq2seq.support.errors import UserError
from seq2seq.support.files import in_turn, read_json, remove_leftovers, sha256_of, sha256_of_json, write_json
from seq2seq.support.processors import available_processors
from seq2seq.support.progress import bar, bars_of_datasets, say

BLOCK = 2_000
ROWS_FILE = "rows.npy"
"""Which rows of the cleaned table the pairs of a store come from."""
COLUMNS = {"source": "large_string", "target": "large_string", "label": "string", "place": "string", "hash": "int64"}
"""The columns of a corpus as it is read; the training table that is kept has neither label nor hash."""
HELD_OUT_SHARE, HELD_OUT_MOST = 0.01, 1000
HELD_OUT_LEAST, HELD_OUT_LEAST_SHARE = 200, 0.1
"""Fewer pairs than this least number tell little of a model; but no more than this share of the sources is taken."""


class Prepared:
    """What the stages made: tokenizer, stores, raw validation text, and a hash of the encoded training data.

    `longest_source` is the longest training source in pieces, without eos. Raises UserError for damaged files; damaged
    tokens are found when they are first read.
    """

    def __init__(self, directory: Path) -> None:
        require_sound(directory / "tokenizer", "tokenizer.model")
        self.tokenizer = Tokenizer.load(directory / "tokenizer" / "tokenizer.model")
        self.train = Store(directory / "train")
        self.valid = Store(directory / "valid")
        require_sound(directory / "valid", "text.json")
        self.valid_text: list[Pair] = [Pair(*row) for row in read_json(directory / "valid" / "text.json")]
        self.longest_source = int(self.train.lengths[0].max(initial=2)) - 1
        self.data_sha256 = self.train.sha256
        self._directory = directory
        self._made_of = fingerprint_of(directory / "train")

    def places(self, pairs: list[int]) -> list[str]:
        """Where these pairs of the training store were read from: file and line, or row of a data set, in order.

        Raises UserError when the table of cleaned pairs is damaged or gone, or was made anew since.
        """
        if fingerprint_of(self._directory / "train") != self._made_of:
            raise UserError(f"{self._directory}: prepared anew since, from other data or with other settings")
        require_sound(self._directory / "train", ROWS_FILE)
        rows = np.load(self._directory / "train" / ROWS_FILE, allow_pickle=False)[pairs]
        return list(_cleaned(self._directory, "train").select(rows)["place"])


def prepare(config: Config) -> Prepared:
    """Run the stages that are not up to date. Raises UserError for a missing or malformed corpus.

    Waits for any other process that prepares data in the same directory: it may be making what is needed here.
    """
    root = Path(config.data.prepared_dir)
    with in_turn(root):
        remove_leftovers(root)
        _run_stages(config, root)
        prepared = Prepared(root)
    if not len(prepared.train):
        raise UserError(f"no training pairs are left: {root}/train/report.json says why; see data.cleaning.*")
    # Cleaning cuts training down to what the model can take; validation pairs are never left out.
    for side, lengths in zip(("encoder", "decoder"), prepared.valid.lengths, strict=True):
        limit, longest = getattr(config.model, side).max_length, int(lengths.max(initial=0))
        if limit is not None and longest > limit:
            raise UserError(
                f"the valid corpus has a sentence of {longest} pieces, eos counted, too long for "
                f"model.{side}.max_positions={limit}; set model.{side}.max_positions={longest}"
            )
    return prepared


def _run_stages(config: Config, root: Path) -> None:
    # Check all of them before the first stage, which may take hours.
    for name in ("clean", "tokenizer", "train", "valid"):
        require_place(root / name)
    rules = asdict(config.data.cleaning)
    inputs = {
        "languages": [config.data.source_language, config.data.target_language],
        "corpora": {split: corpus.identity(getattr(config.data, split), config.seed) for split in ("train", "valid")},
        "rules": {key: value for key, value in rules.items() if key not in LENGTH_RULES},
        "columns": list(COLUMNS),
    }
    cleaned = stage(root / "clean", inputs, lambda folder: _clean(folder, config))
    # Of a data set only the name is among the inputs: made again, the stage may hold other pairs.
    pairs = {"cleaned": cleaned, "sha256": _recorded_sha256(root / "clean", config.data)}
    trained = stage(
        root / "tokenizer",
        {"taken": sha256_of(_tokenizer_of(config.init_from, root / "tokenizer"))}
        if config.init_from
        else {**pairs, **asdict(config.tokenizer)},
        lambda folder: _train_tokenizer(folder, root, config),
    )
    # If the rules set no length limit, that of a batch drops pairs too.
    limit = config.data.batch_tokens if config.data.cleaning.max_pieces is None else None
    encoding = {"format": FORMAT, **pairs, "tokenizer": trained, "rules": rules, "limit": limit}
    stage(root / "train", encoding, lambda folder: _encode(folder, root, "train", config.data))
    stage(root / "valid", encoding, lambda folder: _encode(folder, root, "valid", config.data))


def _clean(folder: Path, config: Config) -> None:
    data = config.data
    report = CleaningReport()
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        train = _table(data, "train", config.seed, cache, digests, report)
        if data.valid.is_given:
            if data.train.source and not data.valid.source:
                say(
                    f"the recipe's own validation corpus is taken ({corpus.name_of(data.valid)}); for yours type "
                    "data.valid.source=FILE data.valid.target=FILE, or, to hold some out, "
                    "data.valid.dataset=null data.valid.phrases=0"
                )
            valid = _table(data, "valid", config.seed, cache, digests)
        else:
            held, rest = _hold_out(train)
            say(f"no validation corpus given: {len(held):,} pairs of the training corpus are held out")
            valid, train = train.select(held), train.select(rest)
        report.kept = len(train)
        with bars_of_datasets(shown=True):
            train.remove_columns(["label", "hash"]).save_to_disk(folder / "train")
            valid.save_to_disk(folder / "valid")
        # They map files of the folder, which NFS could not remove then.
        del train, valid
    write_json(folder / "report.json", {"sha256": digests, **report.as_dict()})
    say(str(report))


def _cleaned(root: Path, split: str) -> Any:
    """A table of cleaned pairs. Raises UserError if it is not as it was written."""
    import datasets

    require_sound(root / "clean", split)
    return datasets.load_from_disk(str(root / "clean" / split))


def _recorded_sha256(clean: Path, data: DataConfig) -> dict[str, str]:
    """The sha256 of each corpus as it was read. Raises UserError for one that is not what `data` asks for."""
    require_sound(clean, "report.json")
    recorded: dict[str, str] = read_json(clean / "report.json").get("sha256", {})
    for split in ("train", "valid"):
        again = f", or rm -r {clean} to read the corpus again"
        corpus.require_sha256(data, split, recorded.get(split), f"the pairs in {clean} were read with", again)
    return recorded


def _table(
    data: DataConfig, split: str, seed: int, cache: str, digests: dict[str, str], report: CleaningReport | None = None
) -> Any:
    """A corpus as an Arrow table of `COLUMNS`, where the hash is that of the source; cleaned if a report is given."""
    import datasets

    seen: set[int] = set()
    count = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count
        for pair in corpus.read_pairs(data, split, seed, digests):
            reason = text_reason(pair.source, pair.target, data.cleaning) if report else None
            if report and not reason and data.cleaning.duplicate:
                key = text_hash(pair.source, pair.target)
                reason = "duplicate" if key in seen else None
                seen.add(key)
            if report and reason:
                report.drop(reason, pair.source, pair.target, pair.place)
            else:
                count += 1
                yield {**pair._asdict(), "hash": text_hash(pair.source)}

    features = datasets.Features({name: datasets.Value(kind) for name, kind in COLUMNS.items()})
    try:
        with bars_of_datasets(shown=False):
            return datasets.Dataset.from_generator(rows, features=features, cache_dir=cache, fingerprint=split)
    except datasets.exceptions.DatasetGenerationError as error:
        # `datasets` wraps whatever the generator raised.
        raise error.__cause__ or error from None
    except ValueError:
        # `datasets` refuses to make a table without rows.
        if count:
            raise
        name = f"the {split} corpus ({corpus.name_of(getattr(data, split))}) is empty"
        if not report or not report.dropped:
            raise UserError(name) from None
        reasons = "; ".join(
            f"{count:,} pairs are {reason}, the first at {report.examples[reason][0][2]}"
            for reason, count in report.dropped.most_common()
        )
        raise UserError(f"{name} after cleaning: {reasons}; see data.cleaning.*") from None


def _hold_out(train: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows for validation, each source once, with the smallest hashes; and the rows that share no source with them."""
    hashes = np.asarray(train.with_format("numpy")["hash"][:], np.int64)
    sources, first = np.unique(hashes, return_index=True)
    # Of sources: with each, all its pairs leave training.
    least = max(1, min(HELD_OUT_LEAST, int(len(sources) * HELD_OUT_LEAST_SHARE)))
    count = min(max(least, int(len(sources) * HELD_OUT_SHARE)), HELD_OUT_MOST)
    if len(sources) <= count:
        raise UserError(
            f"the training corpus has {len(sources)} different sources: too few to hold some out; "
            "set data.valid.source and data.valid.target"
        )
    return first[:count], np.flatnonzero(~np.isin(hashes, sources[:count]))


def _tokenizer_of(model: str, taken: Path) -> Path:
    """A model's vocabulary file, or the copy taken of it earlier if that model is gone."""
    path = Path(model) / "tokenizer.model"
    if not path.is_file():
        kept = taken / path.name
        if kept.is_file() and fingerprint_of(taken) == sha256_of_json({"taken": sha256_of(kept)}):
            return kept
        raise UserError(f"init_from={model}: no model directory (no {path})")
    return path


def _train_tokenizer(folder: Path, root: Path, config: Config) -> None:
    if config.init_from:
        shutil.copy(_tokenizer_of(config.init_from, root / "tokenizer"), folder / "tokenizer.model")
        say(f"the vocabulary is that of init_from={config.init_from}, whatever tokenizer.* says")
        return
    table = _cleaned(root, "train")
    count = min(len(table), max(1, config.tokenizer.max_lines // 2))
    # The same whatever the run's seed: runs that differ in it share their vocabulary.
    chosen = np.sort(np.random.default_rng(1).choice(len(table), count, replace=False))
    settings = config.tokenizer
    say(f"training a {settings.kind} vocabulary of {settings.vocab_size:,} pieces on {2 * count:,} lines")

    def lines() -> Iterator[str]:
        for block in table.select(chosen).iter(BLOCK):
            yield from block["source"]
            yield from block["target"]

    (folder / "tokenizer.model").write_bytes(train_tokenizer(lines(), config.tokenizer, folder).model)


def _encode(folder: Path, root: Path, split: str, data: DataConfig) -> None:
    tokenizer = Tokenizer.load(root / "tokenizer" / "tokenizer.model")
    table = _cleaned(root, split)
    report = CleaningReport()
    kept = [np.zeros(0, bool)]

    def blocks() -> Iterator[tuple[list[list[int]], list[list[int]]]]:
        for texts, sources, targets in _encoded(table, tokenizer, data.workers or available_processors()):
            if split == "valid":
                yield sources, targets
                continue
            short = _short_enough(texts, sources, targets, data, report)
            kept.append(np.array(short, bool))
            yield list(itertools.compress(sources, short)), list(itertools.compress(targets, short))

    write_store(folder, blocks(), tokenizer.vocab_size)
    if split == "valid":
        write_json(folder / "text.json", [[row["source"], row["target"], row["label"]] for row in table])
    else:
        np.save(folder / ROWS_FILE, np.flatnonzero(np.concatenate(kept)), allow_pickle=False)
        write_json(folder / "report.json", report.as_dict())
        if report.dropped:
            say(str(report))


_Block = tuple[dict[str, list[str]], list[list[int]], list[list[int]]]


def _encoded(table: Any, tokenizer: Tokenizer, workers: int) -> Iterator[_Block]:
    """Blocks of texts with the piece ids of sources and targets, in order.

    Threads suffice, as SentencePiece releases the GIL; processes would send every id through Arrow.
    """

    def encode(texts: dict[str, list[str]]) -> _Block:
        return texts, tokenizer.encode(texts["source"]), tokenizer.encode(texts["target"])

    columns = table.select_columns(["source", "target", "place"])
    with bar("encoding", len(table), unit="pairs") as progress:
        for block in prefetched(encode, columns.iter(BLOCK), workers):
            yield block
            progress.update(len(block[1]))


def _short_enough(
    texts: dict[str, list[str]],
    sources: list[list[int]],
    targets: list[list[int]],
    data: DataConfig,
    report: CleaningReport,
) -> list[bool]:
    @functools.cache
    def reason_of(source: int, target: int) -> str | None:
        reason = length_reason(source, target, data.cleaning)
        return reason or ("batch_tokens" if max(source, target) >= data.batch_tokens else None)

    reasons = list(map(reason_of, map(len, sources), map(len, targets)))
    report.kept += reasons.count(None)
    for row, reason in enumerate(reasons):
        if reason:
            report.drop(reason, texts["source"][row], texts["target"][row], texts["place"][row])
    return [reason is None for reason in reasons]
