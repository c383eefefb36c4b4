"""The finished hypotheses of each sentence.

Shapes: S slots, C candidates, T steps so far, n finished hypotheses kept of each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seq2seq.config.search import SearchConfig
from seq2seq.ops.sequences import pick
from seq2seq.search.interfaces import Hypothesis
from seq2seq.search.penalties import Length, length_penalty


class Finished:
    """The `n_best` outputs of highest log-probability / length penalty that have ended so far."""

    def __init__(self, slots: int, config: SearchConfig, eos: int, device: torch.device) -> None:
        self.config = config
        self.eos = eos
        self.some = False
        self.scores = torch.full((slots, config.n_best), -math.inf, device=device)
        self.outputs = torch.full((slots, config.n_best, 1), eos, device=device)

    def penalty(self, length: Length) -> Length:
        """What log-probabilities of outputs of this length, eos counted, are divided by."""
        return length_penalty(self.config.length_normalization, length, self.config.length_penalty)

    def add(self, scores_SC: Tensor, ends_SC: Tensor, prefixes_SCT: Tensor) -> None:
        """Merge in what ended in this step: log-probabilities, whether each ended, and tokens up to eos."""
        self.some = True
        longer = prefixes_SCT.shape[2] - self.outputs.shape[2]
        # The last column is eos wherever there is an output.
        outputs = torch.cat((self.outputs, self.outputs[:, :, -1:].expand(-1, -1, longer)), 2)
        ended_SC = (scores_SC / self.penalty(float(prefixes_SCT.shape[2]))).masked_fill_(~ends_SC, -math.inf)
        self.scores, best = torch.cat((self.scores, ended_SC), 1).topk(self.scores.shape[1])
        self.outputs = pick(torch.cat((outputs, prefixes_SCT), 1), best)

    def of(self, slots_S: Tensor, limits_S: Tensor) -> list[list[Hypothesis]]:
        """The hypotheses of these slots, best first."""
        found = zip(*(x[slots_S].tolist() for x in (self.scores, self.outputs, limits_S)), strict=True)
        return [
            [
                Hypothesis(output[:length], score, length + 1 >= limit)
                for score, output in zip(scores, outputs, strict=True)
                if score > -math.inf
                for length in [output.index(self.eos)]
            ]
            for scores, outputs, limit in found
        ]

    def keep(self, slots: Tensor) -> None:
        """Keep only these slots."""
        self.scores, self.outputs = self.scores[slots], self.outputs[slots]
