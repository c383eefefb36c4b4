"""max(0, x·Wᵀ + b) (section 3.3 of the paper) on GPUs, beside its plain reference.

There the product itself adds the bias and cuts off what is below zero; by itself that is to read and write all of it
once more. What is no number may become 0, as in `packed_linear`: the sum with the residual connection keeps it.

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seq2seq.support.devices import compute_dtype


def rectified_linear_reference(x: Tensor, linear: nn.Linear) -> Tensor:
    """[..., I] to [..., O]."""
    out: Tensor = linear(x)
    return out.relu_()


def rectified_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """The same; products in the autocast format where one is active."""
    if not x.is_cuda:
        return rectified_linear_reference(x, linear)
    rows_NI = x.reshape(-1, x.shape[-1])
    out_NO: Tensor = RectifiedLinear.apply(rows_NI, linear.weight, linear.bias)  # type: ignore[no-untyped-call]
    return out_NO.view(*x.shape[:-1], out_NO.shape[-1])


class RectifiedLinear(torch.autograd.Function):
    """Of rows [N, I], by a weight [O, I] and a bias [O]."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
        dtype, ctx.format = compute_dtype(x_NI), weight_OI.dtype
        x_NI, weight_OI = x_NI.to(dtype), weight_OI.to(dtype)
        out_NO = torch._addmm_activation(bias_O.to(dtype), x_NI, weight_OI.t())
        ctx.save_for_backward(x_NI, weight_OI, out_NO)
        return out_NO

    @staticmethod
    def backward(ctx: Any, d_out_NO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_NI, weight_OI, out_NO = ctx.saved_tensors
        d_NO = d_out_NO.masked_fill(out_NO <= 0, 0)
        return d_NO @ weight_OI, (d_NO.t() @ x_NI).to(ctx.format), d_NO.sum(0, dtype=ctx.format)
