"""Cleaning rules, one by one, and the report of what they dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq.config.schema import CleaningConfig
from seq2seq.data.clean import EXAMPLES, CleaningReport, length_reason, text_hash, text_reason

OFF = CleaningConfig(empty=False, duplicate=False, same=False, max_length_ratio=None, max_pieces=None)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("a", "b", None),
        ("", "b", "empty"),
        ("a", " \u2028\t", "empty"),
        ("", "", "empty"),
        ("OK", "OK", "same"),
        ("OK", "ok", None),
    ],
)
def test_text_rules(source: str, target: str, reason: str | None) -> None:
    assert text_reason(source, target, CleaningConfig()) == reason
    assert text_reason(source, target, OFF) is None
    if reason:
        assert text_reason(source, target, replace(OFF, **{reason: True})) == reason, "its rule has the reason's name"


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        (250, 250, None),
        (251, 250, "max_pieces"),
        (250, 251, "max_pieces"),
        (30, 10, None),
        (31, 10, "max_length_ratio"),
        (10, 31, "max_length_ratio"),
        (3, 0, None),
        (4, 0, "max_length_ratio"),
    ],
)
def test_length_rules(source: int, target: int, reason: str | None) -> None:
    assert length_reason(source, target, CleaningConfig()) == reason
    assert length_reason(source, target, OFF) is None
    if reason:
        assert length_reason(source, target, replace(OFF, **{reason: getattr(CleaningConfig(), reason)})) == reason


@given(source=st.text(), target=st.text(), pieces=st.tuples(st.integers(0, 999), st.integers(0, 999)))
def test_sides_are_equal_before_the_rules(source: str, target: str, pieces: tuple[int, int]) -> None:
    rules = CleaningConfig()
    assert text_reason(source, target, rules) == text_reason(target, source, rules)
    assert length_reason(*pieces, rules) == length_reason(*pieces[::-1], rules)


def test_the_hash_is_the_same_everywhere_and_positive() -> None:
    assert text_hash("a", "b") == 9_214_550_154_729_315_665
    assert text_hash("ab", "") != text_hash("a", "b") != text_hash("b", "a")
    assert all(0 <= text_hash(str(number)) < 1 << 63 for number in range(100))


def test_the_report_counts_and_shows_examples() -> None:
    report = CleaningReport()
    report.kept = 1_994
    for number in range(5):
        report.drop("same", f"{number}" * 200, "t", "a.en:9")
    report.drop("empty", "", "leer")
    assert report.as_dict() == {
        "kept": 1_994,
        "dropped": {"same": 5, "empty": 1},
        "examples": {"same": [(f"{n}" * 120, "t", "a.en:9") for n in range(EXAMPLES)], "empty": [("", "leer", "")]},
    }
    assert str(report).split("\n") == [
        "kept 1,994 of 2,000 pairs",
        f"  dropped 5 (0.2%) for same, such as: a.en:9: '{'0' * 50}' | 't'",
        "  dropped 1 (0.1%) for empty, such as: '' | 'leer'",
    ]
