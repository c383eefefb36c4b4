"""What encoder and decoder layers are made of: feed-forward and residual connection with layer normalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from seq2seq.ops.dropout import Dropout
from seq2seq.ops.feed_forward import feed_forward
from seq2seq.ops.linear import Linear
from seq2seq.ops.residual_norm import add_norm, residual_norm


class FeedForward(nn.Module):
    """max(0, x·W₁ + b₁)·W₂ + b₂, the same at each position (section 3.3)."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.inner = Linear(d_model, d_ff)
        self.outer = Linear(d_ff, d_model)
        for linear in (self.inner, self.outer):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] to [..., d_model]."""
        return feed_forward(x, self.inner, self.outer)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation (Ba et al., 2016) with float32 sums in both passes.

    On CPUs PyTorch accumulates the gradients of weight and bias in the dtype of the rows: over 8,192 rows in bfloat16
    that of the bias was 59 % off (docs/log.md, 2026-11-26).
    """

    def forward(self, input: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        if input.device.type != "cpu" or input.dtype is not torch.bfloat16 or self.weight.dtype is not torch.float32:
            return super().forward(input)
        return super().forward(input.float()).bfloat16()


class Residual(nn.Module):
    """LayerNorm(x + Dropout(sublayer(x))), as in the paper (sections 3.1, 5.4).

    Pre-norm: x + Dropout(sublayer(LayerNorm(x))).
    """

    def __init__(self, d_model: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.norm = LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        self.normalise_first = norm == "pre"

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[..., d_model] to [..., d_model]."""
        if self.normalise_first:
            return self.dropout.add(x, sublayer(self.norm(x)))
        if not self.training:
            return add_norm(x, sublayer(x), self.norm)
        return residual_norm(x, sublayer(x), self.norm, self.dropout.p)


def final_norm(d_model: int, norm: str) -> nn.Module:
    """The normalisation after the last layer: pre-norm stacks need one, post-norm ones already end in one."""
    return LayerNorm(d_model) if norm == "pre" else nn.Identity()
