"""Weight averages: of checkpoints (section 6.1 of the paper), and a moving average (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from seq2seq.model.weights import load_weights
from seq2seq.support.errors import UserError


def average_weights(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The mean of the tensors in several weight files, summed in float64.

    Raises UserError when their names or shapes differ.
    """
    sums: dict[str, torch.Tensor] = {}
    for path in files:
        weights = load_weights(path)
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        if sums and shapes != {name: tensor.shape for name, tensor in sums.items()}:
            raise UserError(f"{path}: not the same model as {files[0]}; only checkpoints of one run can be averaged")
        for name, tensor in weights.items():
            sums[name] = sums[name] + tensor.double() if name in sums else tensor.double()
    return {name: (total / len(files)).float() for name, total in sums.items()}


def update_ema(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Step number `step`, from 1, of an exponential moving average: average ← d · average + (1 − d) · model.

    d is `decay`, or (1 + step) / (10 + step) while that is smaller, so that the random initial weights soon fade out.
    """
    get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))(list(average.parameters()), list(model.parameters()), 0)
