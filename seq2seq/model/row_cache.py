"""The key-value cache of a Transformer decoder in search, where `ops.row_attention.supports_row_attention` holds.

Rows of keys and values are written once, appended as steps produce them, and stay where they are. The choices of search
only change the list of rows of each hypothesis; so no slot ever moves, and no padding is computed.

Shapes: S slots, K hypotheses of each, N rows, T steps so far, L source length; D d_model, E keys and values of all
heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seq2seq.model.decoder_layer import Steps
from seq2seq.model.native_layers import NativeDecoder, addresses
from seq2seq.ops.packing import Layout
from seq2seq.ops.row_attention import row_attention
from seq2seq.ops.sequences import extended

ROWS = 256
"""Initial capacity in target rows: usually enough for a single sentence."""


class RowCache:
    """The row lists of all hypotheses, and the rows of each layer: those of the source, and those of the target so far.

    `sources` are keys and values of the packed source [N, E], one for each layer; `native` computes steps in one call.
    """

    def __init__(self, sources: list[Tensor], layout: Layout, heads: int, native: NativeDecoder | None = None) -> None:
        self.sources, self.heads, self.native = sources, heads, native
        self.targets = [source_NE[:0] for source_NE in sources]
        self._addresses = addresses(self.targets), addresses(sources)
        self.source_BL = layout.lists
        self.sentence_S = torch.arange(layout.batch_size, dtype=torch.int32, device=layout.lengths.device)
        self.past_SKT = self.sentence_S.new_empty(layout.batch_size, 1, 0)
        self.filled = 0
        self._number_rows(1)

    @property
    def length(self) -> int:
        """The number of steps so far."""
        return self.past_SKT.shape[2]

    def step(self, decoder: Steps, tokens_SK: Tensor, parents_SK: Tensor) -> Tensor:
        """Hidden rows [S, K, D] of these tokens, each of which extends one of its slot's hypotheses."""
        if not self.native:
            self.advance(parents_SK)
            return decoder.through_layers(self, decoder.embedded(tokens_SK, self.length - 1))
        first = self._make_room(parents_SK)
        rest = *self._addresses, self.source_BL, self.sentence_R
        x_SKD, self.past_SKT = self.native(tokens_SK, parents_SK, self.past_SKT, first, *rest)
        return x_SKD

    def advance(self, parents_SK: Tensor) -> None:
        """Make room for the next step, whose hypotheses have these parents."""
        self.past_SKT = extended(self.past_SKT, parents_SK, self._make_room(parents_SK))

    def _make_room(self, parents_SK: Tensor) -> int:
        """Make room for the keys and values of a step; returns the number of its first row."""
        if parents_SK.numel() != len(self.hypothesis_R):
            self._number_rows(parents_SK.shape[1])
        self.filled += parents_SK.numel()
        if self.filled > len(self.targets[0]):
            for layer, rows_NE in enumerate(self.targets):
                self.targets[layer] = rows_NE.new_empty(max(2 * self.filled, ROWS), rows_NE.shape[1])
                self.targets[layer][: len(rows_NE)] = rows_NE
            self._addresses = addresses(self.targets), self._addresses[1]
        return self.filled - parents_SK.numel()

    def attend_target(self, layer: int, q_SKD: Tensor, keys_values_SKE: Tensor) -> Tensor:
        """Append a layer's keys and values; attend from each hypothesis to its past and itself: [S, K, D]."""
        rows_NE = self.targets[layer]
        rows_NE[self.filled - len(self.hypothesis_R) : self.filled] = keys_values_SKE.flatten(0, 1)
        return self._attend(q_SKD, rows_NE, self.past_SKT.flatten(0, 1), self.hypothesis_R)

    def attend_source(self, layer: int, q_SKD: Tensor) -> Tensor:
        """Attend to the source of each slot: [S, K, D]."""
        return self._attend(q_SKD, self.sources[layer], self.source_BL, self.sentence_R)

    def keep(self, slots: Tensor) -> None:
        """Keep only these slots."""
        self.sentence_S, self.past_SKT = self.sentence_S[slots], self.past_SKT[slots]
        self._number_rows(self.past_SKT.shape[1])

    def _number_rows(self, width: int) -> None:
        """Number the rows of a step and note their sentences, for `width` hypotheses of each slot."""
        self.sentence_R = self.sentence_S.repeat_interleave(width)
        self.hypothesis_R = torch.arange(len(self.sentence_R), dtype=torch.int32, device=self.sentence_S.device)

    def _attend(self, q_SKD: Tensor, rows_NE: Tensor, lists: Tensor, list_of_R: Tensor) -> Tensor:
        return row_attention(q_SKD.flatten(0, 1), rows_NE, lists, list_of_R, self.heads).unflatten(0, q_SKD.shape[:2])
