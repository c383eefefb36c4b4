"""The two-stage choice of continuations against one topk over everything."""

from __future__ import annotations

import math

import pytest
import torch

from seq2seq.ops import topk
from seq2seq.ops.topk import BLOCK, best_continuations, best_continuations_reference


@pytest.fixture(autouse=True, params=[0, topk.FEW])
def _few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two stages however few scores there are, and as it is."""
    monkeypatch.setattr(topk, "FEW", request.param)


@pytest.mark.parametrize("vocabulary", [7, BLOCK, BLOCK + 1, 20 * BLOCK - 1, 20 * BLOCK, 20 * BLOCK + 3])
@pytest.mark.parametrize(("width", "count"), [(1, 1), (1, 2), (4, 8), (5, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_it_finds_what_one_topk_finds(vocabulary: int, width: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(6, width, vocabulary, generator=generator).log_softmax(-1)
    log_probs[:, :, :3] = -math.inf
    scores = torch.randn(6, width, generator=generator)
    found, expected = (
        choose(log_probs, scores, count) for choose in (best_continuations, best_continuations_reference)
    )
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 10 * BLOCK - 1, 10 * BLOCK, 10 * BLOCK + 4])
def test_the_best_may_stand_anywhere_and_many_in_one_block(place: int) -> None:
    log_probs = torch.zeros(1, 2, 10 * BLOCK + 5)
    start = min(place, log_probs.shape[2] - 4)
    log_probs[0, 1, start : start + 4] = torch.tensor([1.0, 4.0, 3.0, 2.0])
    scores, places = best_continuations(log_probs, torch.tensor([[0.5, 0.0]]), 4)
    assert scores.tolist() == [[4.0, 3.0, 2.0, 1.0]]
    assert (places - log_probs.shape[2]).tolist() == [[start + 1, start + 2, start + 3, start]]


def test_hypotheses_that_are_dead_give_nothing_while_others_can() -> None:
    log_probs = torch.randn(2, 3, 10 * BLOCK, generator=torch.Generator().manual_seed(1))
    scores = torch.tensor([[0.0, -math.inf, -math.inf]] * 2)
    found, places = best_continuations(log_probs, scores, 6)
    assert (places < 10 * BLOCK).all()
    assert torch.equal(found, best_continuations_reference(log_probs, scores, 6)[0])
