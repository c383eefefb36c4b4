"""Several models with one vocabulary that search together, by the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seq2seq.model.translation import TranslationModel
from seq2seq.ops.packing import Layout


class Ensemble:
    """To search, one model (`seq2seq.search.interfaces.SearchModel`): its state is a list of its members' states.

    The members' hidden rows are concatenated, [..., D₁ + D₂ + …]; logits are logarithms of mean probabilities, float32.
    """

    def __init__(self, members: Sequence[TranslationModel]) -> None:
        self.members = members
        self.widths = [member.output_weight.shape[1] for member in members]

    def encode(self, tokens: Tensor, layout: Layout) -> list[Any]:
        """The memory of each member."""
        return [member.encode(tokens, layout) for member in self.members]

    def start(self, memory: list[Any]) -> list[Any]:
        """The state of each member before the first step."""
        return [member.start(own) for member, own in zip(self.members, memory, strict=True)]

    def step(self, state: list[Any], tokens: Tensor, parents: Tensor) -> Tensor:
        """Hidden rows of all members [S, K, D₁ + D₂ + …] after the tokens [S, K]."""
        return torch.cat(
            [member.step(own, tokens, parents) for member, own in zip(self.members, state, strict=True)], -1
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden rows of all members to logarithms of mean probabilities [..., V]."""
        rows = hidden.split(self.widths, -1)
        each = [
            member.logits(own).log_softmax(-1, dtype=torch.float32)
            for member, own in zip(self.members, rows, strict=True)
        ]
        return torch.stack(each).logsumexp(0) - math.log(len(each))

    def best(self, hidden: Tensor, scores: Tensor, count: int, never: Tensor) -> None:
        """None: the mean cannot be computed without logits."""

    def keep(self, state: list[Any], slots: Tensor) -> None:
        """Keep only these slots."""
        for member, own in zip(self.members, state, strict=True):
            member.keep(own, slots)
