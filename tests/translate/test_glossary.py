"""Glossaries: whole words, the longest term first, and a line that is none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from seq2seq.support.errors import UserError
from seq2seq.translate.glossary import Glossary


def written(folder: Path, text: str) -> Path:
    (folder / "terms.tsv").write_bytes(text.encode())
    return folder / "terms.tsv"


def test_terms_are_whole_words_and_the_longest_counts(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeff# comment\r\ncar\tAuto\r\n\r\ncar park\tParkhaus\nC++\tC++\nYes!\tJa!")
    glossary = Glossary.load(path)
    assert glossary.terms == {"car": "Auto", "car park": "Parkhaus", "C++": "C++", "Yes!": "Ja!"}
    assert glossary.targets("A car, a car park and a car.") == ["Auto", "Parkhaus"]
    assert glossary.targets("Cars, cart, scar, Car.") == []
    assert glossary.targets("Yes! C++ and CC++, C+++") == ["Ja!", "C++"]
    assert Glossary({}).targets("a car") == []


def test_words_of_other_scripts() -> None:
    glossary = Glossary(
        {"कम": "few", "cafe": "Café", "北京": "Peking", "東京タワー": "Tokyo Tower", "A4纸": "A4 paper"}
    )
    assert glossary.targets("पानी की कमी है, cafe\u0301") == []
    assert glossary.targets("कम cafe") == ["few", "Café"]
    assert glossary.targets("我在北京住") == ["Peking"]
    assert glossary.targets("北京\ufe00和A4纸 AA4纸") == ["Peking", "A4 paper"]
    assert Glossary({"كتاب": "book"}).targets("كتابٌ") == ["book"]
    assert Glossary({"A纸": "x", "A纸B": "y"}).targets("A纸B A纸C") == ["y", "x"]
    assert glossary.targets("東京タワーと北京で A4纸。") == ["Tokyo Tower", "Peking", "A4 paper"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("car\tAuto\ndog Hund\n", r"terms\.tsv:2: 'dog Hund' is not a pair: write source term, tab, target term"),
        ("car\tAuto\tPKW\n", r"terms\.tsv:1: 'car\\tAuto\\tPKW' is not a pair"),
        ("\tAuto\n", r"terms\.tsv:1: .* is not a pair"),
        ("car\tAuto\n\ncar\tWagen\n", r"terms\.tsv:3: 'car' was 'Auto' before; keep one of the two lines"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Glossary.load(written(tmp_path, text))
    with pytest.raises(UserError, match="no such file"):
        Glossary.load(tmp_path / "none.tsv")


@pytest.mark.parametrize("terms", [{"": "Auto"}, {"car": " "}])
def test_a_term_is_not_blank(terms: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"the glossary's pair '.*: a term is blank; leave it out"):
        Glossary(terms)


def test_blanks_around_a_term_are_none_of_it(tmp_path: Path) -> None:
    assert Glossary.load(written(tmp_path, "car \t Auto\n")).terms == {"car": "Auto"}


def test_signs_without_a_name_end_a_word() -> None:
    assert Glossary({"car": "Auto"}).targets("a car\x85") == ["Auto"]
