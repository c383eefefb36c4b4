"""Beam search against all outputs there are, a plain argmax loop, a search over lists, and itself in other batches."""

from __future__ import annotations

import copy
import math
import random
from functools import cache

import pytest
import torch
from torch import Tensor

from seq2seq.config.schema import ModelConfig, RecurrentConfig, TransformerConfig
from seq2seq.config.search import SearchConfig
from seq2seq.model.translation import TranslationModel, build_model
from seq2seq.ops.packing import Layout
from seq2seq.search import beam as module
from seq2seq.search.beam import BeamSearch
from tests.search.toy import (
    BOS,
    EOS,
    FREE,
    NEVER,
    SOURCES,
    WORDS,
    Exact,
    Prefix,
    ToyModel,
    ToyState,
    all_outputs,
    assert_same,
    limit_of,
    log_probabilities,
    run,
    score_of,
)
from tools.plain_search import Uncached


def by_lists(seed: int, source: Prefix, config: SearchConfig) -> list[Exact]:
    """Beam search over Python lists: no stop but the simple one, no batch, no cache."""
    limit = limit_of(source, config)
    live: list[tuple[float, Prefix]] = [(0.0, ())]
    finished: list[Exact] = []
    ended = 0
    for length in range(1, limit + 1):
        candidates = [
            (total + log_probabilities(seed, source, words)[token], (*words, token))
            for total, words in live
            for token in [EOS] + (WORDS if length < limit else [])
        ]
        best = sorted(candidates, reverse=True)[: 2 * config.beam_size]
        for total, tokens in best:
            if tokens[-1] == EOS:
                penalty = ((5 + length) / 6) ** config.length_penalty
                finished.append(Exact(list(tokens[:-1]), total / penalty))
        live = [candidate for candidate in best if candidate[1][-1] != EOS][: config.beam_size]
        ended += sum(tokens[-1] == EOS for _, tokens in best[: config.beam_size])
        if config.stop == "beam" and ended >= config.beam_size:
            break
    return sorted(finished, key=lambda exact: -exact.score)[: config.n_best]


def by_argmax(seed: int, source: Prefix, config: SearchConfig) -> Exact:
    words: Prefix = ()
    for _ in range(limit_of(source, config) - 1):
        scores = log_probabilities(seed, source, words)
        token = max([EOS, *WORDS], key=lambda candidate: scores[candidate])
        if token == EOS:
            break
        words = (*words, token)
    return Exact(list(words), score_of(seed, source, words, config.length_penalty))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
def test_a_beam_that_holds_all_prefixes_finds_the_best_of_all_outputs(seed: int, alpha: float) -> None:
    # At most FREE³ prefixes are alive before the last of four tokens.
    config = SearchConfig(
        beam_size=FREE**3, length_penalty=alpha, max_length_ratio=0.0, max_length_offset=4, n_best=FREE**3
    )
    for source, found in zip(SOURCES, run(ToyModel(seed), SOURCES, config), strict=True):
        assert_same(found, all_outputs(seed, source, 4, alpha)[: config.n_best])


@pytest.mark.parametrize("kind", ["average", "none"])
def test_other_normalizations_are_exact_too(kind: str) -> None:
    config = SearchConfig(FREE**3, max_length_ratio=0.0, max_length_offset=4, n_best=5, length_normalization=kind)
    for source, found in zip(SOURCES, run(ToyModel(6), SOURCES, config), strict=True):
        totals = all_outputs(6, source, 4, 0.0)
        divided = [Exact(words, score / (len(words) + 1 if kind == "average" else 1)) for words, score in totals]
        assert_same(found, sorted(divided, key=lambda exact: -exact.score)[:5])


@pytest.mark.parametrize("n_best", [1, 3])
def test_limits_that_differ_in_a_batch_are_exact_too(n_best: int) -> None:
    config = SearchConfig(
        beam_size=FREE**3, length_penalty=0.6, max_length_ratio=1.0, max_length_offset=1, n_best=n_best
    )
    for source, found in zip(SOURCES, run(ToyModel(9), SOURCES, config), strict=True):
        assert_same(found, all_outputs(9, source, len(source) + 1, 0.6)[:n_best])


def test_fewer_outputs_than_asked_for_are_all_given() -> None:
    config = SearchConfig(beam_size=8, max_length_ratio=0.0, max_length_offset=2, n_best=8)
    for source, found in zip(SOURCES, run(ToyModel(1), SOURCES, config), strict=True):
        assert_same(found, all_outputs(1, source, 2, config.length_penalty))
        assert len(found) == 1 + FREE


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("beam_size", "n_best"), [(2, 1), (3, 2), (4, 4)])
@pytest.mark.parametrize("stop", ["exact", "beam"])
def test_narrow_beams_are_those_of_a_search_over_lists(seed: int, beam_size: int, n_best: int, stop: str) -> None:
    config = SearchConfig(beam_size=beam_size, length_penalty=0.6, max_length_offset=6, n_best=n_best, stop=stop)
    for source, found in zip(SOURCES, run(ToyModel(seed), SOURCES, config), strict=True):
        assert_same(found, by_lists(seed, source, config))


@pytest.mark.parametrize("seed", range(20))
def test_a_beam_of_one_is_the_argmax_loop(seed: int) -> None:
    config = SearchConfig(beam_size=1, length_penalty=0.6, max_length_offset=6)
    for source, found in zip(SOURCES, run(ToyModel(seed), SOURCES, config), strict=True):
        assert_same(found, [by_argmax(seed, source, config)])


class Biased(ToyModel):
    """A toy that wants one token above all."""

    def __init__(self, seed: int, token: int) -> None:
        super().__init__(seed)
        self.token = token

    def step(self, state: ToyState, tokens: Tensor, parents: Tensor) -> Tensor:
        logits = super().step(state, tokens, parents)
        logits[:, :, self.token] += 300.0
        return logits


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("token", NEVER)
def test_what_is_never_generated_never_appears(token: int, beam_size: int) -> None:
    config = SearchConfig(beam_size=beam_size, max_length_offset=6, n_best=beam_size)
    for found in run(Biased(3, token), SOURCES, config):
        assert found
        for hypothesis in found:
            assert not {*hypothesis.tokens} & {*NEVER, EOS}
            assert math.isfinite(hypothesis.score)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize(("ratio", "offset"), [(0.0, 1), (0.0, 4), (1.0, 2), (1.6, 1)])
def test_eos_is_forced_at_the_limit_and_counts(ratio: float, offset: int, beam_size: int) -> None:
    config = SearchConfig(beam_size=beam_size, length_penalty=1.0, max_length_ratio=ratio, max_length_offset=offset)
    model = Biased(3, WORDS[0])
    for source, (best, *_) in zip(SOURCES, run(model, SOURCES, config), strict=True):
        limit = limit_of(source, config)
        assert best.tokens == WORDS[:1] * (limit - 1)
        # The forced eos, 300 below the word, is not free.
        assert best.score < -250 / ((5 + limit) / 6)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_no_output_is_longer_than_the_model_can_make(beam_size: int) -> None:
    # Sources of 3, 6 and 1 tokens: limits of 4, 7 and 2, of which the model can do 4.
    sources: list[Prefix] = [(4, 5, 3), (4, 5, 6, 4, 5, 3), (3,)]
    config = SearchConfig(beam_size=beam_size, max_length_offset=1)
    tokens, layout = torch.tensor([token for source in sources for token in source]), Layout.of([3, 6, 1])
    model = Biased(1, WORDS[0])
    found = BeamSearch(config, BOS, EOS, NEVER, max_length=4)(model, tokens, layout)
    assert [len(hypotheses[0].tokens) + 1 for hypotheses in found] == [4, 4, 2]
    assert all(hypotheses[0].limited for hypotheses in found)


def test_a_model_that_ends_at_once_gives_empty_outputs() -> None:
    for found in run(Biased(3, EOS), SOURCES, SearchConfig(beam_size=2)):
        assert found[0].tokens == [] and not found[0].limited
        assert found[0].score == pytest.approx(0, abs=1e-3)


class EndsOnSchedule(ToyModel):
    """Ends the sentence of source (4, 3) at once, those of others after as many words as they have tokens."""

    def step(self, state: ToyState, tokens: Tensor, parents: Tensor) -> Tensor:
        logits = super().step(state, tokens, parents)
        for rows, (source, of_slot) in zip(logits, state.rows, strict=True):
            for row, fed in zip(rows, of_slot, strict=True):
                row[EOS] += 40.0 if len(fed) > (0 if source == (4, 3) else len(source)) else -40.0
        return logits


def test_finished_sentences_leave_the_batch() -> None:
    model = EndsOnSchedule(3)
    found = run(model, SOURCES, SearchConfig(beam_size=2))
    assert [len(hypotheses[0].tokens) for hypotheses in found] == [0, 3, 1, 2]
    assert model.state is not None
    assert model.state.slots == [4, 3, 2, 1]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("beam_size", "n_best", "alpha"), [(2, 1, 0.6), (4, 1, 0.0), (4, 2, 1.5), (4, 4, 0.6)])
def test_stopping_early_does_not_change_the_result(
    monkeypatch: pytest.MonkeyPatch, seed: int, beam_size: int, n_best: int, alpha: float
) -> None:
    config = SearchConfig(beam_size=beam_size, length_penalty=alpha, max_length_offset=8, n_best=n_best)
    model, patient = ToyModel(seed), ToyModel(seed)
    found = run(model, SOURCES, config)
    monkeypatch.setattr(module.Beams, "decided", lambda beams: beams.rules.limits <= beams.prefixes.shape[2])
    assert run(patient, SOURCES, config) == found
    assert model.state is not None
    assert patient.state is not None
    assert sum(model.state.slots) <= sum(patient.state.slots) == sum(limit_of(source, config) for source in SOURCES)


def test_stopping_early_saves_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = []
    for patient in (False, True):
        if patient:
            monkeypatch.setattr(module.Beams, "decided", lambda beams: beams.rules.limits <= beams.prefixes.shape[2])
        model = ToyModel(1)
        run(model, SOURCES, SearchConfig(beam_size=2, max_length_offset=8))
        assert model.state is not None
        slots.append(sum(model.state.slots))
    assert slots[0] < slots[1]


@cache
def real_model(kind: str) -> TranslationModel:
    settings = TransformerConfig(num_layers=2, num_heads=2, d_ff=32) if kind == "transformer" else RecurrentConfig()
    config = ModelConfig(d_model=16, tie_embeddings="none", encoder=settings, decoder=settings)
    model = build_model(config, 20, seed=2).eval()
    with torch.no_grad():
        # As drawn, all pieces are about equally likely and the source hardly counts; a trained model has preferences.
        model.output_weight.mul_(6)
        for name, parameter in model.named_parameters():
            if "encoder" in name or "attention" in name:
                parameter.mul_(2 if kind == "transformer" else 3)
    return model


@pytest.mark.parametrize("kind", ["transformer", "recurrent"])
@pytest.mark.parametrize(("beam_size", "n_best"), [(1, 1), (4, 1), (4, 3)])
def test_results_do_not_depend_on_the_batch(kind: str, beam_size: int, n_best: int) -> None:
    draw = random.Random(4)
    sources = [(*(draw.randrange(4, 20) for _ in range(length)), EOS) for length in (1, 7, 3, 12, 5, 5, 2, 9)]
    config = SearchConfig(beam_size=beam_size, n_best=n_best, max_length_offset=5, length_penalty=1.0)
    together = run(real_model(kind), sources, config)
    assert len({len(found[0].tokens) for found in together}) > 2, "outputs of several lengths are needed to show it"
    backwards = run(real_model(kind), sources[::-1], config)[::-1]
    alone = [run(real_model(kind), [source], config)[0] for source in sources]
    for others in (backwards, alone):
        for found, expected in zip(others, together, strict=True):
            assert [hypothesis.tokens for hypothesis in found] == [hypothesis.tokens for hypothesis in expected]
            for one, other in zip(found, expected, strict=True):
                assert one.score == pytest.approx(other.score, abs=1e-4)


def test_searching_leaves_no_gradient() -> None:
    parameter = torch.zeros(1, requires_grad=True)

    class Learnt(ToyModel):
        def step(self, state: ToyState, tokens: Tensor, parents: Tensor) -> Tensor:
            logits = super().step(state, tokens, parents) + parameter
            assert not logits.requires_grad
            return logits

    assert run(Learnt(1), SOURCES, SearchConfig())[0]


@pytest.mark.parametrize("kind", ["transformer", "recurrent"])
@pytest.mark.parametrize("beam_size", [1, 4])
def test_the_fast_path_finds_what_whole_passes_find(kind: str, beam_size: int) -> None:
    draw = random.Random(8)
    sources = [(*(draw.randrange(4, 20) for _ in range(length)), EOS) for length in (1, 7, 3, 12, 5, 9)]
    config = SearchConfig(beam_size=beam_size, max_length_offset=20, length_penalty=1.0)
    model = real_model(kind)
    plain = run(Uncached(model), sources, config)
    assert len({len(found[0].tokens) for found in plain}) > 2, "outputs of several lengths are needed to show it"
    placed = copy.deepcopy(model).place(torch.device("cpu"), torch.float32)
    for fast in (model, placed):
        for found, expected in zip(run(fast, sources, config), plain, strict=True):
            assert [hypothesis.tokens for hypothesis in found] == [hypothesis.tokens for hypothesis in expected]
            assert found[0].score == pytest.approx(expected[0].score, abs=1e-4)


def test_a_model_that_has_searched_can_be_trained_on() -> None:
    of_side = TransformerConfig(num_layers=1, num_heads=2, d_ff=8)
    config = ModelConfig(d_model=8, encoder=of_side, decoder=of_side)
    model, source, layout = build_model(config, 11, seed=1), torch.randint(4, 11, (600,)), Layout.of([600])
    search = BeamSearch(SearchConfig(max_length=3), bos=BOS, eos=EOS, never_generated=[])
    # Longer than any before: the table of positions grows in search.
    search(model.eval(), source, layout)
    model.train()
    memory = model.encode(source, layout)
    model.decoder(source, layout, memory).sum().backward()
    assert all(weight.grad is not None for weight in model.get_submodule("encoder").parameters())
