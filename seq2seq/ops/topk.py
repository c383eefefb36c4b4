"""The best continuations of each sentence in search, alongside the plain reference.

The highest scores lie in the blocks of the vocabulary with the largest maxima, so a pass that only takes maxima leaves
few scores to sort. One `topk` over whole rows took 2.8 ms where two stages take 0.6 (256 rows of 8,000, one thread).
Log-probabilities need not be materialised for it: they are the logits minus one number per row.

Shapes: S slots, K hypotheses of each, V vocabulary, C candidates, N blocks of B pieces.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from seq2seq.ops import gpu, native

BLOCK = 64
MAX_INSERTED = 64
"""Continuations up to which inserting each into a sorted list is fast."""
MAX_SINGLE_TOPK = 1 << 14
"""Scores per slot up to which one `topk` is faster: those of a single hypothesis."""
LOGITS_OF_GPU = 4096
"""Logits of a row that the GPU kernels read at a time."""
MAX_COUNT_OF_GPU, MAX_BLOCKS_OF_GPU = 16, 8192
"""Continuations and blocks per slot up to which a GPU kernel chooses: it takes one at a time from among all."""


class Candidates(NamedTuple):
    """Continuations, [S, C] each: scores (−∞: there is none), the hypotheses that they continue, tokens."""

    scores: Tensor
    parents: Tensor
    tokens: Tensor


def highest_reference(candidates: Candidates, count: int) -> Candidates:
    """The `count` candidates of each slot with the highest scores, highest first."""
    scores_SC, kept_SK = candidates.scores.topk(count)
    return Candidates(scores_SC, candidates.parents.gather(1, kept_SK), candidates.tokens.gather(1, kept_SK))


def highest(candidates: Candidates, count: int) -> Candidates:
    """`highest_reference` in one call of C++ where it can be.

    Equal scores come in any order, and any candidate may stand in for one with a score of −∞ or NaN.
    """
    if not native.supports_inference(candidates.scores):
        return highest_reference(candidates, count)
    slots, given = candidates.scores.shape
    assert count <= given
    found = Candidates(*(x.new_empty(slots, count) for x in candidates))
    native.call("highest", *(x.contiguous() for x in candidates), *found, slots, given, count)
    return found


def log_probabilities(logits_SKV: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax(logits) as two summands: [S, K, V], which may be the logits themselves, and [S, K] in float32.

    The plain reference is `log_softmax`, with 0 as the second summand.
    """
    slots, width, vocabulary = logits_SKV.shape
    sums_SK = torch.empty(slots, width, device=logits_SKV.device)
    logits_SKV = logits_SKV.contiguous()
    if native.supports_inference(logits_SKV):
        native.call("negative_log_sum_exp", logits_SKV, sums_SK, slots * width, vocabulary)
    elif gpu.supports_inference(logits_SKV):
        negative_log_sum_exp_on_gpu(logits_SKV, sums_SK)
    else:
        return logits_SKV.log_softmax(-1, dtype=torch.float32), sums_SK.zero_()
    return logits_SKV, sums_SK


def negative_log_sum_exp_on_gpu(logits: Tensor, out: Tensor) -> None:
    """−log Σexp of each row of logits [..., V] into `out` [...], by our kernel."""
    from seq2seq.ops import gpu_search_kernels

    vocabulary = logits.shape[-1]
    gpu_search_kernels.negative_log_sum_exp[(out.numel(),)](
        logits, out, V=vocabulary, BLOCK=min(LOGITS_OF_GPU, gpu.next_power_of_2(vocabulary)), num_warps=8
    )


def best_continuations_reference(log_probs_SKV: Tensor, scores_SK: Tensor, count: int) -> Candidates:
    """The `count` highest sums of a hypothesis' score and a token's log-probability in each slot, highest first."""
    scores_SC, flat_SC = (scores_SK[:, :, None] + log_probs_SKV).flatten(1).topk(count)
    vocabulary = log_probs_SKV.shape[2]
    return Candidates(scores_SC, flat_SC // vocabulary, flat_SC % vocabulary)


def best_continuations(log_probs_SKV: Tensor, scores_SK: Tensor, count: int) -> Candidates:
    """`best_continuations_reference` by the fastest way there is; equal sums come in any order."""
    slots, width, vocabulary = log_probs_SKV.shape
    assert count <= width * vocabulary
    if count <= MAX_INSERTED and native.supports_inference(log_probs_SKV):
        found = Candidates(scores_SK.new_empty(slots, count), *torch.empty(2, slots, count, dtype=torch.int64))
        tensors = (log_probs_SKV.contiguous(), scores_SK.contiguous(), *found)
        native.call("best", *tensors, slots, width, vocabulary, count)
        return found
    on_gpu, blocks = gpu.supports_inference(log_probs_SKV), -(-vocabulary // BLOCK)
    if on_gpu and count <= min(width * blocks, MAX_COUNT_OF_GPU) and width * blocks <= MAX_BLOCKS_OF_GPU:
        return best_continuations_on_gpu(log_probs_SKV, scores_SK, count)
    if count > width * (vocabulary // BLOCK) or log_probs_SKV[0].numel() <= MAX_SINGLE_TOPK:
        return best_continuations_reference(log_probs_SKV, scores_SK, count)
    maxima_SKN = block_maxima_on_gpu(log_probs_SKV) if on_gpu else block_maxima(log_probs_SKV)
    chosen_SC = (scores_SK[:, :, None] + maxima_SKN).flatten(1).topk(count, sorted=False)[1]
    rows_SC = chosen_SC // blocks
    tokens_SCB = (chosen_SC % blocks * BLOCK)[:, :, None] + torch.arange(BLOCK, device=chosen_SC.device)
    places_SCB = rows_SC[:, :, None] * vocabulary + tokens_SCB.clamp(max=vocabulary - 1)
    found_SCB = log_probs_SKV.reshape(slots, -1).gather(1, places_SCB.flatten(1)).view_as(places_SCB)
    found_SCB = found_SCB + scores_SK.gather(1, rows_SC)[:, :, None]
    if vocabulary % BLOCK:
        found_SCB = found_SCB.masked_fill(tokens_SCB >= vocabulary, -math.inf)
    scores_SC, best_SC = found_SCB.flatten(1).topk(count)
    return Candidates(scores_SC, rows_SC.gather(1, best_SC // BLOCK), tokens_SCB.flatten(1).gather(1, best_SC))


def best_continuations_on_gpu(log_probs_SKV: Tensor, scores_SK: Tensor, count: int) -> Candidates:
    """`best_continuations_reference` by our kernels; equal sums always come in the same order."""
    from seq2seq.ops import gpu_search_kernels

    slots, width, vocabulary = log_probs_SKV.shape
    maxima_SKN = block_maxima_on_gpu(log_probs_SKV)
    blocks = maxima_SKN.shape[2]
    found_SC = scores_SK.new_empty(slots, count)
    # Allocated separately: for tensors with an unaligned start, the kernel would be compiled once more.
    found = Candidates(found_SC, *(torch.empty_like(found_SC, dtype=torch.int64) for _ in range(2)))
    tensors = (log_probs_SKV.contiguous(), maxima_SKN, scores_SK.contiguous(), *found)
    gpu_search_kernels.best_of_blocks[(slots,)](
        *tensors, K=width, V=vocabulary, N=blocks, SIZE=BLOCK, COUNT=count,
        P=gpu.next_power_of_2(width * blocks), PC=gpu.next_power_of_2(count), num_warps=8,
    )  # fmt: skip
    return found


def block_maxima(scores_SKV: Tensor) -> Tensor:
    """The maximum of each block of scores, [S, K, N]; the last block may be smaller."""
    whole = scores_SKV.shape[2] // BLOCK * BLOCK
    maxima_SKN = scores_SKV[:, :, :whole].unflatten(2, (-1, BLOCK)).amax(3)
    if whole == scores_SKV.shape[2]:
        return maxima_SKN
    return torch.cat((maxima_SKN, scores_SKV[:, :, whole:].amax(2, keepdim=True)), 2)


def block_maxima_on_gpu(scores_SKV: Tensor) -> Tensor:
    """`block_maxima` by our kernel."""
    from seq2seq.ops import gpu_search_kernels

    slots, width, vocabulary = scores_SKV.shape
    out_SKN = scores_SKV.new_empty(slots, width, -(-vocabulary // BLOCK))
    gpu_search_kernels.block_maxima[(slots * width,)](
        scores_SKV.contiguous(), out_SKN, V=vocabulary, SIZE=BLOCK, BLOCKS=LOGITS_OF_GPU // BLOCK, num_warps=8
    )
    return out_SKN
