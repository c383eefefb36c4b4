"""The key-value cache of a Transformer decoder in search, in plain PyTorch; `row_cache.RowCache` does the same faster.

Keys and values are written once and stay in place within their slot. Each step fills one column per hypothesis of a
slot; a mask over the columns records the ancestors of each hypothesis, and only this mask follows the choices of
search. Columns are allocated a block at a time: those not yet filled are zeros, masked for every hypothesis.

Shapes: S slots, K hypotheses of each, N packed rows, H heads, C columns; D d_model, E width of a head (d_k in keys, d_v
in values), or of keys and values of all heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.model.decoder_layer import Steps
from seq2seq.ops.packing import Layout
from seq2seq.ops.step_attention import BLOCK, pad_mask, padded_heads, step_attention


def move(x: Tensor, slots: Tensor) -> Tensor:
    """`x[slots]`, built in place at the front of `x` by copying only the slots that move, usually few."""
    places = torch.arange(slots.shape[0], device=slots.device)
    moved = (slots != places).nonzero()[:, 0]
    x[moved] = x[slots[moved]]
    return x[: slots.shape[0]]


def whole_blocks(columns: int) -> int:
    """`columns`, rounded up to whole blocks."""
    return -(-columns // BLOCK) * BLOCK


@dataclass
class Columns:
    """Keys and values, [S, H, C, E] each."""

    keys: Tensor
    values: Tensor

    def append(self, keys_SKHE: Tensor, values_SKHE: Tensor, start: int) -> None:
        """Fill the columns from `start` on."""
        end = start + keys_SKHE.shape[1]
        missing = whole_blocks(end) - self.keys.shape[2]
        if missing > 0:
            self.keys, self.values = (F.pad(x, (0, 0, 0, missing)) for x in (self.keys, self.values))
        self.keys[:, :, start:end] = keys_SKHE.transpose(1, 2)
        self.values[:, :, start:end] = values_SKHE.transpose(1, 2)

    def attend(self, q_SKHE: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from K queries of each slot, with a mask as in `step_attention`; heads concatenated, [S, K, D]."""
        return step_attention(q_SKHE.transpose(1, 2), self.keys, self.values, mask).transpose(1, 2).flatten(2)

    def keep(self, slots: Tensor) -> None:
        """Keep only these slots."""
        self.keys, self.values = move(self.keys, slots), move(self.values, slots)


class ColumnCache:
    """The source and target columns of all layers, and two masks of 0 and −∞.

    `source_mask` [S, 1, 1, C] (None: no padding) hides the columns after the end of the source, `ancestors`
    [S, 1, K, C] those outside the past of each hypothesis. `sources` are each layer's keys and values of the packed
    source [N, E], of which the first `width` columns are keys.
    """

    def __init__(self, sources: list[Tensor], source: Layout, heads: int, width: int) -> None:
        self.heads, self.width = heads, width
        self.sources = [
            Columns(*(padded_heads(rows_NHE, source) for rows_NHE in self._heads(rows_NE))) for rows_NE in sources
        ]
        self.targets = [Columns(of_one.keys[:, :, :0], of_one.values[:, :, :0]) for of_one in self.sources]
        mask = pad_mask(source)
        self.source_mask = None if mask is None else mask.to(sources[0].dtype)
        self.ancestors = self.targets[0].keys.new_empty(source.batch_size, 1, 1, 0)
        self.length = self.filled = 0

    def step(self, decoder: Steps, tokens_SK: Tensor, parents_SK: Tensor) -> Tensor:
        """Hidden rows [S, K, D] of these tokens, each of which extends one of its slot's hypotheses."""
        self.advance(parents_SK)
        return decoder.through_layers(self, decoder.embedded(tokens_SK, self.length - 1))

    def advance(self, parents_SK: Tensor) -> None:
        """Make room for the next step, whose hypotheses have these parents."""
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

    def attend_target(self, layer: int, q_SKD: Tensor, keys_values_SKE: Tensor) -> Tensor:
        """Append a layer's keys and values; attend from each hypothesis to its past and itself: [S, K, D]."""
        columns = self.targets[layer]
        keys_SKHE, values_SKHE = self._heads(keys_values_SKE)
        columns.append(keys_SKHE, values_SKHE, self.filled - q_SKD.shape[1])
        return columns.attend(q_SKD.unflatten(2, (self.heads, -1)), self.ancestors)

    def attend_source(self, layer: int, q_SKD: Tensor) -> Tensor:
        """Attend to the source of each slot: [S, K, D]."""
        return self.sources[layer].attend(q_SKD.unflatten(2, (self.heads, -1)), self.source_mask)

    def keep(self, slots: Tensor) -> None:
        """Keep only these slots."""
        for columns in (*self.sources, *self.targets):
            columns.keep(slots)
        self.ancestors = self.ancestors[slots]
        if self.source_mask is not None:
            self.source_mask = self.source_mask[slots]

    def _heads(self, keys_values: Tensor) -> list[Tensor]:
        """Keys and values [..., E] split, [..., H, width of a head] each."""
        parts = keys_values.split([self.width, keys_values.shape[-1] - self.width], -1)
        return [part.unflatten(-1, (self.heads, -1)) for part in parts]
