"""The phrasebook: the same phrases everywhere, a clean split, one German for each English, and German that is right."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import islice

import pytest

from seq2seq.data.phrasebook import KINDS, Phrase, draw, is_held_out
from seq2seq.support.errors import UserError

pytest.importorskip("babel")
pytest.importorskip("num2words")


def take(seed: int, count: int, *, held_out: bool = False) -> list[Phrase]:
    return list(islice(draw(seed, held_out=held_out), count))


TRAIN = 98_000


@pytest.fixture(scope="module")
def many() -> list[Phrase]:
    """100,000 phrases from several seeds and both shares."""
    train = [phrase for seed in range(2) for phrase in take(seed, TRAIN // 2)]
    return train + [phrase for seed in range(2) for phrase in take(seed, 1_000, held_out=True)]


def test_a_seed_names_one_sequence() -> None:
    assert take(1, 600) == take(1, 600)
    assert take(1, 600) != take(2, 600)
    assert take(1, 600, held_out=True) == take(1, 600, held_out=True)


def test_another_process_draws_the_same() -> None:
    code = (
        "from itertools import islice; from seq2seq.data.phrasebook import draw;"
        "print(ascii(list(islice(draw(5, held_out=True), 60))))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == ascii(take(5, 60, held_out=True))


def test_the_shares_have_no_source_in_common(many: list[Phrase]) -> None:
    assert not any(is_held_out(phrase.source) for phrase in many[:TRAIN])
    assert all(is_held_out(phrase.source) for phrase in many[TRAIN:])


def test_a_twentieth_is_held_out() -> None:
    share = sum(is_held_out(f"source {n}") for n in range(20_000)) / 20_000
    assert share == pytest.approx(0.05, abs=0.006)


def test_the_hash_is_the_same_everywhere() -> None:
    assert [n for n in range(100) if is_held_out(f"source {n}")] == [5, 6, 7, 41, 59, 61, 64, 75, 78]


def test_a_source_has_one_target(many: list[Phrase]) -> None:
    targets: dict[str, tuple[str, str]] = {}
    for phrase in many:
        assert targets.setdefault(phrase.source, phrase[1:]) == phrase[1:]


def test_kinds_come_evenly(many: list[Phrase]) -> None:
    assert tuple(sorted(KINDS)) == KINDS
    counts = Counter(phrase.kind for phrase in many)
    assert set(counts) == set(KINDS)
    assert all(count / len(many) == pytest.approx(1 / 6, abs=0.001) for count in counts.values())


def test_most_phrases_are_distinct_and_none_is_a_copy(many: list[Phrase]) -> None:
    train = many[:TRAIN]
    assert len(set(train)) > 0.85 * len(train)
    for kind in KINDS:
        assert len({phrase for phrase in train if phrase.kind == kind}) > 0.75 * len(train) / 6
    assert not any(phrase.source == phrase.target for phrase in many)


def test_phrases_are_clean_and_short(many: list[Phrase]) -> None:
    for text in {text for phrase in many for text in phrase[:2]}:
        assert text == " ".join(text.split(" ")).strip() and "  " not in text
        assert len(text.split()) <= 20
    characters = {character for phrase in many for text in phrase[:2] for character in text}
    assert all(c == " " or unicodedata.category(c)[0] not in "CZ" for c in characters)
    assert "{" not in characters


def test_sentences_start_with_a_capital_and_end_on_both_sides(many: list[Phrase]) -> None:
    for phrase in many:
        assert phrase.source.endswith(".") == phrase.target.endswith(".")
        if phrase.source.endswith("."):
            assert not phrase.source[0].islower() and not phrase.target[0].islower()


def test_bare_number_words_are_among_the_phrases(many: list[Phrase]) -> None:
    assert Phrase("forty-seven", "siebenundvierzig", "number") in many


def test_german_closes_the_apposition_of_a_date_inside_a_sentence(many: list[Phrase]) -> None:
    flights = [p for p in many if p.source.startswith("We fly") and "day, " in p.source]
    assert flights and all(p.target.startswith("Am ") and ", fliegen wir nach " in p.target for p in flights)


@pytest.mark.parametrize("package", ["babel", "num2words"])
def test_a_missing_package_is_named_by_draw(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed.*quickstart"):
        draw(1, held_out=False)


def test_the_module_loads_without_the_packages() -> None:
    code = "import sys; sys.modules['babel'] = sys.modules['num2words'] = None; import seq2seq.data.phrasebook"
    subprocess.run([sys.executable, "-c", code], check=True)
