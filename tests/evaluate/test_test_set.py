"""Test sets that sacreBLEU knows by name, from a stand-in for its folder: nothing is downloaded here."""

from __future__ import annotations

import errno
import io
import logging
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sacrebleu import utils

from seq2seq.data.corpus import Pair
from seq2seq.evaluate.test_set import read_named_test_sets, scored, translated_once
from seq2seq.support.errors import UserError

StandIns = dict[str, list[tuple[str, str]]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where sacreBLEU keeps the set `wmt13`, which has no stand-in; emptied after the test."""
    path = Path(utils.SACREBLEU_DIR) / "wmt13"
    assert not path.exists()
    yield path
    shutil.rmtree(path, ignore_errors=True)


def refused(*names: str, pair: tuple[str, str] = ("en", "de")) -> str:
    with pytest.raises(UserError) as caught:
        read_named_test_sets(names, *pair)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sets_are_read_by_name(stand_ins: StandIns) -> None:
    found = read_named_test_sets(["wmt14", "wmt14/full"], "en", "de")
    assert list(found) == ["wmt14", "wmt14/full"]
    for name, pairs in found.items():
        assert [pair[:2] for pair in pairs] == stand_ins[name]


def sgml(sentences: Sequence[str]) -> str:
    return "\n".join(f'<seg id="{number}">{line}</seg>' for number, line in enumerate(sentences, 1)) + "\n"


def archive(texts: dict[str, str]) -> bytes:
    """A .tgz as sacreBLEU downloads it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in texts.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


def download(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let sacreBLEU's next download have this content, with the checksum that it expects."""
    monkeypatch.setattr(urllib.request, "urlopen", lambda _: io.BytesIO(content))
    monkeypatch.setattr(utils.DATASETS["wmt13"], "md5", None)


def test_a_set_is_downloaded_once_and_split_on_newlines_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    places = utils.DATASETS["wmt13"].langpairs["en-de"]
    sources, targets = ["a  dog", "x\x1cy", "\u200b"], ["ein Hund", "q\x0cr", "ü"]
    texts = dict(zip(places, map(sgml, (sources, targets)), strict=True))
    download(monkeypatch, archive(texts))
    # sacreBLEU makes one blank of several, and of line separators.
    expected = [("a dog", "ein Hund"), ("x y", "q r"), ("\u200b", "ü")]
    for notice in (f"downloading the test set wmt13 to {folder}\n", ""):
        assert [pair[:2] for pair in read_named_test_sets(["wmt13"], "en", "de")["wmt13"]] == expected
        assert capfd.readouterr() == ("", notice)
        monkeypatch.undo()
    # In its own text files too, only \n ends a line.
    (folder / "wmt13.en-de.src").write_bytes("a\u2028b\nc\x85d\re\n\nf\n".encode())
    (folder / "wmt13.en-de.ref").write_bytes(b"1\n2\n3\n4\n")
    found = read_named_test_sets(["wmt13"], "en", "de")["wmt13"]
    assert [pair.source for pair in found] == ["a\u2028b", "c\x85d\re", "", "f"]


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    assert refused("wmt14/ful") == "--test-set wmt14/ful: sacreBLEU has no such test set; did you mean wmt14/full?"
    assert refused("newstest") == "--test-set newstest: sacreBLEU has no such test set; sacrebleu --list names them"
    assert "did you mean wmt14?" in refused("wmt14", "wmt 14"), "before anything is downloaded"
    assert "no such test set" in refused("")


def test_a_pair_that_the_set_does_not_have() -> None:
    assert refused("wmt14", pair=("en", "it")) == (
        "--test-set wmt14 has no en-it; it has cs-en, de-en, en-cs, en-de, en-fr, en-hi, en-ru, fr-en, hi-en, ru-en: "
        "choose by --source-language L --target-language L"
    )


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
def test_without_a_network_it_says_what_to_type(folder: Path, level: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(level)
    message = refused("wmt13")
    assert message.startswith("--test-set wmt13 (en-de) is not available: URLError: <urlopen error ")
    assert "where there is a network type sacrebleu -t wmt13 -l en-de --echo src" in message
    assert f"copy its ~/.sacrebleu/wmt13 to {folder}" in message
    assert message.endswith("or give --source FILE --reference FILE")


def test_a_damaged_download_says_what_to_remove(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    remedy = f"; type rm -r {folder} and try again, or give --source FILE --reference FILE"
    monkeypatch.setattr(urllib.request, "urlopen", lambda _: io.BytesIO(b"no archive"))
    message = refused("wmt13")
    assert "(en-de) is not available: Fatal: MD5 sum of downloaded file was incorrect (got " in message
    assert message.endswith(remedy)
    assert capfd.readouterr().err.count("\n") == 1, "the notice of the download alone"
    message = refused("wmt13")
    assert "is not available: FileNotFoundError: " in message and message.endswith(remedy)
    shutil.rmtree(folder)
    download(monkeypatch, b"no archive")
    message = refused("wmt13")
    assert "is not available: ReadError: " in message and message.endswith(remedy)


def test_a_full_disk_is_not_the_users_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(urllib.request, "urlopen", full)
    with pytest.raises(OSError, match="No space left"):
        read_named_test_sets(["wmt13"], "en", "de")


@pytest.mark.parametrize(
    ("source", "reference", "message"),
    [(b"", b"", "is empty; type rm -r "), (b"a\nb\n", b"a\n", "en-de.src has 2 lines; the reference has 1")],
)
def test_half_a_set_is_refused(source: bytes, reference: bytes, message: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    for field, content in {"src": source, "ref": reference, "docid": b"", "genre": b"", "origlang": b""}.items():
        (folder / f"wmt13.en-de.{field}").write_bytes(content)
    assert message in refused("wmt13")


def test_several_references_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils.DATASETS["wmt13"], "langpairs", {"en-de": ["a", "b", "c"]})
    folder.mkdir(parents=True)
    for field in ("src", "ref-0", "ref-1", "docid", "genre", "origlang"):
        (folder / f"wmt13.en-de.{field}").write_bytes(b"a\n")
    message = refused("wmt13")
    assert message.startswith("--test-set wmt13 has 2 references for en-de, and one is scored here; ")
    assert message.endswith("type: sacrebleu -t wmt13 -l en-de -i HYPOTHESES")


def test_no_sentence_is_translated_twice() -> None:
    asked: list[str] = []

    def translate(texts: Sequence[str]) -> list[str]:
        asked.extend(texts)
        return [text.upper() for text in texts]

    test_sets = [[Pair("b", "x"), Pair("a", "x")], [Pair("a", "x"), Pair("c", "x"), Pair("a", "y"), Pair("b", "x")]]
    assert translated_once(translate, test_sets) == [["B", "A"], ["A", "C", "A", "B"]]
    assert asked == ["b", "a", "c"]


def test_what_the_scores_of_a_set_hold() -> None:
    pairs = [Pair("a", "Ein Hund bellt laut.")]
    lines = ["Ein Hund bellt laut."]
    plain = scored(lines, pairs)
    assert list(plain) == ["sentences", "bleu", "chrf", "ter", "exact"]
    both = scored(lines, pairs, "wmt14", language="de", paper=True)
    assert list(both) == ["test_set", *plain, "tokenised_bleu", "paper_bleu"]
    assert both["test_set"] == "wmt14" and both["paper_bleu"]["score"] == 100.0
