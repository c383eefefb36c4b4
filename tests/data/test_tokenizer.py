"""Raw text in, raw text out, with a vocabulary whose special pieces stand where the conventions say."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from seq2seq.config.schema import TokenizerConfig
from seq2seq.data.tokenizer import BOS, EOS, PAD, TEXTS_OF_A_THREAD, UNK, Tokenizer, train_tokenizer
from seq2seq.support.errors import UserError

# SentencePiece writes a space as U+2581 and so reads a U+2581 back as one.
TEXT = st.text(st.characters(exclude_characters="\u2581\n", exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def lines(toy_pairs: list[tuple[str, str]]) -> list[str]:
    return [text for pair in toy_pairs[:200] for text in pair]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest, lines: list[str]) -> Tokenizer:
    return train_tokenizer(lines, TokenizerConfig(kind=request.param, vocab_size=310))


@given(text=TEXT)
@example("  two  spaces, “quotes”, … \ttab \r\0\x85\u2028\ufeff ")
@example("<pad><unk><s></s><0x0A>")
@example("ﬁ e\u0301 \U0001f469\u200d\U0001f680 ½")
@example("")
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode([text])
    assert tokenizer.decode(ids) == [text]
    assert UNK not in ids[0]
    assert set(ids[0]).isdisjoint(tokenizer.never_generated)


def test_texts_do_not_touch_one_another(tokenizer: Tokenizer, lines: list[str]) -> None:
    assert tokenizer.encode(lines) == [tokenizer.encode([line])[0] for line in lines]
    assert tokenizer.encode([]) == []
    assert tokenizer.decode([]) == []


def test_threads_change_nothing(tokenizer: Tokenizer, lines: list[str]) -> None:
    texts = ["", *lines, "", *reversed(lines)]
    assert len(texts) >= 4 * TEXTS_OF_A_THREAD
    ids = tokenizer.encode(texts, threads=4)
    assert ids == tokenizer.encode(texts)
    assert tokenizer.decode(ids, threads=4) == tokenizer.decode(ids) == texts


def test_words_are_pieces_and_special_pieces_have_their_places(tokenizer: Tokenizer) -> None:
    assert tokenizer.pieces([PAD, UNK, BOS, EOS]) == ["<pad>", "<unk>", "<s>", "</s>"]
    assert (PAD, UNK, BOS, EOS) == (0, 1, 2, 3)
    pieces = tokenizer.pieces(tokenizer.encode(["the old dog"])[0])
    assert "".join(pieces) == "▁the▁old▁dog"
    assert len(pieces) < len("▁the▁old▁dog")


def test_a_newline_is_never_generated(tokenizer: Tokenizer) -> None:
    newline = tokenizer.encode(["a\nb"])[0]
    assert tokenizer.pieces(newline).count("<0x0A>") == 1
    assert tokenizer.pieces(tokenizer.never_generated) == ["<pad>", "<unk>", "<s>", "<0x0A>"]
    assert EOS not in tokenizer.never_generated


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_no_piece_with_a_newline_is_learnt(kind: str, lines: list[str]) -> None:
    # JSONL and data sets can hold newlines inside a sentence.
    broken = [line.replace(" the", "\nthe") for line in lines]
    tokenizer = train_tokenizer(broken, TokenizerConfig(kind=kind, vocab_size=310))
    assert not any("\n" in piece for piece in tokenizer.pieces(range(tokenizer.vocab_size)))


def trained_by_others(lines: list[str], **settings: Any) -> Tokenizer:
    """A vocabulary with our numbers of special pieces, made with other settings than ours."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=310,
        pad_id=PAD,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        byte_fallback=True,
        minloglevel=2,
        **settings,
    )
    return Tokenizer(model.getvalue())


def test_a_newline_learnt_by_others_is_never_generated(lines: list[str]) -> None:
    broken = [line.replace(" the", "\nthe") for line in lines]
    tokenizer = trained_by_others(broken, model_type="bpe", normalization_rule_name="identity")
    assert any("\n" in piece for piece in tokenizer.pieces(tokenizer.never_generated)), "the test needs a learnt one"
    allowed = [piece for piece in range(tokenizer.vocab_size) if piece not in tokenizer.never_generated]
    assert not any("\n" in text for piece in allowed for text in tokenizer.decode([[piece]]))


def test_rules_that_write_newlines_write_none(lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "rules").write_bytes(b"64\tA\n")  # d becomes a newline.
    tokenizer = trained_by_others(lines, denormalization_rule_tsv=str(tmp_path / "rules"))
    assert tokenizer.decode(tokenizer.encode(["the old dog"])) == ["the ol   og"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_too_large_is_capped_with_a_notice(
    kind: str, lines: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = train_tokenizer(lines, TokenizerConfig(kind=kind, vocab_size=5000))
    assert 273 < tokenizer.vocab_size < 1000
    out, err = capfd.readouterr()
    assert out == ""
    assert err == (
        f"tokenizer.vocab_size=5000 is more than the corpus of 400 lines supports; taking {tokenizer.vocab_size}\n"
    )


def test_a_vocabulary_too_small_says_what_to_type() -> None:
    letters = ["".join(map(chr, range(start, start + 50))) for start in range(0x4E00, 0x4E00 + 1000, 50)] * 2
    with pytest.raises(UserError, match=r"type tokenizer\.vocab_size=(\d+) or more") as caught:
        train_tokenizer(letters, TokenizerConfig(vocab_size=1000))
    enough = int(str(caught.value).rpartition("=")[2].split()[0])
    assert train_tokenizer(letters, TokenizerConfig(vocab_size=enough)).vocab_size == enough


def test_no_lines_no_vocabulary() -> None:
    with pytest.raises(UserError, match="0 lines"):
        train_tokenizer(["", ""], TokenizerConfig())


def test_training_is_repeatable_and_a_model_is_read_back(lines: list[str], tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=310)
    tokenizer = train_tokenizer(lines, config)
    assert train_tokenizer(iter(lines), config).model == tokenizer.model
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    assert Tokenizer.load(tmp_path / "tokenizer.model").encode(lines) == tokenizer.encode(lines)


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    for name, content in (("text", b"hello"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=str(tmp_path / name)):
            Tokenizer.load(tmp_path / name)
    with pytest.raises(UserError, match="missing"):
        Tokenizer.load(tmp_path / "missing")


def test_another_order_of_special_pieces_is_refused(lines: list[str], tmp_path: Path) -> None:
    prefix = str(tmp_path / "other")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=prefix, vocab_size=60, minloglevel=2, hard_vocab_limit=False
    )
    with pytest.raises(UserError, match=r"must be at \(0, 1, 2, 3\)"):
        Tokenizer.load(Path(f"{prefix}.model"))


def test_both_kinds_are_to_be_had(toy_pairs: list[tuple[str, str]]) -> None:
    lines = [text for pair in toy_pairs[:200] for text in pair]
    bpe, unigram = (train_tokenizer(lines, TokenizerConfig(kind=kind, vocab_size=310)) for kind in ("bpe", "unigram"))
    assert bpe.pieces(range(310)) != unigram.pieces(range(310))


def test_numbers_are_split_if_asked_for() -> None:
    lines = ["in 2024 there were 2024 of 365"] * 50
    whole, split = (train_tokenizer(lines, TokenizerConfig(vocab_size=300, split_digits=on)) for on in (False, True))
    assert "2024" in whole.pieces(whole.encode(["2024"])[0])[-1]
    assert split.pieces(split.encode(["2024"])[0])[-4:] == list("2024")


def test_long_lines_are_learnt_from_too() -> None:
    lines = ["the dog "] * 20 + ["elephant " * 1500]
    tokenizer = train_tokenizer(lines, TokenizerConfig(vocab_size=300))
    assert len(tokenizer.encode(["elephant"])[0]) <= 2
