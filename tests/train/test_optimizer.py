"""Adam as the paper sets it, its first steps by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from seq2seq.config.compose import compose
from seq2seq.config.schema import ModelConfig, OptimizerConfig, TransformerConfig
from seq2seq.model.translation import build_model, count_parameters
from seq2seq.train.optimizer import build_optimizer, optimizer_step


def stepped(config: OptimizerConfig, gradients: list[float], rate: float) -> float:
    """The value of a weight that starts at 1, after these gradients."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    optimizer = build_optimizer(module, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    for gradient in gradients:
        module.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
    return float(module.weight.detach())


def test_two_steps_by_hand() -> None:
    # Step 1: both corrected moments are those of the gradient alone: the step is the rate.
    assert stepped(OptimizerConfig(), [0.5], 0.1) == pytest.approx(0.9, abs=1e-6)
    # Step 2, gradients 0.5 and -0.25: m = (0.9·0.05 - 0.025) / (1 - 0.9²), v = (0.98·0.005 + 0.00125) / (1 - 0.98²).
    mean, variance = 0.02 / 0.19, 0.00615 / 0.0396
    assert stepped(OptimizerConfig(), [0.5, -0.25], 0.1) == pytest.approx(0.9 - 0.1 * mean / variance**0.5, abs=1e-6)


def test_a_state_for_which_memory_ran_out_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(2, 3)
    optimizer, calls, zeros = build_optimizer(module, OptimizerConfig()), iter(range(99)), torch.zeros_like
    for weight in module.parameters():
        weight.grad = torch.ones_like(weight)

    def full(*arguments: Any, **settings: Any) -> torch.Tensor:
        if next(calls) == 3:
            raise torch.OutOfMemoryError("of this much")
        return zeros(*arguments, **settings)

    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(torch, "zeros_like", full)
        optimizer_step(optimizer, 0.1, skip=torch.zeros(()))
    optimizer_step(optimizer, 0.1, skip=torch.zeros(()))
    assert all({"exp_avg", "exp_avg_sq"} < set(optimizer.state[weight]) for weight in module.parameters())


def test_epsilon_is_added_to_the_root() -> None:
    assert stepped(OptimizerConfig(epsilon=0.5), [0.5], 0.1) == pytest.approx(1 - 0.1 * 0.5 / (0.5 + 0.5), abs=1e-6)


def test_weight_decay_does_not_pass_through_the_moments() -> None:
    assert stepped(OptimizerConfig(weight_decay=0.1), [0.5], 0.1) == pytest.approx(1 - 0.1 * 0.1 - 0.1, abs=1e-6)


def test_the_papers_numbers_are_the_default() -> None:
    optimizer = compose(["run_dir=unused"]).optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.98, 1e-9)
    assert optimizer.weight_decay == 0
    assert optimizer.clip_norm is None


def test_every_weight_is_optimized_once() -> None:
    tiny = TransformerConfig(num_layers=1, num_heads=1, d_ff=8)
    model = build_model(ModelConfig(d_model=4, encoder=tiny, decoder=tiny), 10, 1)
    optimizer = build_optimizer(model, OptimizerConfig())
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len({id(parameter) for parameter in held}) == len(held)
    assert sum(parameter.numel() for parameter in held) == count_parameters(model)


def test_a_skipped_step_leaves_weights_and_moments_and_their_count() -> None:
    def trained(gradients: list[float]) -> dict[str, torch.Tensor]:
        module = nn.Linear(1, 1, bias=False)
        nn.init.ones_(module.weight)
        optimizer = build_optimizer(module, OptimizerConfig())
        for gradient in gradients:
            module.weight.grad = torch.tensor([[gradient]])
            optimizer_step(optimizer, 0.1, skip=~module.weight.grad.isfinite().all())
        return {"weight": module.weight.detach(), **optimizer.state[module.weight]}

    expected = trained([0.5, -0.25])
    assert float(expected["step"]) == 2
    torch.testing.assert_close(trained([math.nan, 0.5, math.inf, -0.25, -math.inf]), expected)
