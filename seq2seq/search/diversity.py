"""Diverse beam search (Vijayakumar et al., 2018): parts of a beam, each a search of its own, that avoid one another.

Each group searches in slots of its own: those of group g have the numbers g · sentences + sentence. In each step the
groups choose one after another, and a token costs `penalty` for each time that earlier groups have chosen it.

Shapes: S slots, K hypotheses of each, V vocabulary, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from seq2seq.ops.packing import Layout
from seq2seq.search.interfaces import Constraints, Hypothesis


def repeated(
    count: int, source: Tensor, layout: Layout, constraints: Sequence[Constraints]
) -> tuple[Tensor, Layout, list[Constraints]]:
    """Packed source sentences and their constraints, once for each group."""
    lengths = layout.lengths.tolist() * count
    return source.repeat(count), Layout.of(lengths, source.device), [*constraints] * count


def joined(results: list[list[Hypothesis]], count: int, n_best: int) -> list[list[Hypothesis]]:
    """The results of all groups for each sentence, each group's best taken before any group's second; best first."""
    sentences = len(results) // count
    found = []
    for sentence in range(sentences):
        of_groups = results[sentence::sentences]
        different: dict[tuple[int, ...], Hypothesis] = {}
        for place in range(n_best):
            for group in of_groups:
                for hypothesis in group[place : place + 1]:
                    different.setdefault(tuple(hypothesis.tokens), hypothesis)
        found.append(sorted(list(different.values())[:n_best], key=lambda hypothesis: -hypothesis.score))
    return found


class Diversity:
    """What tokens cost in one step because of earlier groups' choices."""

    def __init__(self, sentences: int, penalty: float) -> None:
        self.sentences = sentences
        self.penalty = penalty
        self.costs_SV: Tensor | None = None

    def parts(self, numbers_S: Tensor, most: int) -> list[Tensor]:
        """The slots with these numbers in parts of at most `most`, group by group, to be processed in this order."""
        self.costs_SV = None
        groups_S = numbers_S // self.sentences
        slots = [(groups_S == group).nonzero()[:, 0] for group in range(int(groups_S.max()) + 1)]
        return [part for of_group in slots for part in of_group.split(most) if len(part)]

    def charge(self, scores_SKV: Tensor, numbers_S: Tensor) -> None:
        """Subtract, in place, what tokens cost the sentences of these slots."""
        if self.costs_SV is None:
            self.costs_SV = scores_SKV.new_zeros(self.sentences, scores_SKV.shape[2])
        scores_SKV -= self.costs_SV[numbers_S % self.sentences][:, None]

    def chosen(self, scores_SC: Tensor, tokens_SC: Tensor, goes_on_SC: Tensor, beam: int, numbers_S: Tensor) -> None:
        """Add the cost of the tokens of the `beam` best candidates that do not end."""
        assert self.costs_SV is not None
        kept_SC = goes_on_SC & (scores_SC > -math.inf)
        kept_SC &= kept_SC.cumsum(1) <= beam
        rows_SC = (numbers_S % self.sentences)[:, None].expand_as(tokens_SC)
        self.costs_SV.index_put_((rows_SC[kept_SC], tokens_SC[kept_SC]), scores_SC.new_tensor(self.penalty), True)
