"""The optimizers: the paper's Adam (section 5.3), and Muon."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from seq2seq.config.schema import OptimizerConfig
from seq2seq.ops.polar_factor import polar_factor

AT_ONCE = 1 << 22
"""Numbers in the matrices that Muon updates together, which take six times as much memory meanwhile."""
RMS = 0.2
"""The root mean square of Muon's updates at a rate of 1: about that of Adam's, so that the same rates suit both."""


def build_optimizer(model: nn.Module, config: OptimizerConfig, dtype: torch.dtype = torch.float32) -> Optimizer:
    """The optimizer of all weights, whose rate the schedule sets before each update; Muon multiplies in `dtype`."""
    if config.kind == "adam":
        return _adam(model.parameters(), config)
    matrices = {layer.weight: None for layer in model.modules() if isinstance(layer, nn.Linear)}
    others = [weight for weight in model.parameters() if weight not in matrices]
    return Muon(list(matrices), _adam(others, config), config, dtype)


def _adam(weights: Iterable[Tensor], config: OptimizerConfig) -> AdamW:
    """AdamW, which is the paper's Adam if weight decay is 0."""
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    return AdamW(weights, lr=0.0, betas=betas, eps=config.epsilon, weight_decay=decay, fused=True)


class Muon(Optimizer):
    """Muon (Jordan et al., 2024) for `matrices`, scaled as by Liu et al. (2025, section 2.2); for all else `others`.

    A matrix's update is its momentum with all singular values near 1 (`ops.polar_factor`).
    """

    found_inf: Tensor

    def __init__(self, matrices: list[Tensor], others: AdamW, config: OptimizerConfig, dtype: torch.dtype) -> None:
        super().__init__(matrices, {"lr": 0.0})
        self._config, self._dtype, self._others = config, dtype, others
        self.param_groups += others.param_groups
        self._alike: list[list[Tensor]] = []
        for shape, of_shape in groupby(sorted(matrices, key=lambda weight: weight.shape), lambda weight: weight.shape):
            alike, count = list(of_shape), max(1, AT_ONCE // shape.numel())
            self._alike += [alike[first : first + count] for first in range(0, len(alike), count)]

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take a step, or none where `found_inf` [] is not zero."""
        # One state and one rate for all.
        self._others.state, self._others.param_groups = self.state, self.param_groups[1:]
        self._others.found_inf = self.found_inf  # type: ignore[attr-defined]
        self._others.step()
        for alike in self._alike:
            if weights := [weight for weight in alike if weight.grad is not None]:
                self._step_of(weights)

    def _step_of(self, weights: list[Tensor]) -> None:
        """The step of matrices of one shape, computed together."""
        rate, skip = self.param_groups[0]["lr"], self.found_inf > 0
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum"] for weight in weights]
        before_BRC = torch.stack(momenta)
        gradients_BRC = torch.where(skip, before_BRC, torch.stack([weight.grad for weight in weights]))  # type: ignore[misc]
        now_BRC = before_BRC.lerp(gradients_BRC, 1 - self._config.momentum)
        torch._foreach_copy_(momenta, list(now_BRC))
        # Nesterov's momentum.
        update_BRC = polar_factor(gradients_BRC.lerp(now_BRC, self._config.momentum), self._dtype)
        taken = torch.where(skip, 0.0, rate)
        torch._foreach_mul_(weights, 1 - taken * self._config.weight_decay)
        torch._foreach_add_(weights, list(update_BRC * (-RMS * max(weights[0].shape) ** 0.5 * taken)))


def optimizer_step(optimizer: Optimizer, rate: float, *, skip: Tensor) -> None:
    """Take an optimizer step at this learning rate, or none if `skip` [] is not zero.

    `skip` is evaluated on the device: the host does not wait for it. Raises torch.OutOfMemoryError.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    # This is how torch's GradScaler tells a fused optimizer to skip its step; Muon does as they do.
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    except torch.OutOfMemoryError:
        # A weight's state is made in parts, and would never be completed.
        states = list(optimizer.state.items())
        for weight in [weight for weight, state in states if "step" in state and "exp_avg_sq" not in state]:
            del optimizer.state[weight]
        raise
