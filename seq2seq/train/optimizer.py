"""The optimizer of the paper (section 5.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seq2seq.config.schema import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over all weights (the paper's Adam if weight decay is 0); the schedule sets its rate before each update."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )


def optimizer_step(optimizer: torch.optim.Optimizer, rate: float, *, skip: Tensor) -> None:
    """Take an optimizer step at this learning rate, or none if `skip` [] is not zero.

    `skip` is evaluated on the device: the host does not wait for it. Raises torch.OutOfMemoryError.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    # This is how torch's GradScaler tells a fused optimizer to skip its step.
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    except torch.OutOfMemoryError:
        # A weight's state is made in parts, and would never be completed.
        for weight in [weight for weight, state in optimizer.state.items() if "exp_avg_sq" not in state]:
            del optimizer.state[weight]
        raise
