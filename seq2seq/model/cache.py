"""The key-value cache of a Transformer decoder in search.

Keys and values are written once and stay where they are. Each step fills a column for each hypothesis of a slot; who
descends from whom is kept in a mask over the columns, and only this mask follows the choices of search. Columns are
made a block at a time: those not yet filled are zeros that nobody sees.

Shapes: S slots, K hypotheses of each, H heads, C columns, E width of a head (d_k in keys, d_v in values).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.ops.packing import Layout
from seq2seq.ops.step_attention import BLOCK, pad_mask


def move(x: Tensor, slots: Tensor) -> Tensor:
    """`x[slots]`, made in place at the front of `x` where most slots stay where they are."""
    places = torch.arange(slots.shape[0], device=slots.device)
    moved = (slots != places).nonzero()[:, 0]
    x[moved] = x[slots[moved]]
    return x[: slots.shape[0]]


def whole_blocks(columns: int) -> int:
    """The number of columns in as many blocks as these need."""
    return -(-columns // BLOCK) * BLOCK


@dataclass
class LayerCache:
    """Keys and values of one layer, of the source and of the target: [S, H, C, E] each."""

    source_keys: Tensor
    source_values: Tensor
    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, source_keys: Tensor, source_values: Tensor) -> LayerCache:
        """The cache before the first step."""
        return cls(source_keys, source_values, source_keys[:, :, :0], source_values[:, :, :0])

    def append(self, keys_SKHE: Tensor, values_SKHE: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Fill the columns from `start` on and return all, [S, H, C, E] each."""
        end = start + keys_SKHE.shape[1]
        missing = whole_blocks(end) - self.keys.shape[2]
        if missing > 0:
            self.keys, self.values = (F.pad(x, (0, 0, 0, missing)) for x in (self.keys, self.values))
        self.keys[:, :, start:end] = keys_SKHE.transpose(1, 2)
        self.values[:, :, start:end] = values_SKHE.transpose(1, 2)
        return self.keys, self.values

    def keep(self, slots: Tensor) -> None:
        """Go on with these slots alone."""
        self.source_keys, self.source_values = move(self.source_keys, slots), move(self.source_values, slots)
        self.keys, self.values = move(self.keys, slots), move(self.values, slots)


@dataclass
class DecoderCache:
    """The caches of all layers, two masks of 0 and −∞, and the numbers of steps and of columns filled.

    `source_mask` [S, 1, 1, C] (None: no pads) hides the columns behind the source, `ancestors` [S, 1, K, C] those that
    do not belong to the past of each hypothesis.
    """

    layers: list[LayerCache]
    source_mask: Tensor | None
    ancestors: Tensor
    length: int = 0
    filled: int = 0

    @classmethod
    def of(cls, layers: list[LayerCache], source: Layout) -> DecoderCache:
        """The cache before the first step, one hypothesis a slot."""
        keys = layers[0].keys
        mask = pad_mask(source)
        ancestors = keys.new_empty(source.batch_size, 1, 1, 0)
        return cls(layers, None if mask is None else mask.to(keys.dtype), ancestors)

    def advance(self, parents_SK: Tensor) -> int:
        """Make room for one step of the children of these hypotheses; returns its first column."""
        start, width = self.filled, parents_SK.shape[1]
        self.length += 1
        self.filled += width
        columns = self.ancestors.shape[3]
        if width > 1 or self.ancestors.shape[2] > 1:
            self.ancestors = self.ancestors.gather(2, parents_SK[:, None, :, None].expand(-1, -1, -1, columns))
        missing = whole_blocks(self.filled) - columns
        if missing > 0:
            self.ancestors = F.pad(self.ancestors, (0, missing), value=-math.inf)
        self.ancestors.diagonal(start, 2, 3).zero_()
        return start

    def keep(self, slots: Tensor) -> None:
        """Go on with these slots alone."""
        for layer in self.layers:
            layer.keep(slots)
        self.ancestors = self.ancestors[slots]
        if self.source_mask is not None:
            self.source_mask = self.source_mask[slots]
