"""Phrases that an output must contain: dynamic beam allocation by how much of them is there (Post and Vilar, 2018).

Hypotheses with equally many tokens of the phrases form a bank. Each bank that has candidates gets its share of the
beam, so that hypotheses that already contain a phrase are not crowded out by those that do not, which are nearly always
more probable; and the next token of a phrase is always a candidate. Phrases may overlap in the output; one that is
required twice need occur only once.

Shapes: S slots, K hypotheses of each, V vocabulary, T tokens so far, N candidates, J phrases of at most P tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seq2seq.ops.topk import Candidates
from seq2seq.search.interfaces import Slots


class RequiredPhrases:
    """The phrases of each sentence of a batch, as lists of token ids, and which of them each hypothesis contains."""

    def __init__(self, phrases: list[list[list[int]]], device: torch.device) -> None:
        most = max(len(of_one) for of_one in phrases)
        longest = max(len(phrase) for of_one in phrases for phrase in of_one)
        # −1, which is no token, pads phrases shorter than the longest and stands for missing phrases.
        padded = [[phrase + [-1] * (longest - len(phrase)) for phrase in of_one] for of_one in phrases]
        padded = [of_one + [[-1] * longest] * (most - len(of_one)) for of_one in padded]
        self.phrases_SJP = torch.tensor(padded, device=device)
        self.lengths_SJ = (self.phrases_SJP >= 0).sum(2)
        self.held_SKJ = (self.lengths_SJ == 0)[:, None]

    def keep(self, slots: Tensor) -> None:
        """Keep only these slots."""
        self.phrases_SJP, self.lengths_SJ = self.phrases_SJP[slots], self.lengths_SJ[slots]
        self.held_SKJ = self.held_SKJ[slots]

    def matched(self, prefixes_SKT: Tensor, part: Slots) -> Tensor:
        """How many leading tokens of each phrase, up to all of them, each prefix ends in, [S, K, J]."""
        phrases_SJP = self.phrases_SJP[part]
        matched_SKJ = prefixes_SKT.new_zeros(*prefixes_SKT.shape[:2], phrases_SJP.shape[1])
        for count in range(1, min(phrases_SJP.shape[2], prefixes_SKT.shape[2]) + 1):
            ends_SKJ = (prefixes_SKT[:, :, None, -count:] == phrases_SJP[:, None, :, :count]).all(3)
            matched_SKJ.masked_fill_(ends_SKJ, count)
        return matched_SKJ

    def forbid_end(self, scores_SKV: Tensor, part: Slots, eos: int) -> None:
        """Forbid eos, in place, where a phrase is missing."""
        scores_SKV[:, :, eos].masked_fill_(~self.held_SKJ[part].all(2), -math.inf)

    def candidates(
        self, scores_SKV: Tensor, totals_SK: Tensor, prefixes_SKT: Tensor, part: Slots, best: Candidates
    ) -> Candidates:
        """The `best` candidates and those that phrases need.

        The latter are the next token of each missing phrase and the best token of each hypothesis; duplicates get −∞.
        """
        held_SKJ = self.held_SKJ[part]
        matched_SKJ = self.matched(prefixes_SKT, part).masked_fill_(held_SKJ, 0)
        phrases_SJP, width = self.phrases_SJP[part], scores_SKV.shape[1]
        next_SKJ = phrases_SJP[:, None].expand(-1, width, -1, -1).gather(3, matched_SKJ[..., None])[..., 0]
        tokens_SKN = torch.cat((next_SKJ.clamp(min=0), scores_SKV.argmax(2, keepdim=True)), 2)
        sums_SKN = totals_SK[:, :, None] + scores_SKV.gather(2, tokens_SKN)
        sums_SKN[..., :-1].masked_fill_(held_SKJ, -math.inf)
        parents_SKN = torch.arange(width, device=tokens_SKN.device)[:, None].expand_as(tokens_SKN)
        sums_SN, parents_SN, tokens_SN = (
            torch.cat((of_best, more_SKN.flatten(1)), 1)
            for of_best, more_SKN in zip(best, (sums_SKN, parents_SKN, tokens_SKN), strict=True)
        )
        flat_SN = parents_SN * scores_SKV.shape[2] + tokens_SN
        same_SNN = (flat_SN[:, :, None] == flat_SN[:, None]) & (sums_SN > -math.inf)[:, None]
        return Candidates(sums_SN.masked_fill(same_SNN.tril(-1).any(2), -math.inf), parents_SN, tokens_SN)

    def choose(self, scores_SN: Tensor, prefixes_SNT: Tensor, parents_SN: Tensor, width: int) -> Tensor:
        """The places [S, K] of candidates to keep, best first: each bank's best, then each bank's second best, …"""
        matched_SNJ = self.matched(prefixes_SNT, slice(None))
        before_SNJ = self.held_SKJ.gather(1, parents_SN[:, :, None].expand_as(matched_SNJ))
        held_SNJ = before_SNJ | (matched_SNJ == self.lengths_SJ[:, None])
        banks_SN = torch.where(held_SNJ, self.lengths_SJ[:, None], 0).sum(2)
        banks_SN += matched_SNJ.masked_fill(held_SNJ, 0).amax(2)
        ranks_SN = scores_SN.argsort(dim=1, descending=True, stable=True).argsort(1)
        better_SNN = (banks_SN[:, :, None] == banks_SN[:, None]) & (ranks_SN[:, None] < ranks_SN[:, :, None])
        # Where there are more banks than places, those with the most tokens come first, so that all phrases get in.
        most = int(self.lengths_SJ.sum(1).max())
        turns_SN = better_SNN.sum(2) * (most + 1) + most - banks_SN
        turns_SN = turns_SN.masked_fill(scores_SN == -math.inf, torch.iinfo(torch.int64).max)
        kept_SK = turns_SN.topk(min(width, scores_SN.shape[1]), largest=False)[1]
        kept_SK = kept_SK.gather(1, scores_SN.gather(1, kept_SK).argsort(dim=1, descending=True, stable=True))
        self.held_SKJ = held_SNJ.gather(1, kept_SK[:, :, None].expand(-1, -1, held_SNJ.shape[2]))
        return kept_SK
