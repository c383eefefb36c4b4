"""Products of large matrices in training on processors, in float32 by functions in C++ (`matrix.h`), beside PyTorch's.

Shapes: M rows and N columns of the result, K summed over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seq2seq.ops import native

FEWEST_ROWS, FEWEST_SUMMED = 32, 1 << 20
"""Of products for which it pays to lay out y first."""


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
    """The same, without gradients."""
    if not (_serves(x_MK, y_KN, bias_N) and (bias_N is None or bias_N.shape == y_KN.shape[1:])):
        return product_reference(x_MK, y_KN, bias_N, rectify=rectify)
    out_MN = x_MK.new_empty(x_MK.shape[0], y_KN.shape[1])
    _compute(out_MN, x_MK, y_KN, bias_N, add=False, rectify=rectify)
    return out_MN


def add_product(out_MN: Tensor, x_MK: Tensor, y_KN: Tensor) -> None:
    """Add x·y to `out`, which is contiguous."""
    if _serves(x_MK, y_KN, out_MN) and out_MN.shape == (x_MK.shape[0], y_KN.shape[1]):
        _compute(out_MN, x_MK, y_KN, None, add=True, rectify=False)
    else:
        out_MN += x_MK @ y_KN


def multiplies(x: Tensor) -> bool:
    """Whether the functions are there for this format on this processor, and are quicker than PyTorch's."""
    return x.dtype is torch.float32 and native.serves(x) and native.multiplies_large()


def _serves(x_MK: Tensor, y_KN: Tensor, other: Tensor | None) -> bool:
    # Sizes last: code that is compiled must not depend on them. Of shapes that do not fit PyTorch tells what is wrong.
    if not (multiplies(x_MK) and all(each.dtype is torch.float32 for each in (y_KN, other) if each is not None)):
        return False
    (rows, inner), columns = x_MK.shape, y_KN.shape[1]
    return y_KN.shape[0] == inner and rows >= FEWEST_ROWS and rows * inner * columns >= FEWEST_SUMMED


def _compute(out_MN: Tensor, x_MK: Tensor, y_KN: Tensor, bias_N: Tensor | None, *, add: bool, rectify: bool) -> None:
    x, y = _lying(x_MK), _lying(y_KN)
    (rows, inner), columns = x_MK.shape, y_KN.shape[1]
    bias = 0 if bias_N is None else bias_N.contiguous()
    tensors = out_MN, *(each if each.is_contiguous() else each.t() for each in (x, y)), bias
    native.call("product", *tensors, rows, inner, columns, *x.stride(), *y.stride(), int(add), int(rectify))


def _lying(x: Tensor) -> Tensor:
    """With its rows or its columns one after another in memory."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()
