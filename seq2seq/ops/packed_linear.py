"""Linear layers for translation where `panel_linear` is not used: weights laid out once as oneDNN's matmuls read them.

Otherwise PyTorch's bfloat16 matmul lays the weight out anew at each call, and float32 goes to another library: this
takes up to four times as long (docs/log.md, 2026-11-28). The two operations are those that PyTorch's own compiler
calls; they have no backward pass. The plain reference is `F.linear`.

Shapes: ... any, I inputs, O outputs.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from seq2seq.ops.filled_rows import filled_up, whole_steps


class PackedLinear(nn.Module):
    """x·Wᵀ + b for rows in the weight's dtype, float32 or bfloat16; it has no state dict."""

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach())
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor, *, relu: bool = False) -> Tensor:
        """[..., I] to [..., O]; with `relu`, followed by ReLU."""
        rows_RI = x.reshape(-1, x.shape[-1])
        rows = rows_RI.shape[0]
        # In float32, compiling takes a fifth of the time it takes in bfloat16, less than the copy.
        filled = filled_up(rows_RI, whole_steps(rows)) if x.dtype is torch.bfloat16 else rows_RI
        return self._product(filled, relu)[:rows].view(*x.shape[:-1], -1)

    def _product(self, x: Tensor, relu: bool) -> Tensor:
        after = "relu" if relu else "none"
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, after, [], ""))


def supports_packing(weight: Tensor) -> bool:
    """Whether this PyTorch has the two operations for weights of this device and dtype."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        PackedLinear(weight[:1])(weight[:1])
    except (AttributeError, RuntimeError):
        return False
    return True
