"""From attention between pieces to links between words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seq2seq.data.text_files import BLANKS
from seq2seq.data.tokenizer import Tokenizer
from seq2seq.translate.alignment import pharaoh, word_links, words_of


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.load(tiny_model / "tokenizer.model")


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["▁the", "▁dog", "."], [0, 1, 1]),
        (["the", "▁d", "og"], [0, 1, 1]),
        (["▁", "<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>", "▁", "▁", "dog", "▁"], [0, 0, 0, 0, 0, 1, 1, 1, 1]),
        (["▁a", "<0x09>", "b", "<0x0D>"], [0, 1, 1, 1]),
        (["▁a▁b", "c", "▁d"], [0, 1, 2]),
        (["▁a", "<0xC2>", "<0xA0>", "b"], [0, 0, 0, 0]),
        (["▁<0x09>"], [0]),
        (["▁", "<0x20>"], []),
        ([], []),
    ],
)
def test_words_of_pieces(pieces: list[str], words: list[int]) -> None:
    assert words_of(pieces) == words


@given(text=st.text(st.one_of(st.sampled_from("  \tthe dogsé🦊\u00a0"), st.characters(exclude_categories=["Cs"]))))
def test_the_pieces_of_a_word_spell_it(tokenizer: Tokenizer, text: str) -> None:
    # SentencePiece takes its own mark for a blank.
    text = text.replace("▁", "_")
    ids = tokenizer.encode([text])[0]
    spelt: dict[int, list[int]] = {}
    for piece, word in zip(ids, words_of(tokenizer.pieces(ids)), strict=bool(text.strip(BLANKS))):
        spelt.setdefault(word, []).append(piece)
    words = [word for word in re.split(f"[{BLANKS}]", text) if word]
    assert [word.strip(BLANKS) for word in tokenizer.decode(list(spelt.values()))] == words


def test_links_sum_over_the_pieces_of_words() -> None:
    # Piece by piece "b" looks at "x" most; the two pieces of "yz" together have more of it.
    attention = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.3, 0.3]])
    assert word_links(attention, ["▁x", "▁y", "z"], ["▁a", "▁b"]) == [(0, 0), (1, 1)]
    # Both pieces of a target word have a say.
    assert word_links(attention, ["▁x", "▁y", "z"], ["▁a", "b"]) == [(0, 0)]
    assert word_links(torch.empty(0, 3), ["▁x", "▁y", "z"], []) == []
    assert word_links(torch.empty(2, 0), [], ["▁a", "▁b"]) == []


def test_pharaoh_names_the_source_first() -> None:
    assert pharaoh([(3, 0), (1, 1)]) == "3-0 1-1"
    assert pharaoh([]) == ""
