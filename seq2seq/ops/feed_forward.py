"""max(0, x·W₁ + b₁)·W₂ + b₂ in training on GPUs (section 3.3 of the paper), alongside the plain reference.

The matmul that gives the gradient of the inner layer's output also applies that of ReLU and sums the result over rows,
the gradient of b₁: by themselves these two take longer than the matmul (docs/log.md, 2026-11-27).

Shapes: N rows, D d_model, F d_ff.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seq2seq.ops.gpu import supports_triton
from seq2seq.ops.linear import Linear
from seq2seq.ops.operators import register
from seq2seq.ops.product import product, product_and_sums
from seq2seq.support.devices import capability, compute_dtype

ROWS, COLUMNS, PART, GROUP = 128, 128, 64, 8
"""Rows and columns of a tile, terms of a sum that are read at a time, and rows of tiles computed one after another."""


def feed_forward_reference(x: Tensor, inner: Linear, outer: Linear) -> Tensor:
    """[..., D] to [..., D]."""
    return outer(inner(x, relu=True))


def feed_forward(x: Tensor, inner: Linear, outer: Linear) -> Tensor:
    """`feed_forward_reference`, with matmuls in the autocast dtype where autocast is active."""
    # Only in training do these layers have weights in the formats that PyTorch knows.
    if not (
        torch.is_grad_enabled() and supports_rectified_product(x.device, compute_dtype(x)) and _fits(inner.weight.shape)
    ):
        return feed_forward_reference(x, inner, outer)
    weights = inner.weight, inner.bias, outer.weight, outer.bias
    out_ND: Tensor = FeedForwardFunction.apply(x.reshape(-1, x.shape[-1]), *weights)  # type: ignore[no-untyped-call]
    return out_ND.view(x.shape)


def supports_rectified_product(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel can be used: on GPUs that copy tiles by themselves, from Hopper on."""
    return capability(device) >= (9, 0) and dtype in (torch.float16, torch.bfloat16) and supports_triton(device)


def _fits(shape: torch.Size) -> bool:
    # Tiles are copied from rows of whole 16 bytes.
    return all(size % 8 == 0 for size in shape)


class FeedForwardFunction(torch.autograd.Function):
    """For rows [N, D], weights [F, D] and [D, F], biases [F] and [D]."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, inner_FD: Tensor, bias_F: Tensor, outer_DF: Tensor, bias_D: Tensor) -> Tensor:
        dtype, ctx.format = compute_dtype(x_ND), inner_FD.dtype
        x_ND, inner_FD, outer_DF = x_ND.to(dtype), inner_FD.to(dtype), outer_DF.to(dtype)
        hidden_NF = product(x_ND, inner_FD.t(), bias_F.to(dtype), relu=True)
        ctx.save_for_backward(x_ND, inner_FD, hidden_NF, outer_DF)
        return product(hidden_NF, outer_DF.t(), bias_D.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, inner_FD, hidden_NF, outer_DF = ctx.saved_tensors
        of_x, of_inner, of_bias, of_outer, of_outer_bias = ctx.needs_input_grad
        d_hidden_NF, sums = torch.ops.seq2seq.rectified_product(d_ND, outer_DF, hidden_NF)
        d_outer_DF, d_bias_D = None, None
        if of_outer or of_outer_bias:
            d_outer_DF, d_bias_D = product_and_sums(d_ND.t(), hidden_NF, ctx.format)
        return (
            product(d_hidden_NF, inner_FD) if of_x else None,
            product(d_hidden_NF.t(), x_ND).to(ctx.format) if of_inner else None,
            sums.sum(0).to(ctx.format) if of_bias else None,
            d_outer_DF,
            d_bias_D,
        )


def rectified_product_reference(x_NK: Tensor, y_KF: Tensor, rectified_NF: Tensor) -> tuple[Tensor, Tensor]:
    """x·y, zero where `rectified` is not above zero, and its sum over rows, [1, F], float32."""
    out_NF = torch.where(rectified_NF > 0, x_NK @ y_KF, 0)
    return out_NF, out_NF.sum(0, keepdim=True, dtype=torch.float32)


def _rectified_product(x_NK: Tensor, y_KF: Tensor, rectified_NF: Tensor) -> tuple[Tensor, Tensor]:
    """`rectified_product_reference` by our kernel, with a sum for each tile of rows."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    from seq2seq.ops import gpu_kernels

    (rows, inner), width = x_NK.shape, y_KF.shape[1]
    out_NF, tiles = x_NK.new_empty(rows, width), -(-rows // ROWS)
    sums = torch.empty(tiles, width, device=x_NK.device)
    if not rows:
        return out_NF, sums
    shapes = (ROWS, PART), (PART, COLUMNS), (ROWS, COLUMNS), (ROWS, COLUMNS)
    described = [
        TensorDescriptor.from_tensor(tensor, list(shape))
        for tensor, shape in zip((x_NK.contiguous(), y_KF.contiguous(), rectified_NF, out_NF), shapes, strict=True)
    ]
    gpu_kernels.rectified_product[(tiles * -(-width // COLUMNS),)](
        *described, sums, rows, inner, width, ROWS, COLUMNS, PART, GROUP, num_warps=4, num_stages=3
    )
    return out_NF, sums


register(
    "rectified_product(Tensor x, Tensor y, Tensor rectified) -> (Tensor, Tensor)",
    _rectified_product,
    lambda x, _, rectified: (
        x.new_empty(rectified.shape),
        x.new_empty((x.shape[0] + ROWS - 1) // ROWS, rectified.shape[1], dtype=torch.float32),
    ),
)
