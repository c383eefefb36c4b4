"""Token embeddings, which may also serve as the output matrix (Vaswani et al., 2017, section 3.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Embedding(nn.Module):
    """A matrix [V, D], drawn from N(0, 1/D); looked-up rows are scaled by √D."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))
        with torch.no_grad():
            self.weight.normal_(std=d_model**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [...] to rows [..., D]."""
        return F.embedding(tokens, self.weight) * math.sqrt(self.d_model)
