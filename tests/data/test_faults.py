"""Corpora with the faults that real ones have: each is found in preparation, and named by file and line."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from seq2seq.config.schema import Config, CorpusConfig, DataConfig, TokenizerConfig
from seq2seq.data.corpus import read_pairs
from seq2seq.data.prepare import Prepared, prepare
from seq2seq.data.text_files import MAX_LINE_BYTES
from seq2seq.support.errors import UserError
from seq2seq.support.files import read_json

Sides = list[list[bytes]]
Fault = Callable[[Sides], object]
MUCH = 300 << 20


def lines_of(pairs: list[tuple[str, str]]) -> Sides:
    return [[pair[side].encode() for pair in pairs] for side in (0, 1)]


def config(folder: Path, train: Sides, valid: Sides, end: bytes = b"\n") -> Config:
    for split, sides in (("train", train), ("valid", valid)):
        for name, lines in zip(("en", "de"), sides, strict=True):
            (folder / f"{split}.{name}").write_bytes(b"\n".join(lines) + (end if lines else b""))
    data = DataConfig(prepared_dir=str(folder / "data"), workers=1)
    for split in ("train", "valid"):
        setattr(data, split, CorpusConfig(source=str(folder / f"{split}.en"), target=str(folder / f"{split}.de")))
    return Config(run_dir=str(folder), data=data, tokenizer=TokenizerConfig(vocab_size=310))


FAULTS: dict[str, tuple[Fault, str]] = {
    "a line too many in the middle of the source": (
        lambda sides: sides[0].insert(149, b"the man sees the dog."),
        r"train\.en has 301 lines but .*train\.de has 300; by their lengths the lines stop matching at line 1[45]\d$",
    ),
    "a line too many in the middle of the target": (
        lambda sides: sides[1].insert(149, b"das Mann sieht das Hund."),
        r"train\.en has 300 lines but .*train\.de has 301; by their lengths the lines stop matching at line 1[45]\d$",
    ),
    "a target cut short": (
        lambda sides: sides[1].__delitem__(slice(250, None)),
        r"train\.en has 300 lines but .*train\.de has 250; by their lengths the lines stop matching at line 2[45]\d$",
    ),
    "a line of Latin-1 in UTF-8": (
        lambda sides: sides[1].__setitem__(76, "das schöne Mädchen".encode("latin-1")),
        r"train\.de:77: byte 8 of the line \(0xf6\) is not UTF-8; convert the file, for example: iconv -f latin1 ",
    ),
    "UTF-16": (
        lambda sides: sides[0].__setitem__(slice(None), b"\n".join(sides[0]).decode().encode("utf-16").split(b"\n")),
        r"train\.en:1: byte 1 of the line \(0xff\) is not UTF-8; convert the file, for example: iconv -f utf-16 ",
    ),
    "an empty source": (lambda sides: sides[0].clear(), r"train\.en has 0 lines but .*train\.de has 300; .*line 1$"),
    "two empty files": (
        lambda sides: sides.__setitem__(slice(None), [[], []]),
        r"the train corpus \(.*train\.en, .*train\.de\) is empty$",
    ),
    "nothing but blank lines": (
        lambda sides: sides[0].__setitem__(slice(None), [b" \t"] * 300),
        r"the train corpus .* is empty after cleaning: 300 pairs are empty, the first at .*train\.en:1; see data\.",
    ),
    "a target that is the source": (
        lambda sides: sides[1].__setitem__(slice(None), sides[0]),
        r"the train corpus .* is empty after cleaning: 300 pairs are same, the first at .*train\.en:1; see data\.",
    ),
    "old Macintosh line ends": (
        lambda sides: [side.__setitem__(slice(None), [b"\r".join(side) * 3000]) for side in sides],
        rf"train\.en:1: the line has more than {MAX_LINE_BYTES:,} bytes: no sentence is that long",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_is_refused_with_file_and_line(fault: str, tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    change, says = FAULTS[fault]
    train = lines_of(toy_pairs[:300])
    change(train)
    with pytest.raises(UserError) as refused:
        prepare(config(tmp_path, train, lines_of(toy_pairs[300:])))
    assert re.search(says, str(refused.value)), str(refused.value)
    assert "\n" not in str(refused.value)


def reported(folder: Path, train: Sides, valid: Sides, end: bytes = b"\n") -> tuple[Prepared, dict[str, object]]:
    data = prepare(config(folder, train, valid, end))
    return data, read_json(folder / "data" / "clean" / "report.json")


def test_nothing_but_duplicates_is_reported(
    tmp_path: Path, toy_pairs: list[tuple[str, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    different = list(dict.fromkeys(toy_pairs))[:50]
    train = lines_of([*different, *different[5:6] * 250])
    data, report = reported(tmp_path, train, lines_of(toy_pairs[300:]))
    assert len(data.train) == 50
    assert report["dropped"] == {"duplicate": 250}
    said = f"dropped 250 (83.3%) for duplicate, such as: {tmp_path}/train.en:51: "
    assert said in capfd.readouterr().err


def test_some_lines_that_are_same_or_empty_are_reported(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    train = lines_of(list(dict.fromkeys(toy_pairs))[:100])
    train[1][41], train[0][67], train[1][90] = train[0][41], b"", b"\t"
    data, report = reported(tmp_path, train, lines_of(toy_pairs[300:]))
    assert len(data.train) == 97
    assert report["dropped"] == {"same": 1, "empty": 2}
    examples = report["examples"]
    assert isinstance(examples, dict)
    assert [place for *_, place in examples["empty"]] == [f"{tmp_path}/train.en:68", f"{tmp_path}/train.en:91"]
    assert [place for *_, place in examples["same"]] == [f"{tmp_path}/train.en:42"]


def test_a_missing_last_newline_loses_nothing(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    train, valid = lines_of(toy_pairs[:300]), lines_of(toy_pairs[300:])
    found = []
    for end in (b"\n", b""):
        (tmp_path / f"end{end.hex()}").mkdir()
        found.append(reported(tmp_path / f"end{end.hex()}", train, valid, end)[0])
    assert found[0].data_sha256 == found[1].data_sha256
    assert found[0].valid_text[-1][:2] == found[1].valid_text[-1][:2] == toy_pairs[-1]


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_a_line_of_a_gigabyte_takes_little_memory(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"train.en{suffix}"
    with path.open("wb") as file:
        if suffix:
            with zstandard.ZstdCompressor().stream_writer(file) as writer:
                for block in (b"the dog.\n", *[bytes(1 << 24)] * 64):
                    writer.write(block)
        else:
            file.write(b"the dog.\n")
            file.truncate(1 << 30)
    assert path.stat().st_blocks * 512 < 1 << 20, "the file itself is small"
    (tmp_path / "train.de").write_bytes(b"das Hund.\nx\n")
    data = DataConfig(train=CorpusConfig(source=str(path), target=str(tmp_path / "train.de")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=rf"train\.en{suffix}:2: the line has more than {MAX_LINE_BYTES:,} bytes"):
        list(read_pairs(data, "train", 1))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MUCH
