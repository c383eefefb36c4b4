"""Phrases that an output must hold: beams shared out by how much of them is there (Post and Vilar, 2018).

Hypotheses with equally many tokens of the phrases make a bank. Each bank that has candidates gets its share of the
beam, so that those which already hold a phrase are not crowded out by those without, which are nearly always likelier;
and the next token of a phrase is always a candidate. What is there is read off the hypothesis itself: there is no
other state. Phrases may overlap in the output; one that is asked for twice is there when it is there once.

Shapes: S slots, K hypotheses of each, V vocabulary, T tokens so far, N candidates, J phrases of at most P tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class RequiredPhrases:
    """The phrases of a batch of sentences, each a list of lists of token ids."""

    def __init__(self, phrases: list[list[list[int]]], device: torch.device) -> None:
        most = max(len(of_one) for of_one in phrases)
        longest = max(len(phrase) for of_one in phrases for phrase in of_one)
        # −1 is no token: where a phrase has ended, anything goes.
        padded = [[phrase + [-1] * (longest - len(phrase)) for phrase in of_one] for of_one in phrases]
        padded = [of_one + [[-1] * longest] * (most - len(of_one)) for of_one in padded]
        self.phrases_SJP = torch.tensor(padded, device=device)

    def keep(self, slots: Tensor) -> None:
        """Go on with these slots alone."""
        self.phrases_SJP = self.phrases_SJP[slots]

    def progress(self, prefixes_SKT: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Which phrases each hypothesis holds, and how many tokens of the others it ends in, [S, K, J] each."""
        phrases_SJP = self.phrases_SJP[part]
        longest = phrases_SJP.shape[2]
        # −2 is unlike all tokens and unlike −1.
        padded = torch.nn.functional.pad(prefixes_SKT, (longest, longest), value=-2)
        same_SKJWP = padded.unfold(2, longest, 1)[:, :, None] == phrases_SJP[:, None, :, None]
        whole_SKJW = (same_SKJWP | (phrases_SJP < 0)[:, None, :, None]).all(4)
        held_SKJ = whole_SKJW[..., longest:].any(3)
        matched_SKJ = torch.zeros(held_SKJ.shape, dtype=torch.int64, device=held_SKJ.device)
        for count in range(1, longest):
            ends = same_SKJWP[:, :, :, -1 - count, :count].all(3)
            matched_SKJ = torch.where(ends, count, matched_SKJ)
        return held_SKJ, matched_SKJ.masked_fill(held_SKJ, 0)

    def forbid_end(self, scores_SKV: Tensor, prefixes_SKT: Tensor, part: slice, eos: int) -> None:
        """No eos, in place, where a phrase is missing."""
        held_SKJ, _ = self.progress(prefixes_SKT, part)
        scores_SKV[:, :, eos].masked_fill_(~held_SKJ.all(2), -math.inf)

    def candidates(
        self, scores_SKV: Tensor, totals_SK: Tensor, prefixes_SKT: Tensor, part: slice, best: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """To the `best` candidates (sums and K-place · V + token, [S, N] each) those that phrases need.

        They are the next token of each missing phrase and the best token of each hypothesis; none is there twice.
        """
        held_SKJ, matched_SKJ = self.progress(prefixes_SKT, part)
        phrases_SJP, width = self.phrases_SJP[part], scores_SKV.shape[1]
        next_SKJ = phrases_SJP[:, None].expand(-1, width, -1, -1).gather(3, matched_SKJ[..., None])[..., 0]
        tokens_SKN = torch.cat((next_SKJ.clamp(min=0), scores_SKV.argmax(2, keepdim=True)), 2)
        sums_SKN = totals_SK[:, :, None] + scores_SKV.gather(2, tokens_SKN)
        sums_SKN[..., :-1].masked_fill_(held_SKJ, -math.inf)
        places_SKN = torch.arange(width, device=tokens_SKN.device)[:, None] * scores_SKV.shape[2] + tokens_SKN
        sums_SN = torch.cat((best[0], sums_SKN.flatten(1)), 1)
        flat_SN = torch.cat((best[1], places_SKN.flatten(1)), 1)
        same_SNN = (flat_SN[:, :, None] == flat_SN[:, None]) & (sums_SN > -math.inf)[:, None]
        twice_SN = same_SNN.tril(-1).any(2)
        return sums_SN.masked_fill(twice_SN, -math.inf), flat_SN

    def choose(self, scores_SN: Tensor, prefixes_SNT: Tensor, width: int) -> Tensor:
        """The places [S, K] of the candidates that go on, best first: each bank's best, then each bank's second, …"""
        held_SNJ, matched_SNJ = self.progress(prefixes_SNT, slice(None))
        lengths_SJ = (self.phrases_SJP >= 0).sum(2)
        banks_SN = (held_SNJ * lengths_SJ[:, None]).sum(2) + matched_SNJ.amax(2)
        order_SN = scores_SN.argsort(dim=1, descending=True, stable=True)
        ranks_SN = order_SN.argsort(1)
        mates_SNN = banks_SN[:, :, None] == banks_SN[:, None]
        better_SNN = ranks_SN[:, None] < ranks_SN[:, :, None]
        in_bank_SN = (mates_SNN & better_SNN).sum(2)
        # Where there are more banks than places, those that hold most come first: so all phrases are there in the end.
        most = int(lengths_SJ.sum(1).max())
        turns_SN = in_bank_SN * (most + 1) + most - banks_SN
        turns_SN = turns_SN.masked_fill(scores_SN == -math.inf, torch.iinfo(torch.int64).max)
        kept_SK = turns_SN.topk(min(width, scores_SN.shape[1]), largest=False)[1]
        return kept_SK.gather(1, scores_SN.gather(1, kept_SK).argsort(dim=1, descending=True, stable=True))
