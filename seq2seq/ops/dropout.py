"""Dropout (Srivastava et al., 2014); on the CPU with 16 random bits an element, which PyTorch's own spends 64 on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PER_DRAW = 4
LEVELS = 1 << 16


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability `p`, to 1/65536, and scale the others by 1/(1−p); any shape."""
    if p == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    return torch.where(keep_mask(x.shape, p), x, 0.0) * (1 / (1 - p))


def keep_mask(shape: torch.Size, p: float) -> Tensor:
    """A mask that is true with probability 1−p, drawn from torch's CPU generator."""
    count = shape.numel()
    draws = torch.empty(-(-count // PER_DRAW), dtype=torch.int64).random_(-(1 << 63), None)
    # At most the largest int16: the limit itself does not fit into one.
    limit = min(round((1 - p) * LEVELS) - LEVELS // 2, LEVELS // 2 - 1)
    return (draws.view(torch.int16)[:count] < limit).view(shape)


class Dropout(nn.Module):
    """The same as a module: active in training only."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """[...] to [...]."""
        return dropout(x, self.p) if self.training else x
