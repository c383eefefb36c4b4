"""The two-stage choice of continuations against one topk over everything."""

from __future__ import annotations

import math

import pytest
import torch

from seq2seq.ops import native, topk
from seq2seq.ops.topk import (
    BLOCK,
    Candidates,
    best_continuations,
    best_continuations_reference,
    highest,
    highest_reference,
    log_probabilities,
)


@pytest.fixture(autouse=True, params=["native", "two stages", "plain"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In C++, in two stages however few scores there are, and as PyTorch's operations do it."""
    if request.param == "native":
        if native.library() is None:
            pytest.skip("no C++ compiler here")
        return
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(topk, "MAX_SINGLE_TOPK", 0 if request.param == "two stages" else topk.MAX_SINGLE_TOPK)


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
    assert all(torch.equal(own, wanted) for own, wanted in zip(found, expected, strict=True))


@pytest.mark.parametrize("count", [1, 8, 70])
def test_it_finds_the_same_in_bfloat16(count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    log_probs = (torch.randn(6, 4, 20 * BLOCK + 3, generator=generator) * 3).bfloat16()
    scores = torch.randn(6, 4, generator=generator)
    found, hypotheses, tokens = best_continuations(log_probs, scores, count)
    expected, *_ = best_continuations_reference(log_probs.float(), scores, count)
    assert torch.equal(found, expected)
    sums, places = (scores[:, :, None] + log_probs.float()).flatten(1), hypotheses * log_probs.shape[2] + tokens
    assert torch.equal(sums.gather(1, places), found)
    assert all(len(set(own)) == count for own in places.tolist())


@pytest.mark.parametrize("count", [8, 80])
def test_which_of_equal_ones_is_chosen_does_not_depend_on_other_slots(count: int) -> None:
    log_probs = torch.randn(5, 1, 10_000, generator=torch.Generator().manual_seed(1)).bfloat16()
    scores = torch.zeros(5, 1)
    together = best_continuations(log_probs, scores, count)
    alone = best_continuations(log_probs[:1], scores[:1], count)
    assert all(torch.equal(own[0], of_all[0]) for own, of_all in zip(alone, together, strict=True))


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 10 * BLOCK - 1, 10 * BLOCK, 10 * BLOCK + 4])
def test_the_best_may_stand_anywhere_and_many_in_one_block(place: int) -> None:
    log_probs = torch.zeros(1, 2, 10 * BLOCK + 5)
    start = min(place, log_probs.shape[2] - 4)
    log_probs[0, 1, start : start + 4] = torch.tensor([1.0, 4.0, 3.0, 2.0])
    scores, hypotheses, tokens = best_continuations(log_probs, torch.tensor([[0.5, 0.0]]), 4)
    assert scores.tolist() == [[4.0, 3.0, 2.0, 1.0]]
    assert hypotheses.tolist() == [[1] * 4]
    assert tokens.tolist() == [[start + 1, start + 2, start + 3, start]]


def test_hypotheses_that_are_dead_give_nothing_while_others_can() -> None:
    log_probs = torch.randn(2, 3, 10 * BLOCK, generator=torch.Generator().manual_seed(1))
    scores = torch.tensor([[0.0, -math.inf, -math.inf]] * 2)
    found, hypotheses, _ = best_continuations(log_probs, scores, 6)
    assert (hypotheses == 0).all()
    assert torch.equal(found, best_continuations_reference(log_probs, scores, 6)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 7), (3, 4, 100), (70, 2, 1000)])
def test_two_summands_are_the_log_probabilities(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits = (10 * torch.randn(shape, generator=torch.Generator().manual_seed(1))).to(dtype)
    logits[0, 0, 3] = -math.inf
    expected = logits.double().log_softmax(-1)
    scores, sums = log_probabilities(logits.clone())
    assert sums.dtype == torch.float32
    torch.testing.assert_close(scores.double() + sums.double()[:, :, None], expected, atol=5e-6, rtol=1e-6)


def test_what_is_not_a_number_stays_so() -> None:
    logits = torch.randn(2, 3, 100, generator=torch.Generator().manual_seed(1))
    logits[1, 2, 50] = math.nan
    scores, sums = log_probabilities(logits)
    assert (scores + sums[:, :, None]).isnan().any(2).tolist() == [[False] * 3, [False, False, True]]


@pytest.mark.parametrize(("slots", "candidates", "count"), [(1, 8, 4), (3, 8, 8), (2, 1, 1), (0, 8, 4), (2000, 8, 4)])
def test_the_highest_candidates_are_those_of_one_topk(slots: int, candidates: int, count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    scores_SC = torch.randn(slots, candidates, generator=generator)
    # As where some have ended: as many as are wanted go on.
    if candidates == 2 * count:
        scores_SC[:, 1::2] = -math.inf
    parents_SC = torch.randint(4, (slots, candidates), generator=generator)
    tokens_SC = torch.arange(slots * candidates).view(slots, candidates)
    # A part of more, as search may have them.
    given = Candidates(torch.cat((scores_SC, scores_SC), 1)[:, :candidates], parents_SC, tokens_SC)
    for found, wanted in zip(highest(given, count), highest_reference(given, count), strict=True):
        assert torch.equal(found, wanted)


def test_a_candidate_that_there_is_not_has_no_score() -> None:
    scores_SC = torch.tensor([[-math.inf, -1.0, -math.inf, -math.inf]])
    scores, _, tokens = highest(Candidates(scores_SC, torch.zeros(1, 4, dtype=torch.int64), torch.arange(4)[None]), 2)
    assert scores.tolist() == [[-1.0, -math.inf]] and int(tokens[0, 0]) == 1
