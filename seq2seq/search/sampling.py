"""Sampling: tokens drawn at random, reproducibly.

Shapes: S slots, K samples of each, V vocabulary, L the longest output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def uniforms(sources: Iterable[list[int]], seed: int, samples: int, longest: int) -> Tensor:
    """Numbers in [0, 1), one for each draw, [S, K, L]; they depend on seed, source sentence and `samples` alone.

    So a sample is the same whatever the other sentences, their order and the number of processes.
    """
    drawn = []
    for source in sources:
        digest = hashlib.blake2b(repr((seed, source)).encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        # Step by step, so that longer sentences in the same batch change nothing.
        drawn.append(torch.rand(longest, samples, generator=generator, dtype=torch.float64).T)
    return torch.stack(drawn)


def draw(log_probs_SKV: Tensor, uniforms_SK: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """A token [S, K] for each row of log-probabilities and each number in [0, 1).

    `top_k` and `top_p` (Holtzman et al., 2020) restrict the draw to the likeliest tokens; at least one remains.
    """
    scores_SKV, tokens_SKV = log_probs_SKV.double() / temperature, None
    if top_k or top_p < 1:
        scores_SKV, tokens_SKV = scores_SKV.topk(min(top_k or scores_SKV.shape[2], scores_SKV.shape[2]))
    probabilities_SKV = scores_SKV.softmax(-1)
    if top_p < 1:
        before_SKV = probabilities_SKV.cumsum(-1) - probabilities_SKV
        probabilities_SKV = probabilities_SKV.masked_fill(before_SKV >= top_p, 0.0)
    reached_SKV = probabilities_SKV.cumsum(-1)
    total_SK1 = reached_SKV[..., -1:]
    # Below the total even after rounding, so that the token found has a probability above 0.
    wanted_SK1 = torch.minimum(uniforms_SK[:, :, None] * total_SK1, total_SK1.nextafter(torch.zeros_like(total_SK1)))
    # Where every token is forbidden, probabilities are NaN: any token will do, its score is −∞.
    places_SK1 = torch.searchsorted(reached_SKV, wanted_SK1, right=True).clamp_(max=reached_SKV.shape[2] - 1)
    return (places_SK1 if tokens_SKV is None else tokens_SKV.gather(2, places_SK1))[..., 0]
