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
    return F.dropout(x, p) if x.device.type != "cpu" else x * mask(x, p)


def add_dropout(x: Tensor, y: Tensor, p: float) -> Tensor:
    """x + dropout(y), in one pass where it is drawn by this module; two tensors of one shape and format."""
    if p == 0.0:
        return x + y
    return x + F.dropout(y, p) if y.device.type != "cpu" else torch.addcmul(x, y, mask(y, p))


def mask(like: Tensor, p: float) -> Tensor:
    """0 with probability `p`, else 1/(1−p), in shape and format of `like`, drawn from torch's CPU generator."""
    count = like.numel()
    draws = torch.empty(-(-count // PER_DRAW), dtype=torch.int64).random_(-(1 << 63), None)
    # A draw below the limit is kept. The limit and the number below it must both fit into an int16.
    limit = min(max(round((1 - p) * LEVELS) - LEVELS // 2, 1 - LEVELS // 2), LEVELS // 2 - 1)
    # Not by a comparison: the CPU's kernels for booleans are several times slower than those for numbers.
    kept = limit - draws.view(torch.int16)[:count].clamp_(limit - 1, limit)
    return kept.to(like.dtype).mul_(1 / (1 - p)).view(like.shape)


class Dropout(nn.Module):
    """The same as a module: active in training only."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """[...] to [...]."""
        return dropout(x, self.p) if self.training else x

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """`x` plus what comes of `y`, [...] each."""
        return add_dropout(x, y, self.p) if self.training else x + y
