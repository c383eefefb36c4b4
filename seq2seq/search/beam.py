"""Beam search over a batch of sentences; a beam of one is greedy search.

Shapes: S slots (sentences not yet done), K hypotheses of each, V vocabulary, C candidates, T steps so far,
n = n_best finished hypotheses kept for each sentence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seq2seq.config.schema import SearchConfig
from seq2seq.ops.packing import Layout
from seq2seq.ops.topk import best_continuations
from seq2seq.search.hypotheses import Hypothesis, SearchModel
from seq2seq.search.penalties import gnmt

ROWS = 128
"""How many rows of the vocabulary are looked at together on a processor."""


class BeamSearch:
    """Finds the outputs of highest log-probability / length penalty (Wu et al., 2016, section 7).

    `max_length` is the longest output, eos counted, that the model can make; None: any.
    """

    def __init__(
        self, config: SearchConfig, bos: int, eos: int, never_generated: list[int], max_length: int | None = None
    ) -> None:
        self.config = config
        self.bos, self.eos = bos, eos
        self.never_generated = torch.tensor(never_generated, dtype=torch.int64)
        self.max_length = max_length

    @torch.no_grad()
    def __call__(self, model: SearchModel, source: Tensor, layout: Layout) -> list[list[Hypothesis]]:
        """The `n_best` hypotheses, best first, of each packed source sentence; fewer where fewer exist."""
        limits = (layout.lengths * self.config.max_length_ratio).long() + self.config.max_length_offset
        if self.max_length is not None:
            limits = limits.clamp(max=self.max_length)
        beams = _Beams(self, limits)
        state = model.start(model.encode(source, layout))
        while True:
            beams.advance(model, model.step(state, beams.tokens, beams.parents))
            done_S = beams.decided()
            if done_S.all():
                break
            if done_S.any():
                model.keep(state, beams.release(done_S))
        beams.release(done_S)
        return beams.results


class _Beams:
    """The live hypotheses of all unfinished sentences, and the finished ones of each."""

    def __init__(self, search: BeamSearch, limits_S: Tensor) -> None:
        slots, device = limits_S.shape[0], limits_S.device
        self.search = search
        self.results: list[list[Hypothesis]] = [[] for _ in range(slots)]
        self.never_generated = search.never_generated.to(device)
        self.sentences = torch.arange(slots, device=device)
        self.limits = limits_S
        self.first_limit = int(limits_S.min())
        self.length = 0
        self.tokens = torch.full((slots, 1), search.bos, device=device)
        self.parents = torch.zeros_like(self.tokens)
        self.scores = torch.zeros(slots, 1, device=device)
        self.prefixes = torch.empty(slots, 1, 0, dtype=torch.int64, device=device)
        n = search.config.n_best
        self.finished = torch.full((slots, n), -math.inf, device=device)
        self.outputs = torch.full((slots, n, 0), search.eos, device=device)

    def advance(self, model: SearchModel, hidden: Tensor) -> None:
        """Extend all live hypotheses by one token."""
        self.length += 1
        beam = self.search.config.beam_size
        scores_SC, places_SC, tokens_SC = self._candidates(model, hidden)
        prefixes_SCT = torch.cat((_pick(self.prefixes, places_SC), tokens_SC[:, :, None]), 2)
        ends_SC = tokens_SC == self.search.eos
        self._finish(scores_SC.masked_fill(~ends_SC, -math.inf), prefixes_SCT)

        self.scores, kept_SK = scores_SC.masked_fill(ends_SC, -math.inf).topk(min(beam, scores_SC.shape[1]))
        self.tokens = tokens_SC.gather(1, kept_SK)
        self.prefixes = _pick(prefixes_SCT, kept_SK)
        self.parents = places_SC.gather(1, kept_SK)

    def _candidates(self, model: SearchModel, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations of each slot: score, place of the parent, token, [S, C] each."""
        width, beam = hidden.shape[1], self.search.config.beam_size
        found = []
        # Slot by slot as far as the cache of a processor reaches: the log-probabilities of all never exist together.
        slots = hidden.shape[0] if hidden.is_cuda else -(-ROWS // width)
        for start in range(0, hidden.shape[0], slots):
            part = slice(start, start + slots)
            scores_SKV = self._log_probabilities(model.logits(hidden[part]), part)
            vocabulary = scores_SKV.shape[2]
            # At most one candidate of each hypothesis ends in eos: twice the beam always holds a beam that does not.
            # Greedy search looks at the best one only: an eos in second place ends nothing.
            count = 1 if beam == 1 else min(2 * beam, width * vocabulary)
            found.append(best_continuations(scores_SKV, self.scores[part], count))
        scores_SC, flat_SC = (torch.cat(parts) for parts in zip(*found, strict=True))
        return scores_SC, flat_SC // vocabulary, flat_SC % vocabulary

    def _log_probabilities(self, logits_SKV: Tensor, slots: slice) -> Tensor:
        scores_SKV = logits_SKV.log_softmax(-1, dtype=torch.float32)
        scores_SKV.index_fill_(2, self.never_generated, -math.inf)
        if self.first_limit <= self.length:
            only_eos_V = torch.full_like(scores_SKV[0, 0], -math.inf)
            only_eos_V[self.search.eos] = 0.0
            scores_SKV[self.limits[slots] <= self.length] += only_eos_V
        return scores_SKV

    def _finish(self, scores_SC: Tensor, prefixes_SCT: Tensor) -> None:
        """Merge the candidates that ended (score above −∞) into the finished ones."""
        length = torch.tensor(self.length, dtype=torch.float32, device=scores_SC.device)
        scores_SC = scores_SC / gnmt(length, self.search.config.length_penalty)
        outputs = torch.nn.functional.pad(self.outputs, (0, 1), value=self.search.eos)
        self.finished, best = torch.cat((self.finished, scores_SC), 1).topk(self.finished.shape[1])
        self.outputs = _pick(torch.cat((outputs, prefixes_SCT), 1), best)

    def decided(self) -> Tensor:
        """Sentences [S] for which no live hypothesis can still be better than the n-th finished one."""
        worst_S = self.finished[:, -1]
        if self.search.config.beam_size == 1:
            # Greedy search goes where the first eos is; it does not look behind it.
            return worst_S > -math.inf
        # A log-probability only falls with more tokens and the penalty only grows, so this bounds what is to come.
        best_S = self.scores[:, 0] / gnmt(self.limits.float(), self.search.config.length_penalty)
        return (worst_S >= best_S) | (self.limits <= self.length)

    def release(self, done_S: Tensor) -> Tensor:
        """Write down the results of these sentences; returns the slots [S] of those that go on."""
        for sentence, scores, outputs in zip(
            self.sentences[done_S].tolist(), self.finished[done_S].tolist(), self.outputs[done_S].tolist(), strict=True
        ):
            self.results[sentence] = [
                Hypothesis(output[: output.index(self.search.eos)], score)
                for score, output in zip(scores, outputs, strict=True)
                if score > -math.inf
            ]
        slots = _closed_up(~done_S)
        for name in ("sentences", "limits", "tokens", "parents", "scores", "prefixes", "finished", "outputs"):
            setattr(self, name, getattr(self, name)[slots])
        self.first_limit = int(self.limits.min()) if len(slots) else 0
        return slots


def _closed_up(live_S: Tensor) -> Tensor:
    """The live slots, the last of them in the places of those that are not: then most can stay where they are."""
    count = int(live_S.sum())
    slots = torch.arange(count, device=live_S.device)
    slots[~live_S[:count]] = live_S[count:].nonzero()[:, 0] + count
    return slots


def _pick(sequences_SKT: Tensor, places_SC: Tensor) -> Tensor:
    """The sequences at these places of each slot, [S, C, T]."""
    return sequences_SKT.gather(1, places_SC[:, :, None].expand(-1, -1, sequences_SKT.shape[2]))
