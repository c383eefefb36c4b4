"""Exact scores: numbers worked out by hand, training's loss, search's own scores; alignments where they are known."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
import torch
from torch import Tensor, nn

from seq2seq.config.schema import ModelConfig, RecurrentConfig, TransformerConfig
from seq2seq.config.search import SearchConfig
from seq2seq.data.batches import Batch
from seq2seq.data.tokenizer import BOS, EOS
from seq2seq.model.directory import load_model_directory, save_model_directory
from seq2seq.model.translation import TranslationModel, build_model
from seq2seq.model.weights import own_weights
from seq2seq.ops.packing import Layout
from seq2seq.search.beam import BeamSearch
from seq2seq.support.errors import OutOfMemory, RunError, UserError
from seq2seq.train.loss import batch_loss
from seq2seq.translate import scoring
from seq2seq.translate.scoring import PairScore, Scorer, described, perplexity, score_pairs

VOCABULARY = 20
PAIRINGS = list(itertools.product(("transformer", "recurrent"), repeat=2))
A, B = 4, 5
Pair = tuple[list[int], list[int]]


class Bigrams(nn.Module):
    """Predicts a token from the one before it: its hidden row is that token, its logits a row of a table."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        # After bos: a three times in four, b once; after a: b or eos; after b: always eos.
        counts = torch.zeros(6, 6)
        counts[BOS, A], counts[BOS, B] = 3, 1
        counts[A, B], counts[A, EOS] = 1, 1
        counts[B, EOS] = 1
        self.output_weight = nn.Parameter(counts.log())

    def forward(self, batch: Batch) -> Tensor:
        return batch.target_in

    def logits(self, hidden: Tensor) -> Tensor:
        return self.output_weight[hidden]


def model_of(encoder: str, decoder: str) -> TranslationModel:
    kinds = {
        "transformer": TransformerConfig(num_layers=2, num_heads=4, d_ff=64),
        "recurrent": RecurrentConfig(num_layers=2),
    }
    return build_model(ModelConfig(d_model=32, encoder=kinds[encoder], decoder=kinds[decoder]), VOCABULARY, 1).eval()


def draw(count: int, seed: int = 1) -> list[Pair]:
    """Pairs of one to twelve tokens on each side, the first with nothing at all."""
    rng = random.Random(seed)
    sides = ([[rng.randrange(4, VOCABULARY) for _ in range(rng.randint(1, 12))] for _ in range(count)] for _ in "ab")
    return [([], []), *zip(*sides, strict=True)]


def test_scores_worked_out_by_hand() -> None:
    pairs: list[Pair] = [([A], [A, B]), ([A, B], [A]), ([B], [B])]
    found = score_pairs(cast(TranslationModel, Bigrams()), pairs)
    expected = [[3 / 4, 1 / 2, 1], [3 / 4, 1 / 2], [1 / 4, 1]]
    for own, pair, probabilities in zip(found, pairs, expected, strict=True):
        assert (own.source, own.target) == pair
        assert own.token_log_probs == pytest.approx([math.log(p) for p in probabilities], abs=1e-6)
        assert own.score == pytest.approx(math.log(math.prod(probabilities)), abs=1e-6)
        assert own.per_token == pytest.approx(own.score / len(probabilities))
        assert own.attention is None
    # (3/4 · 1/2 · 1 · 3/4 · 1/2 · 1/4 · 1) over seven tokens
    total, tokens = sum(own.score for own in found), sum(len(own.token_log_probs) for own in found)
    assert perplexity(total, tokens) == pytest.approx((9 / 256) ** (-1 / 7), abs=1e-6)
    assert math.isnan(perplexity(0.0, 0))


def test_what_the_model_never_says_is_not_a_score() -> None:
    with pytest.raises(RunError, match="no finite scores"):
        score_pairs(cast(TranslationModel, Bigrams()), [([A], [B, A])])


@pytest.mark.parametrize(("encoder", "decoder"), PAIRINGS)
def test_the_sum_is_the_unsmoothed_loss_of_training(encoder: str, decoder: str) -> None:
    model, pairs = model_of(encoder, decoder), draw(30)
    with torch.no_grad():
        _, nll = batch_loss(model, Batch.of_ids(pairs), 0.1)
    found = score_pairs(model, pairs, 40)
    assert -sum(own.score for own in found) == pytest.approx(float(nll), abs=1e-3)


@pytest.mark.parametrize(("encoder", "decoder"), PAIRINGS)
def test_searchs_own_outputs_get_searchs_scores(encoder: str, decoder: str) -> None:
    model = model_of(encoder, decoder)
    sources = [source for source, _ in draw(8)]
    settings = SearchConfig(beam_size=4, n_best=4, length_penalty=0.0, max_length_offset=8)
    search = BeamSearch(settings, BOS, EOS, [0, 1, 2])
    tokens = torch.tensor([token for source in sources for token in (*source, EOS)])
    hypotheses = search(model, tokens, Layout.of([len(source) + 1 for source in sources]))
    pairs = [(source, hypothesis.tokens) for source, own in zip(sources, hypotheses, strict=True) for hypothesis in own]
    assert len(pairs) > 30 and len({len(target) for _, target in pairs}) > 3
    expected = [hypothesis.score for own in hypotheses for hypothesis in own]
    assert [own.score for own in score_pairs(model, pairs)] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 15, 10_000])
def test_a_score_does_not_depend_on_the_batch(batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = model_of("transformer", "transformer"), draw(30)
    expected = [score_pairs(model, [pair])[0] for pair in pairs]
    monkeypatch.setattr(scoring, "ROWS", 7)
    for order in (range(len(pairs)), random.Random(2).sample(range(len(pairs)), len(pairs))):
        found = score_pairs(model, [pairs[index] for index in order], batch_tokens)
        for index, own in zip(order, found, strict=True):
            assert own.target == expected[index].target
            assert own.token_log_probs == pytest.approx(expected[index].token_log_probs, abs=1e-5)
    assert score_pairs(model, []) == []


@pytest.mark.parametrize(("encoder", "decoder"), PAIRINGS)
def test_attention_comes_with_the_same_scores(encoder: str, decoder: str) -> None:
    model, pairs = model_of(encoder, decoder), draw(20)
    plain = score_pairs(model, pairs)
    for own, expected in zip(score_pairs(model, pairs, 30, attention=True), plain, strict=True):
        assert own.token_log_probs == pytest.approx(expected.token_log_probs, abs=1e-5)
        assert own.attention is not None
        assert own.attention.shape == (len(own.target) + 1, len(own.source) + 1)
        torch.testing.assert_close(own.attention.sum(1), torch.ones(len(own.target) + 1))
    layers = 2 if decoder == "transformer" else 1
    for layer in (0, layers + 1):
        with pytest.raises(UserError, match=f"attention of layer {layer}: "):
            score_pairs(model, pairs, attention=True, layer=layer)


@pytest.mark.parametrize("decoder", ["transformer", "recurrent"])
def test_a_model_that_reverses_its_source_aligns_in_reverse(decoder: str) -> None:
    kinds = {
        "transformer": TransformerConfig(num_layers=1, num_heads=2, d_ff=64, dropout=0.0),
        "recurrent": RecurrentConfig(dropout=0.0),
    }
    config = ModelConfig(d_model=32, encoder=kinds["transformer"], decoder=kinds[decoder])
    model = build_model(config, VOCABULARY, 1).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rng, length = random.Random(1), 6

    def reversals(count: int) -> list[Pair]:
        sources = ([rng.randrange(4, VOCABULARY) for _ in range(length)] for _ in range(count))
        return [(source, source[::-1]) for source in sources]

    for _ in range(200):
        loss, _ = batch_loss(model, Batch.of_ids(reversals(32)), 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = score_pairs(model.eval(), reversals(100), attention=True)
    strongest = torch.stack([cast(Tensor, own.attention)[:-1, :-1].argmax(1) for own in found])
    right = strongest == torch.arange(length).flip(0)
    assert right.float().mean() > 0.9  # by chance, a sixth


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> Scorer:
    return Scorer.load(tiny_model, device="cpu")


def test_texts_are_scored_as_their_pieces(scorer: Scorer, toy_pairs: list[tuple[str, str]]) -> None:
    pairs = [*toy_pairs[:10], ("", ""), ("the dog", "")]
    encoded = [tuple(scorer.tokenizer.encode(list(pair))) for pair in pairs]
    expected = score_pairs(scorer.model, cast(list[Pair], encoded))
    # Outer blanks are none of the text, as in training.
    found = scorer.score([(f" {source}\r", f"{target}\t") for source, target in pairs])
    assert found == expected
    assert [scorer.status(own) for own in found] == [*["ok"] * 10, "empty", "empty"]


def test_what_training_never_saw_has_a_status(scorer: Scorer) -> None:
    short = Scorer(scorer.model, scorer.tokenizer, longest_source=3)
    assert [short.status(PairScore([A] * length, [A], [-1.0, -1.0])) for length in (0, 3, 4)] == ["empty", "ok", "long"]


def test_nothing_is_cut(scorer: Scorer) -> None:
    pairs = [("the dog", "das"), ("the", "das " * 50)]
    length = len(scorer.tokenizer.encode(["das " * 50])[0])
    small = Scorer(scorer.model, scorer.tokenizer, batch_tokens=20)
    with pytest.raises(UserError, match=rf"^b\.de:8: {length} pieces, eos counted, .* type --batch-tokens {length}"):
        small.score(pairs, names=("b.en", "b.de"), first=7)
    limited = Scorer(scorer.model, scorer.tokenizer, limits=(None, 10))
    with pytest.raises(UserError, match=rf"^target:2: {length} pieces, .* positions end at 10"):
        limited.score(pairs)
    limited.limits = (10, None)
    assert len(limited.score(pairs)) == 2


def test_what_does_not_fit_the_memory_is_told_with_what_would(
    scorer: Scorer, toy_pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(scoring, "token_log_probs", full)
    with pytest.raises(OutOfMemory, match=r"--batch-tokens 4096\); type --batch-tokens 2048$"):
        scorer.score(toy_pairs)
    with pytest.raises(OutOfMemory, match=r"a batch of 1 texts, .*; type --device cpu$"):
        scorer.score(toy_pairs[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_other_formats_score_about_the_same(
    scorer: Scorer, tiny_model: Path, toy_pairs: list[tuple[str, str]], dtype: torch.dtype
) -> None:
    rounded = Scorer.load(tiny_model, device="cpu", dtype=dtype)
    for own, expected in zip(rounded.score(toy_pairs[:20], attention=True), scorer.score(toy_pairs[:20]), strict=True):
        assert own.per_token == pytest.approx(expected.per_token, abs=0.1)
        assert own.attention is not None and own.attention.dtype == torch.float32


def test_links_leave_eos_out(scorer: Scorer) -> None:
    source, target = scorer.tokenizer.encode(["the dog", "das Hund"])
    attention = torch.zeros(len(target) + 1, len(source) + 1)
    attention[:, -1] = 0.6
    attention[:, 0] = 0.4
    score = PairScore(source, target, [-1.0] * (len(target) + 1), attention)
    assert scorer.links(score) == [(0, 0), (0, 1)]


def test_limits_are_those_of_the_positions(tiny_model: Path, tmp_path: Path) -> None:
    config, tokenizer, *_ = load_model_directory(tiny_model)
    for side, limit in (("encoder", 40), ("decoder", 20)):
        setattr(config.model, side, replace(getattr(config.model, side), positions="learned", max_positions=limit))
    config.data.cleaning.max_pieces = 19
    model = build_model(config.model, tokenizer.vocab_size, 1)
    save_model_directory(tmp_path / "model", config, tokenizer, own_weights(model))
    assert Scorer.load(tmp_path / "model", device="cpu").limits == (40, 20)


def test_what_just_fits_is_scored(scorer: Scorer) -> None:
    pair = ("the dog", "das Hund sieht")
    source, target = (len(ids) + 1 for ids in scorer.tokenizer.encode(list(pair)))
    exact = Scorer(scorer.model, scorer.tokenizer, max(source, target), (source, target))
    assert len(exact.score([pair])) == 1


def test_a_pair_that_is_none_is_named_by_its_number(scorer: Scorer) -> None:
    with pytest.raises(UserError, match=r"^pair 8: 'x' is not a pair"):
        scorer.score([("a", "b"), cast(Any, "x")], first=7)


def test_perplexity_is_finite() -> None:
    assert perplexity(-1e6, 1) == math.exp(700)


def test_a_text_in_parts_has_links_and_no_matrix(scorer: Scorer) -> None:
    ids = scorer.tokenizer.encode(["dog"])[0]
    part = PairScore(ids, ids, [-1.0] * (len(ids) + 1), torch.full((len(ids) + 1, len(ids) + 1), 0.1))
    assert "attention" in described(scorer.tokenizer, [part], align="matrix")
    assert described(scorer.tokenizer, [part, part], align="matrix").keys() == {"tokens", "alignment"}
