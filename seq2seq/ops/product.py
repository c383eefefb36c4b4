"""Products of large matrices in training on processors by functions in C++ (`large_product.h`), beside PyTorch's.

They are in float32 or bfloat16, summed in float32. They have no gradients of their own: `linear` and
`linear_cross_entropy` compute theirs by them.

Shapes: M rows and N columns of the result, K summed over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seq2seq.ops import native

LEAST, FEWEST_SUMMED = 32, 1 << 20
"""Of each size, and of products, for which it pays to lay out y first."""


def product_reference(x_MK: Tensor, y_KN: Tensor, bias_N: Tensor | None = None, *, rectify: bool = False) -> Tensor:
    """x·y + b [M, N], and with `rectify` max(0, …) of it."""
    if bias_N is None:
        out_MN = x_MK @ y_KN
    elif rectify and x_MK.is_cuda:
        # By the product itself: to read and write all of it once more takes half as long.
        return torch._addmm_activation(bias_N, x_MK, y_KN)
    else:
        out_MN = torch.addmm(bias_N, x_MK, y_KN)
    return out_MN.relu_() if rectify else out_MN


def product(x_MK: Tensor, y_KN: Tensor, bias_N: Tensor | None = None, *, rectify: bool = False) -> Tensor:
    """The same."""
    if not multiplies(x_MK, y_KN, bias_N):
        return product_reference(x_MK, y_KN, bias_N, rectify=rectify)
    out_MN = x_MK.new_empty(x_MK.shape[0], y_KN.shape[1])
    _compute(out_MN, x_MK, y_KN, bias_N, rectify=rectify)
    return out_MN


def product_and_sums(x_MK: Tensor, y_KN: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x·y, and the sums of rows of x [M], in `dtype`. Here what is in float32 was not rounded to bfloat16 before."""
    if x_MK.stride(0) != 1 or x_MK.stride(1) == 1 or dtype is not torch.float32 or not multiplies(x_MK, y_KN, None):
        return product(x_MK, y_KN).to(dtype), x_MK.sum(1, dtype=dtype)
    out_MN = x_MK.new_empty(x_MK.shape[0], y_KN.shape[1], dtype=dtype)
    sums_M = x_MK.new_zeros(x_MK.shape[0], dtype=dtype)
    _compute(out_MN, x_MK, y_KN, sums_M=sums_M)
    return out_MN, sums_M


def add_product(out_MN: Tensor, x_MK: Tensor, y_KN: Tensor) -> None:
    """Add x·y to `out`, which may be in float32 where they are not."""
    there = out_MN.dtype is torch.float32 and out_MN.is_contiguous() and out_MN.device == x_MK.device
    if there and out_MN.shape == (x_MK.shape[0], y_KN.shape[1]) and multiplies(x_MK, y_KN, None):
        _compute(out_MN, x_MK, y_KN, add=True)
    else:
        out_MN += x_MK @ y_KN


def multiplies(x_MK: Tensor, y_KN: Tensor, bias_N: Tensor | None, autocast: torch.dtype | None = None) -> bool:
    """Whether these are for the functions in C++: large, and on a processor where they are quicker in this format,
    which is that of `autocast` where they are yet to be brought to it."""
    # Sizes last: code that is compiled must not depend on them. Of what does not fit PyTorch tells what is wrong.
    dtype = autocast or x_MK.dtype
    if not (native.serves(x_MK) and native.multiplies_large(dtype)):
        return False
    given = [x_MK, y_KN] if bias_N is None else [x_MK, y_KN, bias_N]
    formats = native.FORMATS if autocast else (dtype,)
    if any(each.device != x_MK.device or each.dtype not in formats for each in given):
        return False
    (rows, inner), columns = x_MK.shape, y_KN.shape[1]
    fits = y_KN.shape[0] == inner and (bias_N is None or bias_N.shape == (columns,))
    # In bfloat16 two of what is summed over go together; the last may be alone only where all lie below each other.
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
    rectify: bool = False,
) -> None:
    # With rows or columns that lie together, rows of x in whole words.
    whole = x_MK.dtype is torch.float32 or x_MK.stride(0) % 2 == 0
    x = x_MK if x_MK.stride(0) == 1 or (x_MK.stride(1) == 1 and whole) else x_MK.contiguous()
    y = y_KN if 1 in y_KN.stride() else y_KN.contiguous()
    name = "product" if x.dtype is out_MN.dtype else "product_of_bfloat16"
    bias, sums = 0 if bias_N is None else bias_N.float().contiguous(), 0 if sums_M is None else sums_M
    sizes = *x.shape, y.shape[1], *x.stride(), *y.stride()
    native.call(name, out_MN, x.data_ptr(), y.data_ptr(), bias, sums, *sizes, int(add), int(rectify))
