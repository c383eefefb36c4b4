"""Multi-head attention (Vaswani et al., 2017, section 3.2.2).

Shapes: N packed rows that attend (x), M packed rows that are attended to (memory); D d_model, H heads, E the width of
one: d_k in queries and keys, d_v = D/H in values and outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seq2seq.ops.attention import attend, attention_reference
from seq2seq.ops.attention_shape import AttentionShape
from seq2seq.ops.linear import Linear, linear
from seq2seq.ops.packing import Layout
from seq2seq.ops.short_attention import supports_short_sentences


class MultiHeadAttention(nn.Module):
    """Projects queries, keys and values to H heads, attends, and projects the concatenated heads; all with a bias.

    Without `d_k`, queries and keys are as wide as values.
    """

    def __init__(self, d_model: int, num_heads: int, d_k: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        key_width = d_model if d_k is None else num_heads * d_k
        self.widths = (key_width, d_model)
        self.query = Linear(d_model, key_width)
        self.key_value = Linear(d_model, key_width + d_model)
        self.output = Linear(d_model, d_model)
        # Keys and values are initialised apart: together they would get the scale of a matrix twice as wide.
        for weight in (self.query.weight, *self.key_value.weight.split(self.widths), self.output.weight):
            nn.init.xavier_uniform_(weight)
        for layer in (self.query, self.key_value, self.output):
            nn.init.zeros_(layer.bias)

    def forward(
        self, x_ND: Tensor, layout: Layout, memory_MD: Tensor, memory_layout: Layout, *, causal: bool = False
    ) -> Tensor:
        """Attend from each row of `x` to the rows of `memory` in the same sentence, [N, D]."""
        return self.output(attend(self._projected(x_ND, memory_MD), layout, memory_layout, self._shape(causal)))

    def supports_empty_sentences(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether short sentences are computed, on this device in this dtype, by a kernel that allows empty ones."""
        return supports_short_sentences(device, dtype, *self._shape(causal=False).head_widths)

    def weights(
        self, x_ND: Tensor, layout: Layout, memory_MD: Tensor, memory_layout: Layout, *, causal: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """`forward` by the textbook formula, with the attention weights [H, T, L] from each sentence's T rows to L."""
        q_NHE, k_MHE, v_MHE = self._shape(causal).split((self.query(x_ND), self.key_value(memory_MD)))
        out_NHE, weights = attention_reference(q_NHE, k_MHE, v_MHE, layout, memory_layout, causal=causal)
        return self.output(out_NHE.flatten(1)), weights

    def _projected(self, x_ND: Tensor, memory_MD: Tensor) -> tuple[Tensor, ...]:
        """Queries, then keys and values, of all heads side by side; all in one tensor in self-attention in training."""
        # Separately in translation, where these layers may be int8.
        if memory_MD is not x_ND or not torch.is_grad_enabled():
            return self.query(x_ND), self.key_value(memory_MD)
        # One matrix multiplication for all three projections reads its input once.
        weight = torch.cat((self.query.weight, self.key_value.weight))
        return (linear(x_ND, weight, torch.cat((self.query.bias, self.key_value.bias))),)

    def _shape(self, causal: bool) -> AttentionShape:
        return AttentionShape(self.num_heads, self.widths, causal)
