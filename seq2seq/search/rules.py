"""What an output must not contain or must begin with: −∞ for tokens not allowed next, set before the choice.

What only makes tokens more or less likely changes their logits, in place, before the softmax: the bound by which search
stops holds while log-probabilities are not above 0.

Shapes: S slots, K hypotheses of each, V vocabulary, T tokens so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from seq2seq.config.search import SearchConfig
from seq2seq.ops.topk import log_probabilities
from seq2seq.search.interfaces import Slots
from seq2seq.search.phrases import RequiredPhrases

Rule = Callable[[Tensor, Tensor], None]
"""Changes logits or scores [S, K, V] in place, given the prefixes [S, K, T]."""


class Rules:
    """The rules for a batch of sentences.

    `limits` and `minima` [S] are the longest and shortest outputs, eos counted; `forced` the tokens that each output
    must begin with; `forbidden` sequences that none may contain after these. Rules that may apply to any token, at any
    length, are in one of two lists, by what they change; where there are none, C++ chooses tokens without logits.
    """

    def __init__(
        self,
        config: SearchConfig,
        eos: int,
        never_generated: Tensor,
        forbidden: Sequence[Sequence[int]],
        limits: Tensor,
        minima: Tensor,
        forced: Sequence[list[int]],
        phrases: RequiredPhrases | None,
    ) -> None:
        self.eos = eos
        self.never_generated = never_generated.to(limits.device)
        self.limits, self.minima, self.phrases = limits, minima, phrases
        self.first_limit, self.last_minimum = int(limits.min()), int(minima.max())
        self._of_logits: list[Rule] = []
        if config.repetition_penalty != 1:
            self._of_logits.append(partial(penalize_repetition, penalty=config.repetition_penalty))
        self._of_scores: list[Rule] = [partial(forbid, phrase=phrase) for phrase in forbidden]
        if config.no_repeat_ngram:
            self._of_scores.append(partial(forbid_repeated, size=config.no_repeat_ngram))
        longest = max(len(tokens) for tokens in forced)
        # −1: any token.
        padded = [[*tokens, *[-1] * (longest - len(tokens))] for tokens in forced]
        self.forced = torch.tensor(padded, dtype=torch.int64, device=limits.device)

    def _forces(self, length: int) -> bool:
        return length <= self.forced.shape[1]

    def _any_too_short(self, length: int) -> bool:
        return length < self.last_minimum

    def _any_at_limit(self, length: int) -> bool:
        return self.first_limit <= length

    def unrestricted(self, length: int) -> Tensor | bool:
        """The slots [S] for which `never_generated` alone is forbidden as token number `length`, counted from 1.

        True: all of them; False: none. In the others, `log_probabilities` has more to forbid.
        """
        if self._of_logits or self._of_scores or self.phrases:
            return False
        if not (self._forces(length) or self._any_too_short(length) or self._any_at_limit(length)):
            return True
        free_S = (self.minima <= length) & (self.limits > length)
        return free_S & (self.forced[:, length - 1] < 0) if self._forces(length) else free_S

    def log_probabilities(self, logits_SKV: Tensor, prefixes_SKT: Tensor, part: Slots) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the next token of these slots, −∞ where forbidden: two summands as in `ops.topk`."""
        length = prefixes_SKT.shape[2] + 1
        for rule in self._of_logits:
            rule(logits_SKV, prefixes_SKT)
        scores_SKV, sums_SK = log_probabilities(logits_SKV)
        free_SKV = scores_SKV.clone() if self._forces(length) else scores_SKV
        scores_SKV.index_fill_(2, self.never_generated, -math.inf)
        for rule in self._of_scores:
            rule(scores_SKV, prefixes_SKT)
        if self.phrases:
            self.phrases.forbid_end(scores_SKV, part, self.eos)
        if self._any_too_short(length):
            scores_SKV[:, :, self.eos].masked_fill_((self.minima[part] > length)[:, None], -math.inf)
        if self._forces(length):
            force(scores_SKV, free_SKV, self.forced[part, length - 1])
        if self._any_at_limit(length):
            only_eos_V = torch.full_like(scores_SKV[0, 0], -math.inf)
            only_eos_V[self.eos] = 0.0
            scores_SKV[self.limits[part] <= length] += only_eos_V
        return scores_SKV, sums_SK

    def keep(self, slots: Tensor) -> None:
        """Keep only these slots."""
        self.limits, self.minima, self.forced = self.limits[slots], self.minima[slots], self.forced[slots]
        if len(slots):
            self.first_limit, self.last_minimum = int(self.limits.min()), int(self.minima.max())
        if self.phrases:
            self.phrases.keep(slots)


def penalize_repetition(logits_SKV: Tensor, prefixes_SKT: Tensor, penalty: float) -> None:
    """Divide positive logits of tokens in the prefix by `penalty`, multiply negative ones, in place.

    (Keskar et al., 2019, section 4.1.)
    """
    seen = logits_SKV.gather(2, prefixes_SKT)
    logits_SKV.scatter_(2, prefixes_SKT, torch.where(seen > 0, seen / penalty, seen * penalty))


def forbid_repeated(scores_SKV: Tensor, prefixes_SKT: Tensor, size: int) -> None:
    """−∞ for tokens that would repeat any sequence of `size` tokens in a hypothesis (Paulus et al., 2018)."""
    if prefixes_SKT.shape[2] < size:
        return
    sequences_SKNG = prefixes_SKT.unfold(2, size, 1)
    start = prefixes_SKT.shape[2] - size + 1
    again_SKN = (sequences_SKNG[..., :-1] == prefixes_SKT[:, :, None, start:]).all(3)
    losses_SKN = scores_SKV.new_zeros(again_SKN.shape).masked_fill_(again_SKN, -math.inf)
    scores_SKV.scatter_add_(2, sequences_SKNG[..., -1], losses_SKN)


def forbid(scores_SKV: Tensor, prefixes_SKT: Tensor, phrase: Sequence[int]) -> None:
    """−∞ for the last token of `phrase` where the prefix ends in all its other tokens."""
    *before, last = phrase
    if len(before) > prefixes_SKT.shape[2]:
        return
    start = prefixes_SKT.shape[2] - len(before)
    ends_SK = (prefixes_SKT[:, :, start:] == torch.tensor(before, dtype=torch.int64, device=prefixes_SKT.device)).all(2)
    scores_SKV[:, :, last].masked_fill_(ends_SK, -math.inf)


def force(scores_SKV: Tensor, free_SKV: Tensor, tokens_S: Tensor) -> None:
    """Allow only this token in each slot, with its score in `free`; −1: any."""
    forced_S = tokens_S >= 0
    tokens_SK1 = tokens_S[forced_S, None, None].expand(-1, scores_SKV.shape[1], 1)
    only_SKV = torch.full_like(scores_SKV[forced_S], -math.inf)
    scores_SKV[forced_S] = only_SKV.scatter_(2, tokens_SK1, free_SKV[forced_S].gather(2, tokens_SK1))
