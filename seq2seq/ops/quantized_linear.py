"""Linear layers in 8-bit integers, for translation, beside the plain reference.

Weights are rounded once, one scale a row of the matrix (an output channel); the rows that come in are rounded together
as they come, with one scale and one zero point for all of them. The products are summed in exact int32: the only errors
are those of the two roundings.

Shapes: ... any, I inputs, O outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.ops.packed_linear import replace_linears
from seq2seq.support.devices import processor_has
from seq2seq.support.errors import UserError

WIDE = 4096
"""Outputs from which oneDNN's kernel is quicker than FBGEMM's."""


def rounded_rows(x: Tensor, steps: int = 255) -> Tensor:
    """`x` [...], in float64, on a line of so many even steps from its smallest to its largest value, 0 among them."""
    x = x.double()
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    step = ((high - low) / steps).clamp(min=1e-12)
    zero = (-low / step).round()
    return ((x / step).round() + zero).clamp(0, steps).sub(zero) * step


def rounded_weight(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as int8 [O, I] and the scale of each row [O] in float64: the largest value becomes 127."""
    scale_O = weight_OI.double().abs().amax(1).clamp(min=1e-12) / 127
    return (weight_OI / scale_O[:, None]).round().to(torch.int8), scale_O


def quantized_linear_reference(x: Tensor, weight_OI: Tensor, bias: Tensor | None, steps: int = 255) -> Tensor:
    """The rounded rows times the rounded weight, in float64, plus the bias: [..., O]."""
    weight, scale_O = rounded_weight(weight_OI)
    return F.linear(rounded_rows(x, steps), weight * scale_O[:, None], None if bias is None else bias.double())


class QuantizedLinear(nn.Module):
    """x·Wᵀ + b of float rows with an int8 weight; the result is float32.

    Without a processor's instructions for it (VNNI) the kernel's sums would overflow: rows are then rounded to 7 bits.
    """

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        weight, scale_O = rounded_weight(weight_OI.detach())
        with warnings.catch_warnings(), _engine("onednn" if weight.shape[0] >= WIDE else None):
            # PyTorch means to drop tensors of this kind; the kernels take them only to pack the weight.
            warnings.filterwarnings("ignore", message=".*deprecated")
            packable = torch._make_per_channel_quantized_tensor(weight, scale_O, torch.zeros_like(scale_O).long(), 0)
            self.packed = torch.ops.quantized.linear_prepack(packable, None if bias is None else bias.detach().float())
        self.reduce_range = not processor_has("avx512_vnni")

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return cast(Tensor, torch.ops.quantized.linear_dynamic(x.float(), self.packed, self.reduce_range))


@contextmanager
def _engine(name: str | None) -> Iterator[None]:
    """Pack weights for these kernels, where PyTorch has them."""
    usual = torch.backends.quantized.engine
    if name in torch.backends.quantized.supported_engines:
        torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = usual


def quantize_linears(module: nn.Module) -> None:
    """Put quantized layers in the place of all linear ones in `module`. Raises UserError where torch has no kernel."""
    try:
        QuantizedLinear(torch.ones(8, 8))(torch.ones(2, 8))
    except (AttributeError, RuntimeError):
        raise UserError(
            f"int8: torch {torch.__version__} has no 8-bit products on this processor; type --dtype float32"
        ) from None
    replace_linears(module, QuantizedLinear)
