"""Dropout (Srivastava et al., 2014); on the CPU with 16 random bits per element, where PyTorch's own uses 64."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PER_DRAW = 4
LEVELS = 1 << 16


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability `p`, to within 1/65536, and scale the others by 1/(1−p); any shape."""
    if p == 0.0:
        return x
    return x * mask(x, p) if _is_drawn_here(x) else F.dropout(x, p)


def add_dropout(x: Tensor, y: Tensor, p: float) -> Tensor:
    """x + dropout(y), in one pass where this module draws the mask; both tensors have the same shape and dtype."""
    if p == 0.0:
        return x + y
    return torch.addcmul(x, y, mask(y, p)) if _is_drawn_here(y) else x + F.dropout(y, p)


def mask(like: Tensor, p: float) -> Tensor:
    """0 with probability `p`, else 1/(1−p), in the shape and dtype of `like`, drawn from torch's CPU generator."""
    count = like.numel()
    draws = torch.empty(-(-count // PER_DRAW), dtype=torch.int64).random_(-(1 << 63), None)
    # A draw below the limit is kept. The limit and the number below it must both fit into an int16.
    limit = min(max(round((1 - p) * LEVELS) - LEVELS // 2, 1 - LEVELS // 2), LEVELS // 2 - 1)
    # No comparison here: CPU kernels for booleans are several times slower than those for numbers.
    kept = limit - draws.view(torch.int16)[:count].clamp_(limit - 1, limit)
    return kept.to(like.dtype).mul_(1 / (1 - p)).view(like.shape)


def _is_drawn_here(x: Tensor) -> bool:
    # Compiled code draws the mask in the same pass that applies it.
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class Dropout(nn.Module):
    """Dropout as a module: active in training only."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """[...] to [...]."""
        return dropout(x, self.p) if self.training else x

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """`x` plus dropout of `y`, [...] each."""
        return add_dropout(x, y, self.p) if self.training else x + y
