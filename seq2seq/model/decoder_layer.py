"""A layer of the Transformer decoder (Vaswani et al., 2017, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from seq2seq.config.schema import TransformerConfig
from seq2seq.model.attention import MultiHeadAttention
from seq2seq.model.layers import FeedForward, Residual
from seq2seq.ops.packing import Layout

Attend = Callable[[Tensor], Tensor]


class Attended(Protocol):
    """The keys and values that all layers attend to in a search step: a cache, whose `step` calls a decoder's `Steps`.

    So a step goes from `TransformerDecoder.step` to its cache, from there through all layers, and from each back to the
    cache. Only the cache knows how many steps there were, and so the position.
    """

    def attend_target(self, layer: int, q_SKD: Tensor, keys_values_SKE: Tensor) -> Tensor:
        """Add the keys and values of this step to those of a layer; attend to all of them: [S, K, D]."""

    def attend_source(self, layer: int, q_SKD: Tensor) -> Tensor:
        """Attend to the keys and values of the source in a layer: [S, K, D]."""


class Steps(Protocol):
    """What a cache needs from its decoder for a search step."""

    def embedded(self, tokens: Tensor, position: int) -> Tensor:
        """The first layer's input for tokens [...] at this position: [..., D]."""

    def through_layers(self, cache: Attended, x: Tensor) -> Tensor:
        """Rows [S, K, D] passed through all layers and the final norm."""


class DecoderLayer(nn.Module):
    """The three sub-layers with their residual connections."""

    regions = ("forward",)

    def __init__(self, d_model: int, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(d_model, config.num_heads, config.d_k)
        self.cross_attention = MultiHeadAttention(d_model, config.num_heads, config.d_k)
        self.feed_forward = FeedForward(d_model, config.d_ff)
        self.self_residual = Residual(d_model, config.norm, config.dropout)
        self.cross_residual = Residual(d_model, config.norm, config.dropout)
        self.feed_forward_residual = Residual(d_model, config.norm, config.dropout)

    def _sublayers(self, x: Tensor, attend_target: Attend, attend_source: Attend) -> Tensor:
        x = self.self_residual(x, attend_target)
        x = self.cross_residual(x, attend_source)
        return self.feed_forward_residual(x, self.feed_forward)

    def forward(self, x_MD: Tensor, layout: Layout, memory_ND: Tensor, source: Layout) -> Tensor:
        """All positions of packed sentences at once, each seeing itself and those before it: [M, D] to [M, D]."""
        return self._sublayers(
            x_MD,
            lambda y: self.self_attention(y, layout, y, layout, causal=True),
            lambda y: self.cross_attention(y, layout, memory_ND, source),
        )

    def forward_with_weights(
        self, x_MD: Tensor, layout: Layout, memory_ND: Tensor, source: Layout
    ) -> tuple[Tensor, list[Tensor]]:
        """`forward`, with the cross-attention weights of each sentence, [H, T, L]: T target and L source tokens."""
        weights: list[Tensor] = []

        def attend_source(y_MD: Tensor) -> Tensor:
            out_MD, weights[:] = self.cross_attention.weights(y_MD, layout, memory_ND, source)
            return out_MD

        out_MD = self._sublayers(x_MD, lambda y: self.self_attention(y, layout, y, layout, causal=True), attend_source)
        return out_MD, weights

    def step(self, x_SKD: Tensor, cache: Attended, number: int) -> Tensor:
        """One new position of each hypothesis, [S, K, D] to [S, K, D]; `number` is this layer's index in the cache."""

        def attend_target(y_SKD: Tensor) -> Tensor:
            of = self.self_attention
            return of.output(cache.attend_target(number, of.query(y_SKD), of.key_value(y_SKD)))

        def attend_source(y_SKD: Tensor) -> Tensor:
            of = self.cross_attention
            return of.output(cache.attend_source(number, of.query(y_SKD)))

        return self._sublayers(x_SKD, attend_target, attend_source)
