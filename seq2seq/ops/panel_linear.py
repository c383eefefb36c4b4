"""Linear layers for translation on CPUs, by C++ functions (`panel_linear.h`), in float32, bfloat16 and int8.

They are used where `native.has_fast_matmul()`. Weights are laid out once, as matmuls read them; a row's result does not
depend on the other rows. Plain references: `F.linear` and `quantized_linear.quantized_linear_reference`.

Shapes: ... any, R rows, I inputs, O outputs; panels of `PANEL` outputs, G groups of as many inputs as fit into 32 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.ops import native
from seq2seq.ops.topk import Candidates

PANEL, GROUPS = 32, 16


class PanelLinear(nn.Module):
    """x·Wᵀ + b for rows in float32 or bfloat16; it has no state dict.

    `words` are the weights of a layer as `laid_out` returns them. In int8 they come with the step size of each output
    [O], what the number that stands for zero adds to its sum [O] in int32, and the number of steps on each side of zero
    to which rows are rounded.
    """

    def __init__(
        self,
        words: Tensor,
        bias: Tensor,
        inputs: int,
        scales: Tensor | None = None,
        zeros: Tensor | None = None,
        levels: int = 0,
    ) -> None:
        super().__init__()
        self.outputs, self.levels = len(bias), levels
        self._parts = words, bias, inputs, scales, zeros, levels
        self._padded = [None if x is None else F.pad(x, (0, -self.outputs % PANEL)) for x in (bias, scales, zeros)]
        addresses = [0 if x is None else x.data_ptr() for x in (words, *self._padded)]
        self.numbers = [native.WEIGHTS.index(words.dtype), *addresses, inputs, self.outputs, levels]
        """The fields of the C++ struct `Linear`."""
        self._struct = torch.tensor(self.numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy has tensors of its own, at other addresses.
        return PanelLinear, self._parts

    @property
    def is_float32(self) -> bool:
        """Whether the weights are those that were given, not rounded."""
        return self._parts[0].dtype is torch.float32

    @staticmethod
    def of(weight_OI: Tensor, bias: Tensor | None = None) -> PanelLinear:
        """A layer in float32 or bfloat16."""
        bias = weight_OI.new_zeros(len(weight_OI)) if bias is None else bias.detach()
        return PanelLinear(laid_out(weight_OI.detach()), bias.float(), weight_OI.shape[1])

    def forward(self, x: Tensor, *, relu: bool = False) -> Tensor:
        """[..., I] to [..., O], in the dtype of the rows; with `relu`, followed by ReLU."""
        rows_RI = x.reshape(-1, x.shape[-1]).contiguous()
        out_RO = rows_RI.new_empty(rows_RI.shape[0], self.outputs)
        native.call("linear_rows", rows_RI, self._struct, out_RO, rows_RI.shape[0], int(relu))
        return out_RO.view(*x.shape[:-1], self.outputs)

    def best(self, hidden_SKD: Tensor, scores_SK: Tensor, count: int, never: Tensor) -> Candidates:
        """As an output layer: the best continuations, without the logits being written out.

        They are those that `topk.log_probabilities` and `best_continuations` find, but without the tokens in `never`.
        """
        slots, width = scores_SK.shape
        found_SC = scores_SK.new_empty(slots, count)
        found = Candidates(found_SC, *torch.empty(2, slots, count, dtype=torch.int64))
        tensors = (hidden_SKD.contiguous(), self._struct, scores_SK.contiguous(), never, *found)
        native.call("best_of_rows", *tensors, len(never), slots, width, count)
        return found


def laid_out(weight_OI: Tensor) -> Tensor:
    """The weights in panels, [O / PANEL, G, PANEL, inputs of a group], padded with zeros."""
    outputs, inputs = weight_OI.shape
    group = 4 // weight_OI.element_size()
    filled = F.pad(weight_OI, (0, -inputs % (1 if group == 1 else GROUPS * group), 0, -outputs % PANEL))
    return filled.unflatten(0, (-1, PANEL)).unflatten(2, (-1, group)).transpose(1, 2).contiguous()
