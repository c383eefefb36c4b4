"""Beam search over a batch of sentences; a beam of one is greedy search. Sampling is the same with drawn tokens.

Shapes: S slots (sentences not yet done), K hypotheses of each, V vocabulary, C candidates, T steps so far,
n = n_best finished hypotheses kept for each sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from seq2seq.config.search import SearchConfig
from seq2seq.ops.packing import Layout
from seq2seq.ops.sequences import extended
from seq2seq.ops.topk import Candidates, best_continuations, highest
from seq2seq.search.diversity import Diversity, joined, repeated
from seq2seq.search.finished import Finished
from seq2seq.search.interfaces import Constraints, Hypothesis, SearchModel, Slots
from seq2seq.search.phrases import RequiredPhrases
from seq2seq.search.rules import Rules
from seq2seq.search.sampling import draw, uniforms

ROWS = 256
"""Rows of logits that are processed together on a CPU."""


class BeamSearch:
    """Finds the outputs of highest log-probability / length penalty (Wu et al., 2016, section 7).

    `max_length` is the longest output, eos counted, that the model can make; None: any. `forbidden` are sequences of
    tokens that no output may contain after its prefix.
    """

    def __init__(
        self,
        config: SearchConfig,
        bos: int,
        eos: int,
        never_generated: list[int],
        max_length: int | None = None,
        forbidden: Sequence[Sequence[int]] = (),
    ) -> None:
        self.config = config
        self.bos, self.eos = bos, eos
        self.never_generated = torch.tensor(never_generated, dtype=torch.int64)
        self.max_length = max_length
        self.forbidden = forbidden

    @torch.inference_mode()
    def __call__(
        self, model: SearchModel, source: Tensor, layout: Layout, constraints: Sequence[Constraints] | None = None
    ) -> list[list[Hypothesis]]:
        """The `n_best` hypotheses, best first, of each packed source sentence; fewer where fewer exist.

        A sentence whose `constraints` cannot be met has none.
        """
        constraints = constraints or [Constraints()] * layout.batch_size
        groups = self.config.diversity_groups
        if groups > 1:
            source, layout, constraints = repeated(groups, source, layout, constraints)
        for beams in self.steps(model, source, layout, constraints):
            results = beams.results
        return joined(results, groups, self.config.n_best) if groups > 1 else results

    @torch.inference_mode()
    def steps(
        self, model: SearchModel, source: Tensor, layout: Layout, constraints: Sequence[Constraints]
    ) -> Iterator[Beams]:
        """The state of search after each step; the results are complete after the last."""
        beams = Beams(self, source, layout, constraints)
        state = model.start(model.encode(source, layout))
        while True:
            beams.advance(model, model.step(state, beams.tokens, beams.parents))
            yield beams
            if beams.none_decided:
                continue
            done_S = beams.decided()
            done = int(done_S.cpu().sum())
            if done == len(done_S):
                break
            if done and done >= self.least_done(source.device) * len(done_S):
                model.keep(state, beams.release(done_S))
            elif done:
                beams.freeze(done_S)
        beams.release(done_S)

    @staticmethod
    def least_done(device: torch.device) -> float:
        """The share of sentences that must be done before they are removed, which on a GPU takes copies and waits."""
        return 1 / 4 if device.type == "cuda" else 0.0


def longest_outputs(config: SearchConfig, max_length: int | None, lengths_S: Tensor) -> Tensor:
    """The longest output [S], eos counted, for sources of these lengths by a model of this maximum."""
    limits_S = (lengths_S * config.max_length_ratio).long() + config.max_length_offset
    for most in (config.max_length, max_length):
        if most is not None:
            limits_S = limits_S.clamp(max=most)
    return limits_S


class Beams:
    """The live hypotheses of all unfinished sentences, and the finished ones of each.

    `tokens`, `parents` and `scores` [S, K] are those of the last step, `prefixes` [S, K, T] all tokens so far, the best
    hypothesis first; `sentences` [S] are the numbers of the slots' sentences, `ended` [S] counts ended hypotheses,
    `last_penalties` [S] are the length penalties at the longest output, `uniforms` [S, K, L] the draws of sampling.
    `results` [sentence] are the hypotheses of the sentences that are done.
    """

    def __init__(self, search: BeamSearch, source: Tensor, layout: Layout, constraints: Sequence[Constraints]) -> None:
        slots, device, config = layout.batch_size, source.device, search.config
        self.search = search
        self.results: list[list[Hypothesis]] = [[] for _ in range(slots)]
        self.finished = Finished(slots, config, search.eos, device)
        self.sentences = torch.arange(slots, device=device)
        self.tokens = torch.full((slots, 1), search.bos, device=device)
        self.parents = torch.zeros_like(self.tokens)
        self.scores = torch.zeros(slots, 1, device=device)
        self.ended = torch.zeros(slots, dtype=torch.int64, device=device)
        self.prefixes = torch.empty(slots, 1, 0, dtype=torch.int64, device=device)
        self.beam = config.n_best if config.sampling else config.beam_size // config.diversity_groups
        self.phrases = None
        if any(of_one.phrases for of_one in constraints):
            self.phrases = RequiredPhrases([of_one.phrases for of_one in constraints], device)
            # Each token of the phrases adds a bank of hypotheses.
            self.beam += max(sum(map(len, of_one.phrases)) for of_one in constraints)
        # At most one candidate of each hypothesis ends in eos, so twice the beam always leaves a full beam of others.
        # Greedy search looks at the best candidate only: an eos in second place ends nothing.
        self.count = 1 if self.beam == 1 else 2 * self.beam
        limits_S = longest_outputs(config, search.max_length, layout.lengths)
        minima_S = (layout.lengths * config.min_length_ratio).long().clamp(min=config.min_length)
        self.rules = Rules(
            config,
            search.eos,
            search.never_generated,
            search.forbidden,
            limits=limits_S,
            # Where the two conflict, the maximum length wins.
            minima=torch.minimum(minima_S, limits_S),
            forced=[of_one.prefix for of_one in constraints],
            phrases=self.phrases,
        )
        self.last_penalties = self.finished.penalty(self.rules.limits.float())
        self.diversity = None
        if config.diversity_groups > 1:
            self.diversity = Diversity(slots // config.diversity_groups, config.diversity_penalty)
        self.uniforms = torch.empty(slots, 0, device=device)
        if config.sampling:
            sources = [sentence.tolist() for sentence in source.split(layout.lengths.tolist())]
            self.uniforms = uniforms(sources, config.seed, self.beam, int(self.rules.limits.max())).to(device)

    def advance(self, model: SearchModel, hidden: Tensor) -> None:
        """Extend all live hypotheses by one token."""
        candidates = self._candidates(model, hidden)
        scores_SC, parents_SC, tokens_SC = candidates
        ends_SC = tokens_SC == self.search.eos
        # On a GPU, checking whether any ended would mean waiting for it.
        if ends_SC.is_cuda or ends_SC.any():
            self.finished.add(scores_SC, ends_SC, extended(self.prefixes, parents_SC, tokens_SC))
            if self.search.config.stop == "beam":
                self.ended += (ends_SC & (scores_SC > -math.inf))[:, : self.beam].sum(1)
            scores_SC.masked_fill_(ends_SC, -math.inf)

        if self.phrases:
            prefixes_SCT = extended(self.prefixes, parents_SC, tokens_SC)
            kept_SK = self.phrases.choose(scores_SC, prefixes_SCT, parents_SC, self.beam)
            kept = Candidates(*(x.gather(1, kept_SK) for x in candidates))
        else:
            kept = highest(candidates, min(self.beam, scores_SC.shape[1]))
        self.scores, self.parents, self.tokens = kept
        self.prefixes = extended(self.prefixes, self.parents, self.tokens)

    def _candidates(self, model: SearchModel, hidden: Tensor) -> Candidates:
        """The continuations of each slot that may be kept."""
        # On a CPU, only as many slots at a time as fit its cache: the log-probabilities of all never exist together.
        at_once = hidden.shape[0] if hidden.is_cuda else -(-ROWS // hidden.shape[1])
        parts: Sequence[Slots] = [slice(start, start + at_once) for start in range(0, hidden.shape[0], at_once)]
        if self.diversity:
            parts = self.diversity.parts(self.sentences, at_once)
        elif not hidden.is_cuda and not self.search.config.sampling:
            found = self._without_logits(model, hidden, at_once)
            if found:
                return found
        return _in_order([self._by_logits(model, hidden, part) for part in parts], parts)

    def _without_logits(self, model: SearchModel, hidden: Tensor, at_once: int) -> Candidates | None:
        """The candidates, found without logits in unrestricted slots; None if there are none or the model cannot.

        Logits of the other slots are computed for `at_once` of them at a time. The choice is made slot by slot, so that
        a slot's bits do not depend on the others in the batch.
        """
        free_S, never = self.rules.unrestricted(self.prefixes.shape[2] + 1), self.rules.never_generated
        if isinstance(free_S, bool):
            return model.best(hidden, self.scores, self.count, never) if free_S else None
        free, rest = free_S.nonzero()[:, 0], (~free_S).nonzero()[:, 0]
        best = model.best(hidden[free], self.scores[free], self.count, never) if len(free) else None
        if best is None:
            return None
        parts = rest.split(at_once) if len(rest) else ()
        return _in_order([best, *(self._by_logits(model, hidden, part) for part in parts)], [free, *parts])

    def _by_logits(self, model: SearchModel, hidden: Tensor, part: Slots) -> Candidates:
        """The candidates of some slots, from the logits of all continuations."""
        logits_SKV = model.logits(hidden[part])
        scores_SKV, sums_SK = self.rules.log_probabilities(logits_SKV, self.prefixes[part], part)
        found = self._choices(scores_SKV, self.scores[part] + sums_SK, part)
        if self.diversity:
            scores_SC, _, tokens_SC = found
            goes_on_SC = tokens_SC != self.search.eos
            self.diversity.chosen(scores_SC, tokens_SC, goes_on_SC, self.beam, self.sentences[part])
        return found

    def _choices(self, scores_SKV: Tensor, totals_SK: Tensor, part: Slots) -> Candidates:
        """The candidates among these scored continuations, as sampling, diversity or phrases require."""
        if self.search.config.sampling:
            return self._drawn(scores_SKV, totals_SK, part)
        if self.diversity:
            scores_SKV = scores_SKV.float()
            self.diversity.charge(scores_SKV, self.sentences[part])
        best = best_continuations(scores_SKV, totals_SK, min(self.count, scores_SKV[0].numel()))
        if self.phrases:
            return self.phrases.candidates(scores_SKV, totals_SK, self.prefixes[part], part, best)
        return best

    def _drawn(self, scores_SKV: Tensor, totals_SK: Tensor, part: Slots) -> Candidates:
        """One drawn continuation of each sample."""
        config = self.search.config
        parents_K = torch.arange(self.beam, device=scores_SKV.device)
        if scores_SKV.shape[1] < self.beam:
            parents_K = parents_K.new_zeros(self.beam)
        scores_SKV, totals_SK = scores_SKV[:, parents_K], totals_SK[:, parents_K]
        uniforms_SK = self.uniforms[part, :, self.prefixes.shape[2]]
        tokens_SK = draw(scores_SKV, uniforms_SK, config.temperature, config.top_k, config.top_p)
        scores_SK = totals_SK + scores_SKV.gather(2, tokens_SK[:, :, None])[..., 0]
        return Candidates(scores_SK, parents_K.expand_as(tokens_SK), tokens_SK)

    @property
    def none_decided(self) -> bool:
        """Whether no output has ended or reached its limit yet, so that `decided` need not be called."""
        return not self.finished.some and self.prefixes.shape[2] < self.rules.first_limit

    def decided(self) -> Tensor:
        """Sentences [S] for which no live hypothesis can still be better than the n-th finished one."""
        worst_S, length = self.finished.scores[:, -1], self.prefixes.shape[2]
        # A log-probability only falls with more tokens and the penalty only grows, so this bounds what is to come. A
        # beam of one has nothing live after its eos, as greedy search does not look past it.
        done_S = worst_S >= self.scores[:, 0] / self.last_penalties
        if self.search.config.stop == "beam":
            done_S |= self.ended >= self.beam
        if self.rules.first_limit <= length:
            done_S |= self.rules.limits <= length
        return done_S

    def freeze(self, done_S: Tensor) -> None:
        """Rule out any more outputs of these sentences, which stay in the batch."""
        self.scores.masked_fill_(done_S[:, None], -math.inf)

    def release(self, done_S: Tensor) -> Tensor:
        """Record the results of these sentences and drop them; returns the slots [S] of those that remain."""
        found = self.finished.of(done_S, self.rules.limits)
        for sentence, hypotheses in zip(self.sentences[done_S].tolist(), found, strict=True):
            self.results[sentence] = hypotheses
        slots = _closed_up(~done_S)
        self.sentences, self.uniforms = self.sentences[slots], self.uniforms[slots]
        self.scores, self.parents, self.tokens = self.scores[slots], self.parents[slots], self.tokens[slots]
        self.prefixes, self.ended = self.prefixes[slots], self.ended[slots]
        self.last_penalties = self.last_penalties[slots]
        self.finished.keep(slots)
        self.rules.keep(slots)
        return slots


def _in_order(found: Sequence[Candidates], parts: Sequence[Slots]) -> Candidates:
    """The candidates of all slots, found part by part: ranges in order, or numbered slots in any."""
    if len(found) == 1:
        return found[0]
    every = Candidates(*(torch.cat(of_parts) for of_parts in zip(*found, strict=True)))
    numbers = [part for part in parts if isinstance(part, Tensor)]
    if not numbers:
        return every
    order = torch.cat(numbers).argsort()
    return Candidates(*(x[order] for x in every))


def _closed_up(live_S: Tensor) -> Tensor:
    """The live slots, the last of them moved into the places of finished ones, so that most can stay where they are."""
    count = int(live_S.sum())
    slots = torch.arange(count, device=live_S.device)
    slots[~live_S[:count]] = live_S[count:].nonzero()[:, 0] + count
    return slots
