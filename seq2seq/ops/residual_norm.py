"""LayerNorm(x + Dropout(y)) (sections 3.1, 5.4 of the paper) in one pass, alongside the plain reference.

In training, one kernel draws the mask, adds and normalises, and another computes all gradients: for each row, a pass
reads or writes four rows of memory; PyTorch's compiler takes twice the time on a GPU (docs/log.md, 2026-11-26). The
mask is not kept: the backward pass draws it again from the same seed, 16 random bits per element. All sums are in a
fixed order.

Shapes: N rows, D d_model.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from seq2seq.ops import gpu, native
from seq2seq.ops.dropout import LEVELS, add_dropout
from seq2seq.ops.gpu import next_power_of_2, supports_triton
from seq2seq.ops.operators import register

ELEMENTS_PER_WARP = 512
"""Elements of a row per warp."""
WARPS = 16
"""Warps per multiprocessor in the backward pass, and so the most that a row can have."""

ROWS_PER_SUM = 128
"""Rows over which a CPU sums the gradients of weight and bias one after another."""


def residual_norm_reference(x: Tensor, y: Tensor, norm: nn.LayerNorm, p: float) -> Tensor:
    """LayerNorm(x + Dropout(y)) in the dtype of `x`, [..., D]; `y` has the shape and dtype of `x`."""
    x = add_dropout(x, y, p)
    # autocast leaves the norm in float32 on a GPU
    return norm(x).to(x.dtype)


def residual_norm(x: Tensor, y: Tensor, norm: nn.LayerNorm, p: float) -> Tensor:
    """`residual_norm_reference`, in one pass where a kernel is available; `add_norm` is its form in translation."""
    in_c = native.supports(x) and x.dtype is y.dtype and norm.weight.dtype is torch.float32
    if not (in_c or supports_triton(x.device)):
        return residual_norm_reference(x, y, norm, p)
    seed = torch.randint(1 << 31, (1,), device=x.device)
    rows = x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1])
    out_ND: Tensor = torch.ops.seq2seq.residual_norm(*rows, norm.weight, norm.bias, seed, p, norm.eps)[0]
    return out_ND.view(x.shape)


def add_norm(x: Tensor, y: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`residual_norm` in translation, where nothing is dropped: LayerNorm(x + y), all [..., D]."""
    tensors = x, y, norm.weight, norm.bias
    if gpu.supports_inference(*tensors):
        return add_norm_on_gpu(x, y, norm)
    if not native.supports_inference(*tensors) or norm.eps != 1e-5:
        return residual_norm_reference(x, y, norm, 0.0)
    out, width = x.new_empty(x.shape), x.shape[-1]
    native.call("add_norm", x.contiguous(), y.contiguous(), norm.weight, norm.bias, out, x.numel() // width, width)
    return out


def add_norm_on_gpu(x: Tensor, y: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`add_norm` by our Triton kernel."""
    from seq2seq.ops import gpu_search_kernels

    out, width = x.new_empty(x.shape), x.shape[-1]
    gpu_search_kernels.add_norm[(x.numel() // width,)](
        x.contiguous(), y.contiguous(), norm.weight, norm.bias, out, norm.eps, D=width, P=next_power_of_2(width)
    )
    return out


def _sizes(width: int, p: float) -> dict[str, int]:
    return {"DROPPED": round(p * LEVELS), "D": width, "P": max(8, next_power_of_2(width)), "num_warps": _warps(width)}


def _warps(width: int) -> int:
    return min(max(1, next_power_of_2(width) // ELEMENTS_PER_WARP), WARPS)


def _forward(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, seed: Tensor, p: float, epsilon: float
) -> tuple[Tensor, Tensor]:
    from seq2seq.ops import gpu_kernels

    rows, width = x.shape
    out, total = x.new_empty(x.shape), x.new_empty(x.shape)
    tensors = x.contiguous(), y.contiguous(), seed, weight, bias, out, total
    if rows:
        gpu_kernels.residual_norm_forward[(rows,)](*tensors, 1 / (1 - p), epsilon, **_sizes(width, p))
    return out, total


def _backward(
    d_out: Tensor, total: Tensor, weight: Tensor, seed: Tensor, p: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of y, and of weight and bias as partial sums [parts, 2, D]."""
    from seq2seq.ops import gpu_kernels

    rows, width = total.shape
    gradients = d_x, d_y, sums = _empty_gradients(total)
    if len(sums):
        tensors = d_out.contiguous(), total, seed, weight, *gradients
        gpu_kernels.residual_norm_backward[(len(sums),)](*tensors, rows, 1 / (1 - p), epsilon, **_sizes(width, p))
    return d_x, d_y, sums


def _forward_on_processor(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, seed: Tensor, p: float, epsilon: float
) -> tuple[Tensor, Tensor]:
    if not native.supports(x):
        # In Triton's interpreter, as the tests run it.
        return _forward(x, y, weight, bias, seed, p, epsilon)
    out, total = x.new_empty(x.shape), x.new_empty(x.shape)
    tensors = x.contiguous(), y.contiguous(), weight, bias, seed, out, total
    rows, width = x.shape
    native.call("residual_norm", *tensors, rows, width, round(p * LEVELS), 1 / (1 - p), epsilon)
    return out, total


def _backward_on_processor(
    d_out: Tensor, total: Tensor, weight: Tensor, seed: Tensor, p: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    if not native.supports(d_out):
        return _backward(d_out, total, weight, seed, p, epsilon)
    rows, width = total.shape
    gradients = d_x, d_y, sums = _empty_gradients(total)
    tensors = d_out.contiguous(), total, weight, seed, *gradients
    native.call("residual_norm_gradients", *tensors, rows, width, ROWS_PER_SUM, round(p * LEVELS), 1 / (1 - p), epsilon)
    return d_x, d_y, sums


def _empty_gradients(total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = total.shape
    if total.device.type == "cuda":
        parts = _multiprocessors(total.device) * WARPS // _warps(width)
    else:
        parts = (rows + ROWS_PER_SUM - 1) // ROWS_PER_SUM
    sums = total.new_empty(parts, 2, width, dtype=torch.float32)
    return total.new_empty(total.shape), total.new_empty(total.shape), sums


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, weight, _, seed, ctx.p, ctx.epsilon = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], weight, seed)


def _gradients(ctx: Any, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    total, weight, seed = ctx.saved_tensors
    d_x, d_y, sums = torch.ops.seq2seq.residual_norm_backward(d_out, total, weight, seed, ctx.p, ctx.epsilon)
    # PyTorch's compiler makes a faster sum of it than the operator could call.
    return d_x, d_y, *sums.sum(0).to(weight.dtype).unbind(), None, None, None


register(
    "residual_norm(Tensor x, Tensor y, Tensor weight, Tensor bias, Tensor seed, float p, float epsilon)"
    " -> (Tensor, Tensor)",
    _forward,
    lambda x, *_: (x.new_empty(x.shape), x.new_empty(x.shape)),
    on_cpu=_forward_on_processor,
    gradients=_gradients,
    save=_save,
)
register(
    "residual_norm_backward(Tensor d_out, Tensor total, Tensor weight, Tensor seed, float p, float epsilon)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    lambda _, total, *__: _empty_gradients(total),
    on_cpu=_backward_on_processor,
)
