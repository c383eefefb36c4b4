"""The optimizer of the paper (section 5.3)."""

from __future__ import annotations

import torch
from torch import nn

from seq2seq.config.schema import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam over all weights; the schedule sets its rate before each update."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )
