"""The best continuations of each sentence in search, beside the plain reference.

The largest of all scores lie in the blocks of the vocabulary with the largest maxima, so a pass that only takes maxima
leaves few scores to be sorted. One `topk` over whole rows was 2.8 ms where two stages are 0.6 (256 rows of 8,000, one
thread). Log-probabilities need not be written down for it: they are the logits less one number for each row.

Shapes: S slots, K hypotheses of each, V vocabulary, C candidates, N blocks of B pieces.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seq2seq.ops import native

BLOCK = 64
MANY = 64
"""Continuations up to which inserting each into a sorted list is quick."""
FEW = 1 << 14
"""Scores up to which one `topk` is quicker: those of a single hypothesis."""


def log_probabilities(logits_SKV: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax(logits) as two summands: [S, K, V], which may be the logits themselves, and [S, K] in float32.

    The plain reference is `log_softmax`, whose second summand is 0.
    """
    slots, width, vocabulary = logits_SKV.shape
    sums_SK = torch.zeros(slots, width, device=logits_SKV.device)
    if not native.can_compute(logits_SKV):
        return logits_SKV.log_softmax(-1, dtype=torch.float32), sums_SK
    logits_SKV = logits_SKV.contiguous()
    native.call("log_sum_exp", logits_SKV, sums_SK, slots * width, vocabulary)
    return logits_SKV, -sums_SK


def best_continuations_reference(log_probs_SKV: Tensor, scores_SK: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest sums of a hypothesis' score and a token's log-probability in each slot, highest first.

    Returns the sums [S, C], and where they are, K-place · V + token [S, C].
    """
    scores_SC, places_SC = (scores_SK[:, :, None] + log_probs_SKV).flatten(1).topk(count)
    return scores_SC, places_SC


def best_continuations(log_probs_SKV: Tensor, scores_SK: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same; of equal sums any may come first."""
    slots, width, vocabulary = log_probs_SKV.shape
    if count <= MANY and native.can_compute(log_probs_SKV):
        found_SC = scores_SK.new_empty(slots, count)
        places_SC = torch.empty(slots, count, dtype=torch.int64)
        tensors = (log_probs_SKV.contiguous(), scores_SK.contiguous(), found_SC, places_SC)
        native.call("best", *tensors, slots, width, vocabulary, count)
        return found_SC, places_SC
    whole = vocabulary // BLOCK
    if count > width * whole or log_probs_SKV.numel() <= FEW:
        return best_continuations_reference(log_probs_SKV, scores_SK, count)
    maxima_SKN = log_probs_SKV[:, :, : whole * BLOCK].unflatten(2, (whole, BLOCK)).amax(3)
    if vocabulary % BLOCK:
        maxima_SKN = torch.cat((maxima_SKN, log_probs_SKV[:, :, whole * BLOCK :].amax(2, keepdim=True)), 2)
    blocks = maxima_SKN.shape[2]
    chosen_SC = (scores_SK[:, :, None] + maxima_SKN).flatten(1).topk(count, sorted=False)[1]
    rows_SC = chosen_SC // blocks
    tokens_SCB = (chosen_SC % blocks * BLOCK)[:, :, None] + torch.arange(BLOCK, device=chosen_SC.device)
    places_SCB = rows_SC[:, :, None] * vocabulary + tokens_SCB.clamp(max=vocabulary - 1)
    found_SCB = log_probs_SKV.reshape(slots, -1).gather(1, places_SCB.flatten(1)).view_as(places_SCB)
    found_SCB = found_SCB + scores_SK.gather(1, rows_SC)[:, :, None]
    if vocabulary % BLOCK:
        found_SCB = found_SCB.masked_fill(tokens_SCB >= vocabulary, -math.inf)
    scores_SC, best_SC = found_SCB.flatten(1).topk(count)
    return scores_SC, places_SCB.flatten(1).gather(1, best_SC)
