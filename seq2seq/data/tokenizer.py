"""The joint SentencePiece vocabulary: raw text in, raw text out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from seq2seq.config.schema import TokenizerConfig
from seq2seq.data.sentencepiece_training import train_sentencepiece
from seq2seq.support.errors import UserError, first_line
from seq2seq.support.progress import say

PAD, UNK, BOS, EOS = 0, 1, 2, 3
TEXTS_OF_A_THREAD = 64
"""How many texts make it worth starting one more thread."""
ONE_BY_ONE = 8
"""Up to this many texts are encoded one by one: for a list SentencePiece starts a thread, which takes longer."""


class Tokenizer:
    """A trained vocabulary.

    `never_generated` lists the pieces that search must not choose: pad, unk, bos, and those that hold a newline (its
    byte, and pieces learnt from corpora with newlines inside), which would break the rule of one output line per input
    line.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        if not model:
            raise UserError("an empty file is no SentencePiece model")
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        ids = tuple(self._processor.piece_to_id(piece) for piece in ("<pad>", "<unk>", "<s>", "</s>"))
        if ids != (PAD, UNK, BOS, EOS):
            raise UserError(f"the tokenizer has pad, unk, bos, eos at {ids}; they must be at {(PAD, UNK, BOS, EOS)}")
        self.vocab_size: int = self._processor.get_piece_size()
        pieces = self.pieces(range(self.vocab_size))
        newlines = [piece for piece, text in enumerate(pieces) if "\n" in text or text == "<0x0A>"]
        self.never_generated = [PAD, UNK, BOS, *newlines]

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a model file. Raises UserError when it is missing or broken."""
        try:
            return cls(path.read_bytes())
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except (OSError, RuntimeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as a SentencePiece model: {first_line(error)}") from None

    def encode(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """The piece ids of each text, without bos and eos. Raises UserError for half a character (a lone surrogate)."""
        try:
            if len(texts) <= ONE_BY_ONE:
                return list(map(self._processor.encode, texts))
            return self._processor.encode(list(texts), num_threads=_worthwhile(threads, texts))
        except (RuntimeError, TypeError):
            for text in texts:
                _require_whole_characters(text)
            raise

    def count(self, texts: Sequence[str]) -> list[int]:
        """The number of pieces of each text, without bos and eos."""
        return list(map(len, self.encode(texts)))

    def decode(self, ids: Sequence[Sequence[int]], threads: int = 1) -> list[str]:
        """The text of each sequence of piece ids, on one line."""
        sequences = list(map(list, ids))
        if len(sequences) <= ONE_BY_ONE:
            texts = list(map(self._processor.decode, sequences))
        else:
            texts = self._processor.decode(sequences, num_threads=_worthwhile(threads, ids))
        # A vocabulary can hold rules that rewrite decoded text, even into newlines that no piece has.
        return [text.replace("\n", " ") for text in texts]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The pieces as written in the vocabulary, for display."""
        return [self._processor.id_to_piece(int(piece)) for piece in ids]


def _require_whole_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise UserError(
            f"{text[max(0, error.start - 20) : error.start + 1]!r}: {half!r} is half a character, which no text has; "
            "decode bytes with errors='replace'"
        ) from None


def _worthwhile(threads: int, texts: Sequence[object]) -> int:
    """This many threads, or fewer if there are only a few texts."""
    return max(1, min(threads, len(texts) // TEXTS_OF_A_THREAD))


def train_tokenizer(lines: Iterable[str], config: TokenizerConfig, place: Path | None = None) -> Tokenizer:
    """Train a vocabulary on raw lines; one too large for them is capped, with a notice on stderr.

    Temporary files are in `place` (default: the system's). Raises UserError when the lines are too few for any
    vocabulary, or have more different characters than it may have pieces; RunError when they are too many for the
    memory.
    """
    text = [line for line in lines if line]
    size = config.vocab_size
    try:
        return Tokenizer(_train(text, config, size, place))
    except RuntimeError as error:
        # SentencePiece reports the largest possible size only in its message.
        limit = re.search(r"<= (\d+)", str(error))
        least = re.search(rf"{size} vs (\d+)", str(error))
        if least:
            raise UserError(
                f"tokenizer.vocab_size={size}: too small for the different characters of the corpus; "
                f"type tokenizer.vocab_size={least[1]} or more"
            ) from None
        if limit is None:
            raise UserError(
                f"tokenizer.vocab_size={size}: no vocabulary can be trained on {len(text)} lines: "
                f"{str(error).strip().rpartition(chr(10))[2]}"
            ) from None
    size = int(limit[1])
    say(
        f"tokenizer.vocab_size={config.vocab_size} is more than the corpus of {len(text)} lines supports; taking {size}"
    )
    return Tokenizer(_train(text, config, size, place))


def _train(lines: list[str], config: TokenizerConfig, size: int, place: Path | None) -> bytes:
    return train_sentencepiece(
        lines,
        place,
        model_type=config.kind,
        split_digits=config.split_digits,
        vocab_size=size,
        pad_id=PAD,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        pad_piece="<pad>",
        character_coverage=0.9999,
        byte_fallback=True,
        # SentencePiece's own defaults rewrite the text: "…" becomes "...", two spaces become one.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        max_sentence_length=16384,
    )
