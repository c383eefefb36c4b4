"""Products of large matrices in training on processors, in float32 by functions in C++ (`matrix.h`), beside PyTorch's.

They have no gradients of their own: `linear` and `linear_cross_entropy` compute theirs by them.

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
    _compute(out_MN, x_MK, y_KN, bias_N, add=False, rectify=rectify)
    return out_MN


def add_product(out_MN: Tensor, x_MK: Tensor, y_KN: Tensor) -> None:
    """Add x·y to `out`."""
    if multiplies(x_MK, y_KN, out_MN[:1].reshape(-1)) and len(out_MN) == len(x_MK) and out_MN.is_contiguous():
        _compute(out_MN, x_MK, y_KN, None, add=True, rectify=False)
    else:
        out_MN += x_MK @ y_KN


def multiplies(x_MK: Tensor, y_KN: Tensor, row_N: Tensor | None) -> bool:
    """Whether these are for the functions in C++: large, and in float32 on a processor where they are quicker."""
    # Sizes last: code that is compiled must not depend on them. Of what does not fit PyTorch tells what is wrong.
    if not (native.serves(x_MK) and native.multiplies_large()):
        return False
    given = [x_MK, y_KN] if row_N is None else [x_MK, y_KN, row_N]
    if any(each.dtype is not torch.float32 or each.device != x_MK.device for each in given):
        return False
    (rows, inner), columns = x_MK.shape, y_KN.shape[1]
    fits = y_KN.shape[0] == inner and (row_N is None or row_N.shape == (columns,))
    return fits and min(rows, inner, columns) >= LEAST and rows * inner * columns >= FEWEST_SUMMED


def _compute(out_MN: Tensor, x_MK: Tensor, y_KN: Tensor, bias_N: Tensor | None, *, add: bool, rectify: bool) -> None:
    # With rows or columns that lie together.
    x, y = (each if 1 in each.stride() else each.contiguous() for each in (x_MK, y_KN))
    bias = 0 if bias_N is None else bias_N.contiguous()
    sizes = *x.shape, y.shape[1], *x.stride(), *y.stride()
    native.call("product", out_MN, x.data_ptr(), y.data_ptr(), bias, *sizes, int(add), int(rectify))
