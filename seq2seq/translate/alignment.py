"""Word alignments from attention between pieces.

Shapes: T target pieces, L source pieces, eos not among them; V target words, W source words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from seq2seq.data.text_files import BLANKS

BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def words_of(pieces: Sequence[str]) -> list[int]:
    """The word, counted from 0, that each piece belongs to; words are separated by blanks (space, tab, return).

    A piece of blanks alone belongs to the next word, or at the end to the last one; a piece that holds several words
    belongs to the first of them. Where there are no words, the list is empty.
    """
    words: list[int] = []
    count, inside = 0, False
    for piece in pieces:
        byte = BYTE.fullmatch(piece)
        own = None
        for character in chr(int(byte[1], 16)) if byte else piece.replace("▁", " "):
            if character in BLANKS:
                inside = False
            elif not inside:
                count, inside = count + 1, True
            if inside and own is None:
                own = count - 1
        words.append(count if own is None else own)
    return [min(word, count - 1) for word in words] if count else []


def word_links(attention_TL: Tensor, source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    """Each target word's link to the source word that its pieces attend to most: (source word, target word), by target.

    A source word gets the summed attention of its pieces. Empty where a side has no words.
    """
    source_words, target_words = words_of(source), words_of(target)
    if not source_words or not target_words:
        return []
    rows, columns = torch.tensor(target_words), torch.tensor(source_words)
    by_source_TW = torch.zeros(len(target), source_words[-1] + 1).index_add_(1, columns, attention_TL)
    by_word_VW = torch.zeros(target_words[-1] + 1, source_words[-1] + 1).index_add_(0, rows, by_source_TW)
    return [(word, place) for place, word in enumerate(by_word_VW.argmax(1).tolist())]


def pharaoh(links: Sequence[tuple[int, int]]) -> str:
    """Links as `source-target` separated by spaces, the format of word aligners (`0-0 2-1 1-2`)."""
    return " ".join(f"{source}-{target}" for source, target in links)
