"""The Transformer decoder: masked self-attention, cross-attention, feed-forward (Vaswani et al., 2017, section 3.1)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from seq2seq.config.schema import TransformerConfig
from seq2seq.model.cache import ColumnCache
from seq2seq.model.decoder_layer import Attended, DecoderLayer
from seq2seq.model.embedding import Embedding
from seq2seq.model.interfaces import Memory
from seq2seq.model.layers import final_norm
from seq2seq.model.native_layers import NativeDecoder, if_alike
from seq2seq.model.positions import PositionedEmbedding
from seq2seq.model.recorded_cache import Holder, RecordedCache
from seq2seq.model.row_cache import RowCache
from seq2seq.ops import native
from seq2seq.ops.packing import Layout
from seq2seq.ops.row_attention import supports_row_attention
from seq2seq.support.errors import UserError

Cache = ColumnCache | RowCache | RecordedCache


class TransformerDecoder(nn.Module):
    """Embeddings with positions, then a stack of layers."""

    can_be_batch_invariant = True

    def __init__(self, config: TransformerConfig, embedding: Embedding) -> None:
        super().__init__()
        # Both from `finish` on.
        self._holder: Holder | None = None
        self._native: NativeDecoder | None = None
        d_model = embedding.d_model
        self.input = PositionedEmbedding(embedding, config)
        self.layers = nn.ModuleList(DecoderLayer(d_model, config) for _ in range(config.num_layers))
        self.norm = final_norm(d_model, config.norm)

    @property
    def _layers(self) -> list[DecoderLayer]:
        return cast("list[DecoderLayer]", list(self.layers))

    def forward(self, tokens: Tensor, layout: Layout, memory: Memory) -> Tensor:
        """Packed target tokens [M] to hidden rows [M, D]."""
        x_MD = self.input(tokens, layout.positions, layout.max_length)
        for layer in self._layers:
            x_MD = layer(x_MD, layout, memory.rows, memory.layout)
        return self.norm(x_MD)

    def supports_empty_sentences(self, device: torch.device, dtype: torch.dtype) -> bool:
        """See `interfaces.Decoder`."""
        return self._layers[0].self_attention.supports_empty_sentences(device, dtype)

    def with_attention(
        self, tokens: Tensor, layout: Layout, memory: Memory, layer: int | None
    ) -> tuple[Tensor, list[Tensor]]:
        """`forward`, with the attention of one layer; see `interfaces.Decoder`."""
        # In decoders of the paper's depth the second-to-last layer aligns best (Garg et al., 2019), in shallow ones the
        # last: docs/log.md, 2026-11-24.
        deep = len(self.layers) >= 6
        chosen = len(self.layers) - deep if layer is None else layer
        if not 1 <= chosen <= len(self.layers):
            raise UserError(f"attention of layer {chosen}: the decoder has layers 1 to {len(self.layers)}")
        weights: list[Tensor] = []
        x_MD = self.input(tokens, layout.positions, layout.max_length)
        for number, module in enumerate(self._layers, 1):
            if number == chosen:
                x_MD, weights = module.forward_with_weights(x_MD, layout, memory.rows, memory.layout)
            else:
                x_MD = module(x_MD, layout, memory.rows, memory.layout)
        return self.norm(x_MD), [own_HTL.float().mean(0) for own_HTL in weights]

    def finish(self) -> None:
        """See `interfaces.Decoder`."""
        self._holder = Holder()
        self._native = if_alike(NativeDecoder.of(DecoderLayer, self.layers, self.input, self.norm), self._sample)

    def _sample(self, native: NativeDecoder | None) -> Tensor:
        self._native = native
        layout, tokens = Layout.of([1, 12]), torch.tensor([[1, 2], [3, 4]])
        state = self.start(Memory(self.input(torch.arange(13), layout.positions, 12), layout))
        steps = [torch.tensor([parents, parents]) for parents in ([0, 0], [0, 1], [1, 0])]
        return torch.cat([self.step(state, tokens, parents) for parents in steps])

    def start(self, memory: Memory) -> Cache:
        """The cache before the first step: keys and values of the source, computed once."""
        sources = [layer.cross_attention.key_value(memory.rows) for layer in self._layers]
        first = self._layers[0].cross_attention
        if not supports_row_attention(*sources):
            return ColumnCache(sources, memory.layout, first.num_heads, first.widths[0])
        if self._holder and self._holder.is_free and not native.supports_inference(*sources):
            return RecordedCache(sources, memory.layout, first.num_heads, self._holder)
        # Under autocast the rows may differ in dtype from the weights that the native decoder reads.
        alike = memory.rows.dtype is self.input.embedding.weight.dtype
        return RowCache(sources, memory.layout, first.num_heads, self._native if alike else None)

    def step(self, state: Cache, tokens: Tensor, parents: Tensor) -> Tensor:
        """Hidden rows [S, K, D] for the next tokens [S, K]; see `interfaces.Decoder`."""
        return state.step(self, tokens, parents)

    def embedded(self, tokens: Tensor, position: int) -> Tensor:
        """See `decoder_layer.Steps`."""
        return self.input(tokens, position, position + 1)

    def through_layers(self, cache: Attended, x_SKD: Tensor) -> Tensor:
        """See `decoder_layer.Steps`."""
        for number, layer in enumerate(self._layers):
            x_SKD = layer.step(x_SKD, cache, number)
        return self.norm(x_SKD)

    def keep(self, state: Cache, slots: Tensor) -> None:
        """Keep only these slots."""
        state.keep(slots)
