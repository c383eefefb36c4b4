"""Corpora in every form give the same pairs; a broken one is named with file and line."""

from __future__ import annotations

import errno
import io
import json
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest

from seq2seq.config.schema import CorpusConfig, DataConfig
from seq2seq.data import text_files
from seq2seq.data.corpus import identity, paths_of, read_pairs
from seq2seq.support.errors import MAX_CHARACTERS, UserError
from tests.data.files import COMPRESS, write

PAIRS = [
    ("a dog", "ein Hund"),
    ("", "leer"),
    ("“three” – ü", "„drei“ – ü"),
    ("x\u2028y\x85z\x0bw", "q\rr\0s"),
    ("e", "f"),
]


def lines_of(side: int) -> bytes:
    return "".join(f"{pair[side]}\n" for pair in PAIRS).encode()


def read(corpus: CorpusConfig, split: str = "train", **data: Any) -> list[tuple[str, str]]:
    config = DataConfig(**data)
    setattr(config, split, corpus)
    return [pair[:2] for pair in read_pairs(config, split, 1)]


def refused(corpus: CorpusConfig, split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        read(corpus, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_side_by_side(suffix: str, tmp_path: Path) -> None:
    files = [write(tmp_path / f"a.{name}{suffix}", lines_of(side)) for side, name in enumerate(("en", "de"))]
    assert read(CorpusConfig(source=files[0], target=files[1])) == PAIRS
    twice = CorpusConfig(source=[files[0]] * 2, target=[files[1]] * 2)
    assert read(twice, "valid") == PAIRS * 2


@pytest.mark.parametrize("suffix", COMPRESS)
def test_tsv(suffix: str, tmp_path: Path) -> None:
    content = "".join(f"{source}\t{target}\n" for source, target in PAIRS).encode()
    assert read(CorpusConfig(source=write(tmp_path / f"a.tsv{suffix}", content))) == PAIRS


@pytest.mark.parametrize("suffix", ["", ".xz"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_jsonl_in_three_shapes(suffix: str, ascii_only: bool, tmp_path: Path) -> None:
    shapes: list[Callable[[str, str], dict[str, Any]]] = [
        lambda source, target: {"translation": {"no": source, "de": target}, "id": 3},
        lambda source, target: {"no": source, "de": target},
        lambda source, target: {"source": source, "target": target},
    ]
    rows = [json.dumps(shape(*pair), ensure_ascii=ascii_only) for shape in shapes for pair in PAIRS]
    file = write(tmp_path / f"a.jsonl{suffix}", "".join(f"{row}\n" for row in rows).encode())
    assert read(CorpusConfig(source=file), source_language="no") == PAIRS * 3


def test_several_files_of_several_kinds(tmp_path: Path) -> None:
    tsv = write(tmp_path / "a.tsv", b"a\tb\n")
    jsonl = write(tmp_path / "a.jsonl.gz", b'{"en": "c", "de": "d"}\n')
    assert read(CorpusConfig(source=[tsv, jsonl])) == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("in_splits", [True, False])
def test_a_saved_data_set(in_splits: bool, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"translation": {"en": source, "de": target}} for source, target in PAIRS])
    (datasets.DatasetDict(tune=rows) if in_splits else rows).save_to_disk(tmp_path / "set")
    corpus = CorpusConfig(dataset=str(tmp_path / "set"), split="tune" if in_splits else None)
    assert read(corpus) == PAIRS
    if in_splits:
        for split in (None, "test"):
            message = refused(CorpusConfig(dataset=str(tmp_path / "set"), split=split), "valid")
            assert message.startswith(f"data.valid.split={split or 'null'}: no such split in data set ")
            assert message.endswith("; type data.valid.split=NAME, one of tune")


@pytest.fixture
def local_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as on the Hub, but in a folder: two splits, of two rows and one, without a README."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    for split, pairs in {"train": PAIRS[:1] + PAIRS[4:], "test": PAIRS[2:3]}.items():
        rows = [json.dumps({"en": source, "de": target}) for source, target in pairs]
        (folder / f"{split}.jsonl").write_bytes("".join(f"{row}\n" for row in rows).encode())
    return folder


def record(folder: Path, **rows: int) -> None:
    """Write into the README how many rows each split has."""
    splits = "".join(f"  - name: {name}\n    num_bytes: 9\n    num_examples: {count}\n" for name, count in rows.items())
    (folder / "README.md").write_bytes(f"---\ndataset_info:\n  splits:\n{splits}---\n".encode())


def test_a_data_set_as_it_is_described(local_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    whole = datasets.load_dataset

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        modes.append(options["verification_mode"])
        return whole(*arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for recorded in ({}, {"train": 2, "test": 1}):
        if recorded:
            record(local_set, **recorded)
        corpus = CorpusConfig(dataset=str(local_set), split="train")
        assert read(corpus) == [PAIRS[0], PAIRS[4]]
    assert modes == ["all_checks"] * 2


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        ({"train": 3, "test": 1}, ["NonMatchingSplitsSizesError", "'train'", "num_examples=3", "num_examples=2"]),
        ({"train": 3, "test": 7}, [f"num_examples={count}" for count in (3, 2, 7, 1)]),
        ({"train": 2, "test": 1, "dev": 4}, ["ExpectedMoreSplitsError: {'dev'}"]),
        ({"train": 2}, ["UnexpectedSplitsError: {'test'}"]),
    ],
)
def test_a_data_set_that_is_not_as_described(recorded: dict[str, int], said: list[str], local_set: Path) -> None:
    record(local_set, **recorded)
    message = refused(CorpusConfig(dataset=str(local_set), split="test"), "test")
    assert message.startswith(f"data set {local_set} is not as described: ")
    assert all(words in message for words in said)
    assert message.endswith(
        "; correct its README.md, or for files of your own type data.test.source=FILE data.test.target=FILE, and the "
        "other splits likewise"
    )


@pytest.mark.parametrize(
    ("recorded", "found", "said"),
    [
        (
            {"a/b.zip": {"checksum": "1"}},
            {"a/b.zip": {"checksum": "2"}},
            "NonMatchingChecksumError: Checksums didn't match for dataset source files",
        ),
        ({"a": {}}, {}, "ExpectedMoreDownloadedFilesError: {'a'}"),
        ({}, {"a": {}}, "UnexpectedDownloadedFileError: {'a'}"),
    ],
)
def test_checksums_that_are_not_as_described(
    recorded: dict[str, Any], found: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets.utils.info_utils import verify_checksums

    def load_dataset(*_: Any, **__: Any) -> None:
        verify_checksums(recorded, found, "dataset source files")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refused(CorpusConfig(dataset="owner/set", split="train"))
    assert message.startswith(
        f"data set owner/set is not as described: {said}; "
        "put HF_HOME=NEW_FOLDER before the command to download it anew, or for files of your own type data.train."
    )


@pytest.mark.parametrize("said", ["", "name='a' num_examples=1", "x" * 5000])
def test_whatever_the_library_says_the_way_out_is_told(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise datasets.exceptions.NonMatchingSplitsSizesError(said)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refused(CorpusConfig(dataset="owner/set", split="train"))
    assert "; put HF_HOME=NEW_FOLDER before the command" in message and len(message) < MAX_CHARACTERS


@pytest.mark.parametrize("split", ["tset", "dev[:10%]", None])
def test_a_split_that_the_data_set_does_not_have(split: str | None, local_set: Path) -> None:
    message = refused(CorpusConfig(dataset=str(local_set), split=split), "valid")
    before, _, known = message.partition("; type data.valid.split=NAME, one of ")
    assert before == f"data.valid.split={split or 'null'}: no such split in data set {local_set}"
    # Where the library looks for the split, the list is its own.
    assert known in ("test, train", "['test', 'train']", "['train', 'test']")
    assert read(CorpusConfig(dataset=str(local_set), split="train[1:]")) == [PAIRS[4]]


def test_a_data_set_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("it asked the network"))
    message = refused(CorpusConfig(dataset="no-such-owner/no-such-set", subset="s", split="train"))
    assert "no-such-owner/no-such-set (subset s, split train) cannot be loaded" in message
    assert "data.train.source=FILE" in message


def test_a_data_set_without_the_languages_names_the_row(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"fr": "a", "it": "b"}]).save_to_disk(tmp_path / "set")
    message = refused(CorpusConfig(dataset=str(tmp_path / "set")))
    assert "row 0: no text under en and de" in message and "(found: fr, it)" in message


def test_phrases_of_a_split_are_its_own() -> None:
    pytest.importorskip("babel")
    pytest.importorskip("num2words")
    drawn = {split: read(CorpusConfig(phrases=200), split) for split in ("train", "valid", "test")}
    assert [len(pairs) for pairs in drawn.values()] == [200] * 3
    sources = {split: {source for source, _ in pairs} for split, pairs in drawn.items()}
    assert len(sources["valid"]) == len(sources["test"]) == 200, "none twice"
    assert not any(sources[a] & sources[b] for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")))
    assert read(CorpusConfig(phrases=200)) == drawn["train"]
    labels = {pair.label for pair in read_pairs(DataConfig(test=CorpusConfig(phrases=30)), "test", 1)}
    assert labels == {"date", "duration", "number", "price", "quantity", "time"}


# Checksums.

# printf 'a dog\tein Hund\n\tleer\n' | sha256sum
SHA256 = "83b612af188b9f85e6305245baac7cbc36cccbcede004b8a124bae2200d63c86"


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_sha256_of_the_pairs(split: str, tmp_path: Path) -> None:
    pairs = PAIRS[:2]
    (tmp_path / "a.en").write_bytes(b" a dog\r\n\n")
    (tmp_path / "a.de").write_bytes(b"ein Hund\nleer\n")
    rows = [{"en": source, "de": target} for source, target in pairs]
    (tmp_path / "a.jsonl").write_bytes("".join(f"{json.dumps(row)}\n" for row in rows).encode())
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    forms: list[dict[str, Any]] = [
        {"source": str(tmp_path / "a.en"), "target": str(tmp_path / "a.de")},
        {"source": str(tmp_path / "a.jsonl")},
        {"dataset": str(tmp_path / "set")},
    ]
    for form in forms:
        for sha256 in (None, SHA256):
            config, digests = DataConfig(), dict[str, str]()
            setattr(config, split, CorpusConfig(**form, sha256=sha256))
            assert [pair[:2] for pair in read_pairs(config, split, 1, digests)] == pairs
            assert digests == {split: SHA256}
        other = SHA256[::-1]
        assert refused(CorpusConfig(**form, sha256=other), split) == (
            f"data.{split}.sha256={other}, but the pairs read have {SHA256}; "
            f"type data.{split}.sha256=null to take them as they are"
        )


def test_the_sha256_sees_order_and_sides(tmp_path: Path) -> None:
    digests = []
    for pairs in (["a\tb", "c\td"], ["c\td", "a\tb"], ["b\ta", "d\tc"], ["a\tb"]):
        found: dict[str, str] = {}
        path = write(tmp_path / "a.tsv", "".join(f"{pair}\n" for pair in pairs).encode())
        list(read_pairs(DataConfig(train=CorpusConfig(source=path)), "train", 1, found))
        digests.append(found["train"])
    assert len(set(digests)) == 4


# Alignment.


def differ_by(message: str, counts: tuple[int, int], truth: int, within: int) -> None:
    assert f"has {counts[0]} lines but" in message and f"has {counts[1]};" in message
    reported = int(message.rpartition(" ")[2])
    assert abs(reported - truth) <= within, f"reported {reported}, dropped {truth}"


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("place", [1, 137, 200, 390])
def test_a_lost_line_is_found(side: int, place: int, toy_corpus: tuple[Path, Path], tmp_path: Path) -> None:
    files = list(toy_corpus)
    lines = files[side].read_bytes().split(b"\n")[:-1]
    del lines[place - 1]
    files[side] = tmp_path / "short"
    files[side].write_bytes(b"\n".join(lines))
    counts = (399, 400) if side == 0 else (400, 399)
    differ_by(refused(CorpusConfig(source=str(files[0]), target=str(files[1]))), counts, place, 3)


def test_lost_lines_of_real_text_are_found(shared_data: Path, tmp_path: Path) -> None:
    sources, targets = (
        list(islice((shared_data / "newstest" / f"newstest2013.{name}").read_bytes().split(b"\n"), 3000))
        for name in ("en", "de")
    )
    rng = random.Random(2)
    for lost in (1, 1, 3):
        place = rng.randrange(100, 2900)
        source = write(tmp_path / "a.en", b"\n".join(sources) + b"\n")
        target = write(tmp_path / "a.de", b"\n".join(targets[: place - 1] + targets[place - 1 + lost :]) + b"\n")
        differ_by(refused(CorpusConfig(source=source, target=target)), (3000, 3000 - lost), place, 10)


def test_real_text_with_other_line_separators_keeps_its_alignment(shared_data: Path) -> None:
    files = [str(shared_data / "ende" / f"newstest2008-2012.{name}.xz") for name in ("en", "de")]
    pairs = read(CorpusConfig(source=files[0], target=files[1]))
    assert len(pairs) == 13_071
    assert any("\u2028" in target or "\x85" in target for _, target in pairs), "the test needs such a line"


def test_a_file_of_both_sides_has_no_other_beside_it(tmp_path: Path) -> None:
    both, other = write(tmp_path / "both.tsv", b"a\tb\n"), write(tmp_path / "other.de", b"b\n")
    expected = f"{both}: holds both sides; leave data.train.target={other} out"
    assert refused(CorpusConfig(source=both, target=other)) == expected


def test_an_empty_side_and_an_uneven_list(tmp_path: Path) -> None:
    empty, full = write(tmp_path / "empty", b""), write(tmp_path / "full", b"a\nb\n")
    assert "has 0 lines but" in refused(CorpusConfig(source=empty, target=full))
    assert read(CorpusConfig(source=empty, target=empty)) == []
    assert "2 source files but 1 target files" in refused(CorpusConfig(source=[full, full], target=[full]))


# Mistakes.


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "train.en", b"")
    path = tmp_path / "trian.en"
    assert refused(CorpusConfig(source=str(path), target=str(path))) == f"{path}: no such file; did you mean train.en?"
    assert "no such file" in refused(CorpusConfig(source=str(tmp_path / "no" / "a.tsv")))
    (tmp_path / ".hidden").touch()
    (tmp_path / "folder").mkdir()
    assert refused(CorpusConfig(source=str(tmp_path / "x.tsv"))).endswith("; known: train.en")
    assert "a folder, pipe or device" in refused(CorpusConfig(source=str(tmp_path), target=str(tmp_path)))


def test_no_corpus_says_what_to_type() -> None:
    assert "data.train.source=FILE data.train.target=FILE" in refused(CorpusConfig())
    assert not CorpusConfig(target="x").is_given
    for corpus in (CorpusConfig(source="x"), CorpusConfig(dataset="x"), CorpusConfig(phrases=1)):
        assert corpus.is_given


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"a\tb\na\tb\tc\n", ":2: 3 columns; exactly 2 are needed"),
        ("a.tsv", b"a\tb\n\n", ":2: 1 columns"),
        (
            "a.jsonl",
            b'{"en": "a", "de": "b"}\n{"en": "a", "fr": "b"}\n',
            ":2: no text under en and de, nor",
        ),
        ("a.jsonl", b'{"en": "a", "de": null}\n', ":1: no text under en and de"),
        ("a.jsonl", b'{"translation": 5}\n', ":1: no text under en and de"),
        ("a.jsonl", b'{"en": "a", "de": "\\ud800"}\n', ":1: "),
        ("a.jsonl", b"[]\n", ":1: not a JSON object"),
        ("a.jsonl", b"{\n", ":1: not valid JSON: Expecting property name enclosed in double quotes at character 2"),
        ("a.jsonl", b"[" * 100_000, ":1: "),
        ("a.txt", b"a\n", ": a single file must be .tsv or .jsonl"),
    ],
)
def test_a_malformed_line_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    assert f"{path}{message}" in refused(CorpusConfig(source=path))


def test_identity_follows_the_content(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.en", b"a\n"), write(tmp_path / "a.de", b"b\n")
    first = identity(CorpusConfig(source=source, target=target), 1)
    moved = write(tmp_path / "moved.en", b"a\n")
    assert identity(CorpusConfig(source=moved, target=[target]), 1) == first
    assert identity(CorpusConfig(source=[source, target]), 1) != first
    write(tmp_path / "a.de", b"c\n")
    assert identity(CorpusConfig(source=source, target=target), 1) != first
    assert identity(CorpusConfig(dataset="a", split="train"), 1) != identity(CorpusConfig(dataset="a", split="test"), 1)
    saved = CorpusConfig(dataset=str(tmp_path / "set"))
    found = []
    for text in ("a", "b"):
        datasets.Dataset.from_list([{"source": text, "target": text}]).save_to_disk(tmp_path / "set")
        found.append(identity(saved, 1))
    assert found[0] != found[1] == identity(saved, 1)
    with pytest.raises(UserError, match="no such file; did you mean"):
        identity(CorpusConfig(source=str(tmp_path / "a.eng")), 1)


def test_paths() -> None:
    assert paths_of(None) == paths_of("") == paths_of([]) == []
    assert paths_of("a") == paths_of(["a"]) == [Path("a")]
    assert paths_of("~/a") == [Path.home() / "a"]


def test_the_subset_is_the_one_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def load_dataset(*arguments: str, **options: str) -> list[dict[str, str]]:
        asked.append((*arguments, options["split"]))
        return [{"en": "a", "de": "b"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read(CorpusConfig(dataset="owner/set", subset="de-en", split="train")) == [("a", "b")]
    assert asked == [("owner/set", "de-en", "train")]


def test_identity_follows_the_names_of_a_data_set_and_the_number_of_phrases() -> None:
    for key, values in {"subset": ("de-en", "fr-en"), "split": ("train", "test")}.items():
        settings: list[dict[str, Any]] = [{key: value} for value in values]
        assert len({str(identity(CorpusConfig(dataset="a", **each), 1)) for each in settings}) == 2
    pytest.importorskip("babel")
    drawn = [(10, 1), (20, 1), (10, 2)]
    assert len({str(identity(CorpusConfig(phrases=count), seed)) for count, seed in drawn}) == 3


@pytest.mark.parametrize("name", ["a.tsv", "a.json"])
def test_blanks_around_a_text_are_none_of_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.tsv").write_bytes(b"a \t b\n")
    (tmp_path / "a.json").write_bytes(b'{"en": " a\\t", "de": "b\\n "}\n')
    assert read(CorpusConfig(source=str(tmp_path / name))) == [("a", "b")]


def test_languages_come_before_source_and_target(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"en": "a", "de": "b", "source": "wikipedia", "target": "x"}\n')
    assert read(CorpusConfig(source=str(tmp_path / "a.jsonl"))) == [("a", "b")]


def test_only_a_file_that_begins_so_is_utf_16(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes(b"gut\n\xff\xfe\n")
    (tmp_path / "a.de").write_bytes(b"gut\nx\n")
    assert "-f latin1" in refused(CorpusConfig(source=str(tmp_path / "a.en"), target=str(tmp_path / "a.de")))


def test_a_disk_that_fails_is_no_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def readline(self, *_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(text_files, "decompressed", lambda *_: Failing())
    (tmp_path / "a").write_bytes(b"x\n")
    with pytest.raises(OSError, match="Input/output error"):
        list(text_files.read_lines(tmp_path / "a"))
