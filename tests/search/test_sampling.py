"""Sampling: the right distribution, and the same sample for the same seed and sentence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from seq2seq.config.search import SearchConfig
from seq2seq.ops.packing import Layout
from seq2seq.search.sampling import draw, uniforms
from tests.search.toy import EOS, SOURCES, WORDS, Prefix, ToyModel, log_probabilities, run, score_of

ROW = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])
MANY = 20_000


def shares(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    """How often each token is drawn by evenly spread numbers: its probability, to 1 / MANY."""
    even = (torch.arange(MANY, dtype=torch.float64) + 0.5) / MANY
    tokens = draw(ROW.log().expand(1, MANY, -1), even[None], temperature, top_k, top_p)
    return [float((tokens == token).double().mean()) for token in range(len(ROW))]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ROW.tolist()),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 9}, ROW.tolist()),
        # 0.4 + 0.3 is not yet 0.75: the third is needed too.
        ({"top_p": 0.75}, [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85]),
        ({"top_p": 1e-9}, [0, 1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"temperature": 0.5}, (ROW**2 / (ROW**2).sum()).tolist()),
        ({"temperature": 1e-3}, [0, 1, 0, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_they_should(settings: dict[str, float], expected: list[float]) -> None:
    assert shares(**settings) == pytest.approx(expected, abs=2 / MANY)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_what_is_impossible_is_never_drawn(number: float) -> None:
    row = torch.tensor([-math.inf, 0.5, 0.5, -math.inf]).log_softmax(-1)
    for settings in ((0, 1.0), (4, 1.0), (0, 0.9)):
        token = draw(row[None, None], torch.tensor([[number]], dtype=torch.float64), 1.0, *settings)
        assert int(token) in (1, 2)


def test_numbers_depend_on_seed_and_sentence_alone() -> None:
    first, second = uniforms([[4, 3], [5, 3]], 1, 2, 10)
    assert not torch.equal(first, second)
    assert torch.equal(uniforms([[5, 3]], 1, 2, 10)[0], second)
    assert torch.equal(uniforms([[5, 3]], 1, 2, 25)[0, :, :10], second), "longer sentences beside it change nothing"
    assert not torch.equal(uniforms([[5, 3]], 2, 2, 10)[0], second)
    assert float(first.min()) >= 0 and float(first.max()) < 1


def test_samples_have_the_models_scores_and_do_not_depend_on_company() -> None:
    config = SearchConfig(sampling=True, n_best=5, max_length_offset=8, length_penalty=0.6)
    together = run(ToyModel(1), SOURCES, config)
    assert run(ToyModel(1), SOURCES[::-1], config)[::-1] == together
    for source, found in zip(SOURCES, together, strict=True):
        assert run(ToyModel(1), [source], config) == [found]
        assert len(found) == 5
        for hypothesis in found:
            if not hypothesis.limited:
                assert hypothesis.score == pytest.approx(score_of(1, source, tuple(hypothesis.tokens), 0.6), abs=1e-5)
    outputs = {tuple(hypothesis.tokens) for found in together for hypothesis in found}
    assert len(outputs) > 8, "samples differ"
    assert run(ToyModel(1), SOURCES, SearchConfig(sampling=True, n_best=5, max_length_offset=8, seed=2)) != together


class Deaf(ToyModel):
    """A toy to which all sentences are the same."""

    def encode(self, tokens: Tensor, layout: Layout) -> list[Prefix]:
        return [(3,)] * len(super().encode(tokens, layout))


def test_sentences_come_as_often_as_they_should() -> None:
    count = 3000
    sources: list[Prefix] = [(4 + number, 3) for number in range(count)]
    config = SearchConfig(sampling=True, max_length_ratio=0.0, max_length_offset=2)
    found = [tuple(hypotheses[0].tokens) for hypotheses in run(Deaf(3), sources, config)]
    # The second token is eos, as there is no room for more: how often the first one comes is the question.
    row = log_probabilities(3, (3,), ())
    weights = {words: math.exp(row[token]) for words, token in [((), EOS), *(((word,), word) for word in WORDS)]}
    for words, weight in weights.items():
        share = weight / sum(weights.values())
        assert found.count(words) / count == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / count))
