"""Linear layers in 8-bit integers, for translation, alongside the plain reference.

Weights are rounded once, with one scale per row of the matrix (an output channel); input rows are rounded as they come,
with one scale per row: a row's result does not depend on the other rows. Sums are exact, in int32: the only errors are
those of the two roundings.

Shapes: ... any, R rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.ops import native
from seq2seq.ops.filled_rows import whole_steps
from seq2seq.ops.panel_linear import PanelLinear, laid_out
from seq2seq.support.devices import processor_has
from seq2seq.support.errors import UserError

SMALLEST = 1e-12


def rounded_rows(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Rows of `x` [..., I] in whole steps, `levels` on each side of zero: [..., I]; and the step sizes [...]."""
    step = (x.abs().amax(-1) / levels).clamp(min=SMALLEST)
    return (x / step[..., None]).round(), step


def quantized_linear_reference(x: Tensor, weight_OI: Tensor, bias: Tensor | None, levels: int = 127) -> Tensor:
    """The rounded rows times the rounded weight, in float64, plus the bias: [..., O]."""
    (rows, step), (weight, scale_O) = rounded_rows(x.double(), levels), rounded_rows(weight_OI.double(), 127)
    return F.linear(rows * step[..., None], weight * scale_O[:, None], None if bias is None else bias.double())


class QuantizedLinear(nn.Module):
    """x·Wᵀ + b for float rows with an int8 weight, by oneDNN; the result has the rows' dtype."""

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        # Without VNNI, oneDNN's sums would overflow with more levels.
        self.levels = 127 if processor_has("avx512_vnni") else 63
        rounded, scale_O = rounded_rows(weight_OI.detach().double(), 127)
        self.scales, self.zeros = scale_O.float(), torch.zeros(len(scale_O), dtype=torch.int64)
        self.bias = torch.zeros_like(self.scales) if bias is None else bias.detach().float()
        self.packed = torch.ops.onednn.qlinear_prepack(rounded.to(torch.int8), None)

    def forward(self, x: Tensor, *, relu: bool = False) -> Tensor:
        """[..., I] to [..., O]; with `relu`, followed by ReLU."""
        rows_RI = x.reshape(-1, x.shape[-1])
        rounded_RI, steps_R = rounded_rows(rows_RI.float(), self.levels)
        shifted_RI = torch.empty(whole_steps(len(rows_RI)), rows_RI.shape[1], dtype=torch.uint8)
        shifted_RI[: len(rows_RI)] = rounded_RI.add_(self.levels + 1)
        out_RO = torch.addcmul(self.bias, self._product(shifted_RI, len(rows_RI)), steps_R[:, None])
        return (out_RO.relu_() if relu else out_RO).to(x.dtype).view(*x.shape[:-1], -1)

    def _product(self, shifted_RI: Tensor, rows: int) -> Tensor:
        """The sums for the first `rows` rows, times the weight's scales.

        Zero is represented as `levels` + 1, as these kernels take unsigned numbers.
        """
        given = (shifted_RI, 1.0, self.levels + 1, self.packed, self.scales, self.zeros, None)
        return cast(Tensor, torch.ops.onednn.qlinear_pointwise(*given, 1.0, 0, torch.float32, "none", [], ""))[:rows]


def in_int8(weight_OI: Tensor, bias: Tensor | None = None) -> PanelLinear:
    """The same layer by our own C++ functions."""
    rounded, scale_O = rounded_rows(weight_OI.detach().double(), 127)
    weight, bias = rounded.to(torch.int8), weight_OI.new_zeros(len(weight_OI)) if bias is None else bias.detach()
    levels = native.levels_of_rows()
    zeros = weight.sum(1, dtype=torch.int32) * (levels + 1)
    return PanelLinear(laid_out(weight), bias.float(), weight.shape[1], scale_O.float(), zeros, levels)


def int8_layer() -> Callable[[Tensor, Tensor | None], nn.Module]:
    """What makes an int8 layer of a weight and a bias on this CPU. Raises UserError where torch has no kernel."""
    if native.has_fast_matmul():
        return in_int8
    try:
        QuantizedLinear(torch.ones(8, 8))(torch.ones(8, 8))
    except (AttributeError, RuntimeError):
        raise UserError(
            f"int8: torch {torch.__version__} has no 8-bit products on this processor; type --dtype float32"
        ) from None
    return QuantizedLinear
