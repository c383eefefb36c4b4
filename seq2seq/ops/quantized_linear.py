"""Linear layers in 8-bit integers, for translation, beside the plain reference.

Weights are rounded once, one scale a row of the matrix (an output channel); the rows that come in are rounded as they
come, one scale a row, so that no row sees its neighbours. Scales make the largest value 127. The products are summed in
exact int32: the only errors are those of the two roundings.

Shapes: ... any, N rows, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.support.errors import UserError


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., I] as int8 and the scale of each, [..., 1] in float32: x ≈ int8 · scale."""
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True).clamp_(min=1e-12).div_(127)
    return (x / scale).round_().to(torch.int8), scale


def quantized_linear_reference(x: Tensor, weight_OI: Tensor, scale_O1: Tensor, bias: Tensor | None) -> Tensor:
    """The rounded rows times the rounded weights, in float64, plus the bias: [..., O]."""
    rows, scale = quantize(x)
    return F.linear(rows.double() * scale, weight_OI.double() * scale_O1, None if bias is None else bias.double())


class QuantizedLinear(nn.Module):
    """x·Wᵀ + b of float rows with int8 weights; the result is float32."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        weight, scale_O1 = quantize(weight_OI.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale_O1[:, 0])
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        rows_NI, scale_N1 = quantize(x.flatten(0, -2))
        sums_NO = torch._int_mm(rows_NI, self.weight.t()).float().mul_(scale_N1)
        out_NO = sums_NO.mul_(self.scale) if self.bias is None else torch.addcmul(self.bias, sums_NO, self.scale)
        return out_NO.view(*x.shape[:-1], -1)


def quantize_linears(module: nn.Module) -> None:
    """Put quantized layers in the place of all linear ones in `module`. Raises UserError where torch has no kernel."""
    try:
        torch._int_mm(torch.ones(2, 8, dtype=torch.int8), torch.ones(8, 8, dtype=torch.int8))
    except (AttributeError, RuntimeError):
        raise UserError(
            f"int8: torch {torch.__version__} has no 8-bit products on this processor; type --dtype float32"
        ) from None
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, QuantizedLinear(child.weight, child.bias))
        else:
            quantize_linears(child)
