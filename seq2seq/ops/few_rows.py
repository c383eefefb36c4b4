"""Linear layers for the few rows of a single sentence in search on a processor, by functions in C++ (`few_rows.h`).

The time is that in which weights come from memory; a call of oneDNN alone takes longer than that for a small layer. The
plain references are `F.linear` and `quantized_linear.quantized_linear_reference`.

Shapes: R rows, I inputs, O outputs; P panels of `PANEL` outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.ops import native
from seq2seq.ops.alone import rows_are_alone

FEW = 4
"""Rows up to which this is quicker than oneDNN."""
PANEL = 32
FORMATS = (torch.float32, torch.bfloat16, torch.int8)


class FewRows:
    """A layer laid out for them: weights in panels [P, I, PANEL], or in int8 [O, I].

    With int8 go the size of a step of each output [O], its sum of weights [O] in int32, and the number of steps that
    rows are rounded to on both sides of zero.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        outputs: int,
        scales: Tensor | None = None,
        sums: Tensor | None = None,
        levels: int = 0,
    ) -> None:
        self.format, self.outputs = weight.dtype, outputs
        self._parts = weight, bias, outputs, scales, sums, levels
        addresses = [0 if x is None else x.data_ptr() for x in (weight, bias, scales, sums)]
        self.numbers = [FORMATS.index(weight.dtype), *addresses, weight.shape[1], outputs, levels]
        """What the struct `Linear` in C++ holds."""
        self._struct = torch.tensor(self.numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy has tensors of its own, at other addresses.
        return FewRows, self._parts

    @staticmethod
    def of(weight_OI: Tensor, bias: Tensor | None) -> FewRows:
        """A layer in float32 or bfloat16."""
        outputs = weight_OI.shape[0]
        filled = F.pad(weight_OI.detach(), (0, 0, 0, -outputs % PANEL))
        weight_PIO = filled.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()
        bias = weight_OI.new_zeros(outputs) if bias is None else bias.detach()
        return FewRows(weight_PIO, F.pad(bias.float(), (0, -outputs % PANEL)), outputs)

    def takes(self, x_RI: Tensor) -> bool:
        """Whether this is the way for these rows."""
        return x_RI.shape[0] <= FEW and not rows_are_alone() and native.can_compute(x_RI)

    def __call__(self, x_RI: Tensor, *, rectify: bool = False) -> Tensor:
        """x·Wᵀ + b; with `rectify`, max(0, …) of it: [R, I] to [R, O], in the format of the rows."""
        out_RO = x_RI.new_empty(x_RI.shape[0], self.outputs)
        native.call("linear_few", x_RI.contiguous(), self._struct, out_RO, x_RI.shape[0], int(rectify))
        return out_RO
