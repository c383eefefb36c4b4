"""The key-value cache of a Transformer decoder in search.

Keys and values are written once and stay where they are. Each step adds a column for each hypothesis of a slot; who
descends from whom is kept in a mask over the columns, and only this mask follows the choices of search.

Shapes: S slots, K hypotheses of each, H heads, L source length, C columns so far, E width of a head (d_k in
keys, d_v in values).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seq2seq.ops.packing import Layout
from seq2seq.ops.step_attention import pad_mask

FIRST_COLUMNS = 128


def move(x: Tensor, slots: Tensor) -> Tensor:
    """`x[slots]`, made in place at the front of `x` where most slots stay where they are."""
    places = torch.arange(slots.shape[0], device=slots.device)
    moved = (slots != places).nonzero()[:, 0]
    x[moved] = x[slots[moved]]
    return x[: slots.shape[0]]


@dataclass
class LayerCache:
    """Keys and values of one layer: of the source [S, H, L, E]; of the target [S, H, room for columns, E]."""

    source_keys: Tensor
    source_values: Tensor
    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, source_keys: Tensor, source_values: Tensor) -> LayerCache:
        """The cache before the first step."""
        keys, values = (x.new_empty(*x.shape[:2], FIRST_COLUMNS, x.shape[3]) for x in (source_keys, source_values))
        return cls(source_keys, source_values, keys, values)

    def append(self, keys_SKHE: Tensor, values_SKHE: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Add columns from `start` on and return all columns, [S, H, C, E] each."""
        end = start + keys_SKHE.shape[1]
        if end > self.keys.shape[2]:
            self.keys, self.values = (torch.cat((x, x.new_empty(x.shape)), 2) for x in (self.keys, self.values))
        self.keys[:, :, start:end] = keys_SKHE.transpose(1, 2)
        self.values[:, :, start:end] = values_SKHE.transpose(1, 2)
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, slots: Tensor) -> None:
        """Go on with these slots alone."""
        self.source_keys, self.source_values = move(self.source_keys, slots), move(self.source_values, slots)
        self.keys, self.values = move(self.keys, slots), move(self.values, slots)


@dataclass
class DecoderCache:
    """The caches of all layers, two masks of 0 and −∞, and the number of steps.

    `source_mask` [S, 1, 1, L] (None: no pads) shows the source's pads, `ancestors` [S, 1, K, C] the columns that do not
    belong to the past of each hypothesis.
    """

    layers: list[LayerCache]
    source_mask: Tensor | None
    ancestors: Tensor
    length: int = 0

    @classmethod
    def of(cls, layers: list[LayerCache], source: Layout) -> DecoderCache:
        """The cache before the first step, one hypothesis a slot."""
        ancestors = torch.empty(source.batch_size, 1, 1, 0, device=source.lengths.device)
        return cls(layers, pad_mask(source), ancestors)

    def advance(self, parents_SK: Tensor) -> int:
        """Make room for one step of the children of these hypotheses; returns its first column."""
        slots, width = parents_SK.shape
        start = self.ancestors.shape[3]
        past = self.ancestors.gather(2, parents_SK[:, None, :, None].expand(-1, 1, -1, start))
        own = torch.full((width, width), -math.inf, device=past.device).fill_diagonal_(0.0)
        self.ancestors = torch.cat((past, own.expand(slots, 1, width, width)), 3)
        self.length += 1
        return start

    def keep(self, slots: Tensor) -> None:
        """Go on with these slots alone."""
        for layer in self.layers:
            layer.keep(slots)
        self.ancestors = self.ancestors[slots]
        if self.source_mask is not None:
            self.source_mask = self.source_mask[slots]
