"""The optimizer of the paper (section 5.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seq2seq.config.schema import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over all weights, without weight decay the paper's Adam; the schedule sets its rate before each update."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )


def change_weights(optimizer: torch.optim.Optimizer, rate: float, *, skip: Tensor) -> None:
    """Change the weights by their gradients at this learning rate, or nothing where `skip`, a boolean [], is true.

    The device itself looks at `skip`: the host does not wait for it.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    # This is how torch's GradScaler tells a fused optimizer to skip its step.
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
    optimizer.step()
