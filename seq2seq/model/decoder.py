"""The Transformer decoder: masked self-attention, cross-attention, feed-forward (Vaswani et al., 2017, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from seq2seq.config.schema import TransformerConfig
from seq2seq.model.attention import MultiHeadAttention
from seq2seq.model.cache import ColumnCache
from seq2seq.model.embedding import Embedding
from seq2seq.model.interfaces import Memory
from seq2seq.model.layers import FeedForward, Residual, final_norm
from seq2seq.model.positions import PositionedEmbedding
from seq2seq.model.recorded_cache import Holder, RecordedCache
from seq2seq.model.row_cache import RowCache
from seq2seq.ops import native
from seq2seq.ops.packing import Layout
from seq2seq.ops.row_attention import can_attend
from seq2seq.support.errors import UserError

Attend = Callable[[Tensor], Tensor]
Cache = ColumnCache | RowCache | RecordedCache


class Attended(Protocol):
    """Keys and values of a step of search, for all layers."""

    def attend_target(self, layer: int, q_SKD: Tensor, keys_values_SKE: Tensor) -> Tensor: ...

    def attend_source(self, layer: int, q_SKD: Tensor) -> Tensor: ...


class DecoderLayer(nn.Module):
    """The three sub-layers with their residual connections; who attends to what is the caller's matter."""

    regions = ("whole",)

    def __init__(self, d_model: int, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(d_model, config.num_heads, config.d_k)
        self.cross_attention = MultiHeadAttention(d_model, config.num_heads, config.d_k)
        self.feed_forward = FeedForward(d_model, config.d_ff)
        self.self_residual = Residual(d_model, config.norm, config.dropout)
        self.cross_residual = Residual(d_model, config.norm, config.dropout)
        self.feed_forward_residual = Residual(d_model, config.norm, config.dropout)

    def forward(self, x: Tensor, attend_target: Attend, attend_source: Attend) -> Tensor:
        """[..., D] to [..., D]."""
        x = self.self_residual(x, attend_target)
        x = self.cross_residual(x, attend_source)
        return self.feed_forward_residual(x, self.feed_forward)

    def whole(self, x_MD: Tensor, layout: Layout, memory_ND: Tensor, source: Layout) -> Tensor:
        """All positions of packed sentences at once, each seeing those before it: [M, D] to [M, D]."""
        return self(
            x_MD,
            lambda y: self.self_attention(y, layout, y, layout, causal=True),
            lambda y: self.cross_attention(y, layout, memory_ND, source),
        )

    def whole_with_weights(
        self, x_MD: Tensor, layout: Layout, memory_ND: Tensor, source: Layout
    ) -> tuple[Tensor, list[Tensor]]:
        """The same, with the weights of cross-attention of each sentence, [H, T, L]."""
        weights: list[Tensor] = []

        def attend_source(y_MD: Tensor) -> Tensor:
            out_MD, weights[:] = self.cross_attention.weights(y_MD, layout, memory_ND, source)
            return out_MD

        return self(x_MD, lambda y: self.self_attention(y, layout, y, layout, causal=True), attend_source), weights

    def step(self, x_SKD: Tensor, cache: Attended, number: int) -> Tensor:
        """One new position of each hypothesis; `number` is that of this layer in the cache: [S, K, D] to [S, K, D]."""

        def attend_target(y_SKD: Tensor) -> Tensor:
            of = self.self_attention
            return of.output(cache.attend_target(number, of.query(y_SKD), of.key_value(y_SKD)))

        def attend_source(y_SKD: Tensor) -> Tensor:
            of = self.cross_attention
            return of.output(cache.attend_source(number, of.query(y_SKD)))

        return self(x_SKD, attend_target, attend_source)


class TransformerDecoder(nn.Module):
    """Embeddings with positions, then a stack of layers."""

    rows_can_be_alone = True
    is_final = False

    def __init__(self, config: TransformerConfig, embedding: Embedding) -> None:
        super().__init__()
        self._holder = Holder()
        d_model = embedding.d_model
        self.input = PositionedEmbedding(embedding, config)
        self.layers = nn.ModuleList(DecoderLayer(d_model, config) for _ in range(config.num_layers))
        self.norm = final_norm(d_model, config.norm)

    def forward(self, tokens: Tensor, layout: Layout, memory: Memory) -> Tensor:
        """Packed target tokens [M] to hidden rows [M, D]."""
        x_MD = self.input(tokens, layout.positions, layout.max_length)
        for layer in cast("Iterable[DecoderLayer]", self.layers):
            x_MD = layer.whole(x_MD, layout, memory.rows, memory.layout)
        return self.norm(x_MD)

    def takes_empty_sentences(self, device: torch.device, dtype: torch.dtype) -> bool:
        """See `interfaces.Decoder`."""
        return cast(DecoderLayer, self.layers[0]).self_attention.takes_empty_sentences(device, dtype)

    def with_attention(
        self, tokens: Tensor, layout: Layout, memory: Memory, layer: int | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The same, with the attention of one layer; see `interfaces.Decoder`."""
        # In decoders of the paper's depth the last but one aligns best (Garg et al., 2019), in shallow ones the last:
        # docs/log.md, 2026-11-24.
        deep = len(self.layers) >= 6
        chosen = len(self.layers) - deep if layer is None else layer
        if not 1 <= chosen <= len(self.layers):
            raise UserError(f"attention of layer {chosen}: the decoder has layers 1 to {len(self.layers)}")
        weights: list[Tensor] = []
        x_MD = self.input(tokens, layout.positions, layout.max_length)
        for number, module in enumerate(cast("Iterable[DecoderLayer]", self.layers), 1):
            if number == chosen:
                x_MD, weights = module.whole_with_weights(x_MD, layout, memory.rows, memory.layout)
            else:
                x_MD = module.whole(x_MD, layout, memory.rows, memory.layout)
        return self.norm(x_MD), [own_HTL.float().mean(0) for own_HTL in weights]

    def start(self, memory: Memory) -> Cache:
        """The cache before the first step: keys and values of the source, computed once."""
        layers = list(cast("Iterable[DecoderLayer]", self.layers))
        sources = [layer.cross_attention.key_value(memory.rows) for layer in layers]
        first = layers[0].cross_attention
        if not can_attend(*sources):
            return ColumnCache(sources, memory.layout, first.num_heads, first.widths[0])
        if self.is_final and self._holder.is_free and not native.can_compute(*sources):
            return RecordedCache(sources, memory.layout, first.num_heads, self._holder)
        return RowCache(sources, memory.layout, first.num_heads)

    def step(self, state: Cache, tokens: Tensor, parents: Tensor) -> Tensor:
        """Hidden rows [S, K, D] for the next tokens [S, K]; see `interfaces.Decoder`."""
        state.advance(parents)
        # One number in a list: a GPU would have to be waited for to look up a bare one.
        position = torch.full((1,), state.length - 1, device=tokens.device)
        return state.computed(self._through_layers, self.input(tokens, position, state.length))

    def _through_layers(self, cache: Attended, x_SKD: Tensor) -> Tensor:
        for number, layer in enumerate(cast("Iterable[DecoderLayer]", self.layers)):
            x_SKD = layer.step(x_SKD, cache, number)
        return self.norm(x_SKD)

    def keep(self, state: Cache, slots: Tensor) -> None:
        """Go on with these slots alone."""
        state.keep(slots)
