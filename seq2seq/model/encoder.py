"""The Transformer encoder (Vaswani et al., 2017, section 3.1)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from seq2seq.config.schema import TransformerConfig
from seq2seq.model.attention import MultiHeadAttention
from seq2seq.model.embedding import Embedding
from seq2seq.model.interfaces import Memory
from seq2seq.model.layers import FeedForward, Residual, final_norm
from seq2seq.model.native_layers import NativeEncoder, if_alike
from seq2seq.model.positions import PositionedEmbedding
from seq2seq.ops.packing import Layout
from seq2seq.ops.row_attention import prefers_rows


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each with its residual connection."""

    regions = ("forward",)

    def __init__(self, d_model: int, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(d_model, config.num_heads, config.d_k)
        self.feed_forward = FeedForward(d_model, config.d_ff)
        self.attention_residual = Residual(d_model, config.norm, config.dropout)
        self.feed_forward_residual = Residual(d_model, config.norm, config.dropout)

    def forward(self, x_ND: Tensor, layout: Layout) -> Tensor:
        """Packed rows [N, D] to packed rows [N, D]."""
        x_ND = self.attention_residual(x_ND, lambda y: self.self_attention(y, layout, y, layout))
        return self.feed_forward_residual(x_ND, self.feed_forward)


class TransformerEncoder(nn.Module):
    """Embeddings with positions, then a stack of layers."""

    can_be_batch_invariant = True

    def __init__(self, config: TransformerConfig, embedding: Embedding) -> None:
        super().__init__()
        d_model = embedding.d_model
        self._native: NativeEncoder | None = None
        self.input = PositionedEmbedding(embedding, config)
        self.layers = nn.ModuleList(EncoderLayer(d_model, config) for _ in range(config.num_layers))
        self.norm = final_norm(d_model, config.norm)

    def forward(self, tokens: Tensor, layout: Layout) -> Memory:
        """Packed source tokens [N] to their memory."""
        x_ND = self.input(tokens, layout.positions, layout.max_length)
        if self._native and prefers_rows(x_ND, layout, layout):
            return Memory(self.norm(self._native(x_ND, layout)), layout)
        for layer in self.layers:
            x_ND = layer(x_ND, layout)
        return Memory(self.norm(x_ND), layout)

    def supports_empty_sentences(self, device: torch.device, dtype: torch.dtype) -> bool:
        """See `interfaces.Encoder`."""
        return cast(EncoderLayer, self.layers[0]).self_attention.supports_empty_sentences(device, dtype)

    def finish(self) -> None:
        """See `interfaces.Encoder`."""
        self._native = if_alike(NativeEncoder.of(EncoderLayer, self.layers), self._sample)

    def _sample(self, native: NativeEncoder | None) -> Tensor:
        self._native = native
        return self(torch.arange(13), Layout.of([1, 12])).rows
