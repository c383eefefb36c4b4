"""x·Wᵀ + b in training, with optional ReLU (section 3.3 of the paper), alongside its plain reference.

On GPUs, and for large layers on CPUs, this has a backward pass of its own, which is differentiable only once. On GPUs
the matmul itself adds the bias and applies ReLU, which may turn NaN into 0; the sum with the residual connection keeps
the NaN.

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from seq2seq.ops.product import prefers_cpp, product, product_and_sums
from seq2seq.support.devices import compute_dtype


def linear_reference(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, *, relu: bool = False) -> Tensor:
    """[..., I] to [..., O]; with `relu`, followed by ReLU."""
    out = F.linear(x, weight_OI, bias_O)
    return out.relu_() if relu else out


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, *, relu: bool = False) -> Tensor:
    """`linear_reference`, with matmuls in the autocast dtype where autocast is active."""
    rows_NI = x.reshape(-1, x.shape[-1])
    autocast = compute_dtype(x) if torch.is_autocast_enabled(x.device.type) else None
    in_c = prefers_cpp(rows_NI, weight_OI.t(), bias_O, autocast)
    on_gpu = x.is_cuda and (relu or torch.is_grad_enabled())
    if bias_O is None or not (in_c or on_gpu):
        return linear_reference(x, weight_OI, bias_O, relu=relu)
    out_NO: Tensor = LinearFunction.apply(rows_NI, weight_OI, bias_O, relu)  # type: ignore[no-untyped-call]
    return out_NO.view(*x.shape[:-1], out_NO.shape[-1])


class LinearFunction(torch.autograd.Function):
    """x·Wᵀ + b for rows [N, I], a weight [O, I] and a bias [O]."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor, relu: bool) -> Tensor:
        dtype, ctx.format = compute_dtype(x_NI), weight_OI.dtype
        x_NI, weight_OI = x_NI.to(dtype), weight_OI.to(dtype)
        out_NO = product(x_NI, weight_OI.t(), bias_O.to(dtype), relu=relu)
        ctx.save_for_backward(x_NI, weight_OI, out_NO if relu else None)
        return out_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x_NI, weight_OI, out_NO = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        if out_NO is not None:
            d_NO = torch.ops.aten.threshold_backward(d_NO, out_NO, 0)
        d_x = product(d_NO, weight_OI) if of_x else None
        if of_weight:
            return d_x, *product_and_sums(d_NO.t(), x_NI, ctx.format), None
        return d_x, None, d_NO.sum(0, dtype=ctx.format) if of_bias else None, None


class Linear(nn.Linear):
    """The layer, called like those for translation (`panel_linear`, `packed_linear`, `quantized_linear`)."""

    def forward(self, input: Tensor, *, relu: bool = False) -> Tensor:
        """[..., I] to [..., O]; with `relu`, followed by ReLU."""
        return linear(input, self.weight, self.bias, relu=relu)


def is_watched(module: nn.Module) -> bool:
    """Whether a call of this module does something of its own: it has hooks, or a `forward` other than its class's."""
    own = vars(module).get("forward")
    # That of a compiled region is its class's, in other code.
    has_own = own is not None and not getattr(own, "is_of_class", False)
    return has_own or bool(module._forward_hooks or module._forward_pre_hooks)


def replace_linears(module: nn.Module, make: Callable[[Tensor, Tensor | None], nn.Module]) -> None:
    """Replace each linear layer in `module` by what `make` returns for its weight and bias.

    One of a class derived from those stays, as it may compute something else, and so does one that is watched.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and type(child) in (nn.Linear, Linear) and not is_watched(child):
            setattr(module, name, make(child.weight, child.bias))
        else:
            replace_linears(child, make)
