"""Matmuls of large matrices in training on CPUs, by C++ functions (`product.h`), alongside PyTorch's.

They are in float32 or bfloat16, accumulated in float32. They have no gradients of their own: `linear` and
`linear_cross_entropy` use them to compute theirs.

Shapes: M rows and N columns of the result, K summed over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seq2seq.ops import native

LEAST, FEWEST_SUMMED = 32, 1 << 20
"""The least value of each size, and of M·N·K, for which it pays to lay out y first."""


def product_reference(x_MK: Tensor, y_KN: Tensor, bias_N: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """x·y + b [M, N]; with `relu`, followed by ReLU."""
    if bias_N is None:
        out_MN = x_MK @ y_KN
    elif relu and x_MK.is_cuda:
        # By the matmul itself: another pass over the result would take more than half as long again.
        return torch._addmm_activation(bias_N, x_MK, y_KN)
    else:
        out_MN = torch.addmm(bias_N, x_MK, y_KN)
    return out_MN.relu_() if relu else out_MN


def product(
    x_MK: Tensor, y_KN: Tensor, bias_N: Tensor | None = None, *, relu: bool = False, out: Tensor | None = None
) -> Tensor:
    """`product_reference`, in C++ where `prefers_cpp`; without bias and ReLU, it may be written into `out` [M, N]."""
    assert out is None or (bias_N is None and not relu)
    if not prefers_cpp(x_MK, y_KN, bias_N):
        if out is not None:
            return torch.mm(x_MK, y_KN, out=out)
        return product_reference(x_MK, y_KN, bias_N, relu=relu)
    out_MN = x_MK.new_empty(x_MK.shape[0], y_KN.shape[1]) if out is None else out
    _compute(out_MN, x_MK, y_KN, bias_N, relu=relu)
    return out_MN


def product_and_sums(x_MK: Tensor, y_KN: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x·y and the row sums of x [M], in `dtype`; float32 results from C++ are not rounded to bfloat16 first."""
    if x_MK.stride(0) != 1 or x_MK.stride(1) == 1 or dtype is not torch.float32 or not prefers_cpp(x_MK, y_KN, None):
        return product(x_MK, y_KN).to(dtype), _row_sums(x_MK, dtype)
    out_MN = x_MK.new_empty(x_MK.shape[0], y_KN.shape[1], dtype=dtype)
    sums_M = x_MK.new_zeros(x_MK.shape[0], dtype=dtype)
    _compute(out_MN, x_MK, y_KN, sums_M=sums_M)
    return out_MN, sums_M


def _row_sums(x_MK: Tensor, dtype: torch.dtype) -> Tensor:
    if not (x_MK.is_cuda and x_MK.dtype is torch.bfloat16):
        return x_MK.sum(1, dtype=dtype)
    # A matmul takes half the time (docs/log.md, 2026-11-27). It rounds the sums as that of the weights rounds them.
    return (x_MK.new_ones(8, x_MK.shape[1]) @ x_MK.t())[0].to(dtype)


def add_product(out_MN: Tensor, x_MK: Tensor, y_KN: Tensor, *, first: bool = False) -> None:
    """Add x·y to `out`, which may be in float32 where x and y are not; the `first` is written over it."""
    there = out_MN.dtype is torch.float32 and out_MN.is_contiguous() and out_MN.device == x_MK.device
    if there and out_MN.shape == (x_MK.shape[0], y_KN.shape[1]) and prefers_cpp(x_MK, y_KN, None):
        _compute(out_MN, x_MK, y_KN, add=not first)
    elif first:
        out_MN.copy_(x_MK @ y_KN)
    else:
        out_MN += x_MK @ y_KN


def prefers_cpp(x_MK: Tensor, y_KN: Tensor, bias_N: Tensor | None, autocast: torch.dtype | None = None) -> bool:
    """Whether the C++ functions should multiply these: large, and on a CPU where they are faster in this dtype.

    The dtype is `autocast`, if given: then the tensors have yet to be converted to it.
    """
    # Sizes last: compiled code must not depend on them. Shapes that do not match are left to PyTorch to report.
    dtype = autocast or x_MK.dtype
    if not (native.supports(x_MK) and native.has_fast_large_matmul(dtype)):
        return False
    given = [x_MK, y_KN] if bias_N is None else [x_MK, y_KN, bias_N]
    formats = native.FORMATS if autocast else (dtype,)
    if any(each.device != x_MK.device or each.dtype not in formats for each in given):
        return False
    (rows, inner), columns = x_MK.shape, y_KN.shape[1]
    fits = y_KN.shape[0] == inner and (bias_N is None or bias_N.shape == (columns,))
    # In bfloat16, K is taken in pairs; it may be odd only where neither x nor y is contiguous along it.
    below = x_MK.stride(0) == 1 != x_MK.stride(1) and y_KN.stride(1) == 1
    fits = fits and (dtype is torch.float32 or inner % 2 == 0 or below)
    return fits and min(rows, inner, columns) >= LEAST and rows * inner * columns >= FEWEST_SUMMED


def _compute(
    out_MN: Tensor,
    x_MK: Tensor,
    y_KN: Tensor,
    bias_N: Tensor | None = None,
    *,
    sums_M: Tensor | None = None,
    add: bool = False,
    relu: bool = False,
) -> None:
    # Either rows or columns must be contiguous, and contiguous rows of x in whole 32-bit words.
    whole = x_MK.dtype is torch.float32 or x_MK.stride(0) % 2 == 0
    x = x_MK if x_MK.stride(0) == 1 or (x_MK.stride(1) == 1 and whole) else x_MK.contiguous()
    y = y_KN if 1 in y_KN.stride() else y_KN.contiguous()
    name = "product" if x.dtype is out_MN.dtype else "product_of_bfloat16"
    bias, sums = 0 if bias_N is None else bias_N.float().contiguous(), 0 if sums_M is None else sums_M
    sizes = *x.shape, y.shape[1], *x.stride(), *y.stride()
    native.call(name, out_MN, x.data_ptr(), y.data_ptr(), bias, sums, *sizes, int(add), int(relu))
