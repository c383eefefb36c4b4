"""Long texts are cut at sentence ends, else at spaces, else anywhere; nothing but blanks is lost."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq.translate import splitting

TEXTS = st.text(max_size=200) | st.lists(
    st.sampled_from(["Ja.", "Nein!", "a", "word", "sehrlangeswort", "„Gut.“", "3.5", "\u2028", "\x85", " ", ".", "。"])
).map(" ".join)


def split(text: str, count: Callable[[str], int], limit: int) -> list[str]:
    return splitting.split(text, lambda texts: list(map(count, texts)), limit)


def without_blanks(text: str) -> str:
    return re.sub(r"\s", "", text)


@given(text=TEXTS, limit=st.integers(1, 30))
def test_nothing_is_lost_but_blanks_and_the_limit_is_kept(text: str, limit: int) -> None:
    parts = split(text, len, limit)
    assert without_blanks("".join(parts)) == without_blanks(text)
    assert all(len(part) <= limit for part in parts)
    if len(parts) > 1:
        assert all(part == part.strip() != "" for part in parts)


@given(text=TEXTS, limit=st.integers(1, 30))
def test_a_text_that_fits_is_left_alone(text: str, limit: int) -> None:
    if len(text) <= limit:
        assert split(text, len, limit) == [text]


@pytest.mark.parametrize(
    ("text", "limit", "parts"),
    [
        ("One. Two. Three.", 16, ["One. Two. Three."]),
        ("One. Two. Three.", 15, ["One. Two.", "Three."]),
        ("One. Two. Three.", 8, ["One.", "Two.", "Three."]),
        ("Really?  “Yes.” (No!)  …", 9, ["Really?", "“Yes.”", "(No!)  …"]),
        ("他去了北京。他在图书馆！？“好。”她说。", 8, ["他去了北京。", "他在图书馆！？", "“好。”她说。"]),
        ("他去了北京。 他在图书馆。", 13, ["他去了北京。 他在图书馆。"]),
        ("他去了。他在。我来了。", 7, ["他去了。他在。", "我来了。"]),
        ("Version 3.5 is here. It works.", 22, ["Version 3.5 is here.", "It works."]),
        ("Short. One two three four.", 10, ["Short. One", "two three", "four."]),
        ("abcdefgh", 3, ["ab", "cd", "ef", "gh"]),
        ("a abcdefgh b", 4, ["a", "abcd", "efgh", "b"]),
        ("One.\u2028Two.\x85Three.", 8, ["One.", "Two.", "Three."]),
        ("x" * 9, 1, ["x"] * 9),
        ("One two. Three four five.", 20, ["One two.", "Three four five."]),
        ("“Go now.” She went out.", 14, ["“Go now.”", "She went out."]),
        ("Well… She went out.", 14, ["Well…", "She went out."]),
        ("好。他在图书馆！？", 8, ["好。", "他在图书馆！？"]),
    ],
)
def test_where_it_cuts(text: str, limit: int, parts: list[str]) -> None:
    assert split(text, len, limit) == parts


def test_a_part_too_large_that_cannot_be_cut_is_kept() -> None:
    # A single character may be several pieces.
    assert split("ab", lambda text: 4 * len(text), 3) == ["a", "b"]


def test_a_very_long_word_and_a_very_long_line() -> None:
    assert "".join(split("x" * 100_000, len, 250)) == "x" * 100_000
    words = "word " * 20_000
    parts = split(words, len, 250)
    assert len(parts) == 400 and " ".join(parts) == words.strip()


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["One.", "Two.", "Three."], "One. Two. Three."),
        (["他去了北京。", "他在图书馆！？”", "“好。”", "她说"], "他去了北京。他在图书馆！？”“好。”她说"),
        (["これは本です。", "OK.", "はい。"], "これは本です。OK. はい。"),
        (["안녕.", "네"], "안녕. 네"),
        (["", "a", "", "b"], " a  b"),
        (["one"], "one"),
        (["他说……", "他走了——", "你好!", "“OK”", "好。"], "他说……他走了——你好!“OK” 好。"),
        (["Wait…", "then!"], "Wait… then!"),
    ],
)
def test_how_translations_of_parts_are_joined(parts: list[str], text: str) -> None:
    assert splitting.join(parts) == text
