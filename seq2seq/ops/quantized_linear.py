"""Linear layers in 8-bit integers, for translation, beside the plain reference.

Weights are rounded once, one scale a row of the matrix (an output channel); the rows that come in are rounded as they
come, one scale a row: what becomes of a row does not depend on its company. The products are summed in exact int32: the
only errors are those of the two roundings.

Shapes: ... any, R rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.ops import native
from seq2seq.ops.few_rows import FEW, FewRows
from seq2seq.ops.filled_rows import whole_steps
from seq2seq.ops.packed_linear import PackedLinear, can_pack, replace_linears
from seq2seq.support.devices import processor_has
from seq2seq.support.errors import UserError

SMALLEST = 1e-12


def rounded_rows(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Rows of `x` [..., I] in whole steps, so many on both sides of zero: [..., I]; and the size of a step [...]."""
    step = (x.abs().amax(-1) / levels).clamp(min=SMALLEST)
    return (x / step[..., None]).round(), step


def quantized_linear_reference(x: Tensor, weight_OI: Tensor, bias: Tensor | None, levels: int = 127) -> Tensor:
    """The rounded rows times the rounded weight, in float64, plus the bias: [..., O]."""
    (rows, step), (weight, scale_O) = rounded_rows(x.double(), levels), rounded_rows(weight_OI.double(), 127)
    return F.linear(rows * step[..., None], weight * scale_O[:, None], None if bias is None else bias.double())


class QuantizedLinear(nn.Module):
    """x·Wᵀ + b of float rows with an int8 weight; the result is in their format.

    Without a processor's instructions for it (VNNI) oneDNN's sums would overflow: rows are then rounded to 7 bits. With
    AMX, products of more than a few rows are quicker in bfloat16, rounding counted: there they are computed so.
    """

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        rounded, scale_O = rounded_rows(weight_OI.detach().double(), 127)
        self.weight, self.scales = rounded.to(torch.int8), scale_O.float()
        self.sums = self.weight.sum(1, dtype=torch.int32)
        self.zeros = torch.zeros_like(self.sums, dtype=torch.int64)
        self.bias = torch.zeros_like(self.scales) if bias is None else bias.detach().float()
        self.packed = torch.ops.onednn.qlinear_prepack(self.weight, None)
        self.levels = 127 if processor_has("avx512_vnni") else 63
        self.few = FewRows(self.weight, self.bias, len(self.bias), self.scales, self.sums, self.levels)
        self.in_bfloat16: PackedLinear | None = None
        if many_in_bfloat16():
            self.in_bfloat16 = PackedLinear(weight_OI.bfloat16(), None if bias is None else bias.bfloat16())

    def forward(self, x: Tensor, *, rectify: bool = False) -> Tensor:
        """[..., I] to [..., O]; with `rectify`, max(0, …) of it."""
        rows_RI = x.reshape(-1, x.shape[-1])
        if self.few.takes(rows_RI):
            return self.few(rows_RI, rectify=rectify).view(*x.shape[:-1], -1)
        if self.in_bfloat16:
            return self.in_bfloat16(x.bfloat16(), rectify=rectify).to(x.dtype)
        rows_RI = rows_RI.float().contiguous()
        if native.can_compute(rows_RI):
            out_RO = self._many(rows_RI, rectify)
        else:
            out_RO = self._plain(rows_RI)
            out_RO = out_RO.relu_() if rectify else out_RO
        return out_RO.to(x.dtype).view(*x.shape[:-1], -1)

    def _many(self, rows_RI: Tensor, rectify: bool) -> Tensor:
        rows, inputs = rows_RI.shape
        shifted_RI, steps_R = self._room(rows_RI), rows_RI.new_empty(rows)
        native.call("round_rows", rows_RI, shifted_RI, steps_R, rows, inputs, self.levels)
        out_RO = self._product(shifted_RI, rows)
        native.call("finish_rows", out_RO, steps_R, self.bias, rows, self.weight.shape[0], rectify)
        return out_RO

    def _plain(self, rows_RI: Tensor) -> Tensor:
        rounded_RI, steps_R = rounded_rows(rows_RI, self.levels)
        shifted_RI = self._room(rows_RI)
        shifted_RI[: len(rows_RI)] = rounded_RI.add_(self.levels + 1)
        return torch.addcmul(self.bias, self._product(shifted_RI, len(rows_RI)), steps_R[:, None])

    def _room(self, rows_RI: Tensor) -> Tensor:
        return torch.empty(whole_steps(rows_RI.shape[0]), rows_RI.shape[1], dtype=torch.uint8)

    def _product(self, shifted_RI: Tensor, rows: int) -> Tensor:
        """The sums for the first rows, times the scales of the weight; zero is written as `levels` + 1: the kernels for
        these products take positive numbers."""
        given = (shifted_RI, 1.0, self.levels + 1, self.packed, self.scales, self.zeros, None)
        return cast(Tensor, torch.ops.onednn.qlinear_pointwise(*given, 1.0, 0, torch.float32, "none", [], ""))[:rows]


def many_in_bfloat16() -> bool:
    """Whether products of many rows are quicker in bfloat16 than in int8."""
    return processor_has("amx_bf16") and can_pack(torch.ones(1, 8, dtype=torch.bfloat16))


def quantize_linears(module: nn.Module) -> None:
    """Put quantized layers in the place of all linear ones in `module`. Raises UserError where torch has no kernel."""
    try:
        QuantizedLinear(torch.ones(8, 8))(torch.ones(FEW + 1, 8))
    except (AttributeError, RuntimeError):
        raise UserError(
            f"int8: torch {torch.__version__} has no 8-bit products on this processor; type --dtype float32"
        ) from None
    replace_linears(module, QuantizedLinear)
