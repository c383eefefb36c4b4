"""Adam as the paper sets it, its first steps by hand; Muon against singular value decompositions."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from seq2seq.config.compose import compose
from seq2seq.config.schema import ModelConfig, OptimizerConfig, TransformerConfig
from seq2seq.model.translation import build_model, count_parameters
from seq2seq.ops.polar_factor import polar_factor
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


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_every_weight_is_optimized_once(kind: str) -> None:
    tiny = TransformerConfig(num_layers=1, num_heads=1, d_ff=8)
    model = build_model(ModelConfig(d_model=4, encoder=tiny, decoder=tiny), 10, 1)
    optimizer = build_optimizer(model, OptimizerConfig(kind=kind))
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len({id(parameter) for parameter in held}) == len(held)
    assert sum(parameter.numel() for parameter in held) == count_parameters(model)


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_a_skipped_step_leaves_weights_and_moments_and_their_count(kind: str) -> None:
    def trained(gradients: list[float]) -> dict[str, torch.Tensor]:
        module = nn.Linear(1, 1)
        for weight in module.parameters():
            nn.init.ones_(weight)
        optimizer = build_optimizer(module, OptimizerConfig(kind=kind, weight_decay=0.1))
        for gradient in gradients:
            for weight in module.parameters():
                weight.grad = torch.full_like(weight, gradient)
            optimizer_step(optimizer, 0.1, skip=torch.tensor(not math.isfinite(gradient)))
        states = {f"{name}.{key}": x for name, w in module.named_parameters() for key, x in optimizer.state[w].items()}
        return {**states, **dict(module.state_dict())}

    expected = trained([0.5, -0.25])
    assert float(expected["bias.step"]) == 2
    found = trained([math.nan, 0.5, math.inf, -0.25, -math.inf])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_moves_matrices_by_the_polar_factor_of_their_momentum(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of each shape two at once, which leaves one of the first.
    monkeypatch.setattr("seq2seq.train.optimizer.AT_ONCE", 2 * 4 * 64)
    module = nn.Sequential(*(nn.Linear(64, 4) for _ in range(3)), nn.Linear(4, 64), nn.LayerNorm(4))
    alone = copy.deepcopy(module)
    optimizer = build_optimizer(module, OptimizerConfig(kind="muon", momentum=0.75, weight_decay=0.5), dtype)
    adam = build_optimizer(alone, OptimizerConfig(weight_decay=0.5))
    momentum = {name: torch.zeros_like(weight) for name, weight in module.named_parameters()}
    for seed in (1, 2, 3):
        before = copy.deepcopy(module.state_dict())
        torch.manual_seed(seed)
        for weight, same in zip(module.parameters(), alone.parameters(), strict=True):
            weight.grad = torch.randn_like(weight)
            same.grad = weight.grad.clone()
        optimizer_step(optimizer, 0.1, skip=torch.zeros(()))
        optimizer_step(adam, 0.1, skip=torch.zeros(()))
        for name, weight in module.named_parameters():
            assert weight.grad is not None
            if weight.ndim == 1:
                assert torch.equal(weight, alone.get_parameter(name))
                continue
            momentum[name] = 0.75 * momentum[name] + 0.25 * weight.grad
            torch.testing.assert_close(optimizer.state[weight]["momentum"], momentum[name])
            ahead = 0.75 * momentum[name] + 0.25 * weight.grad
            update = 0.2 * 64**0.5 * polar_factor(ahead[None], dtype)[0]
            torch.testing.assert_close(weight, before[name] * (1 - 0.1 * 0.5) - 0.1 * update, atol=1e-5, rtol=0)


def test_muon_keeps_one_state_for_each_weight_that_has_a_gradient() -> None:
    module = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(6, 4))
    optimizer = build_optimizer(module, OptimizerConfig(kind="muon"))
    for weight in module[:2].parameters():
        weight.grad = torch.ones_like(weight)
    optimizer_step(optimizer, 0.1, skip=torch.zeros(()))
    kept = [set(optimizer.state[weight]) for weight in module.parameters()]
    assert kept == [{"momentum"}, *[{"step", "exp_avg", "exp_avg_sq"}] * 3, set(), set()]
    optimizer.load_state_dict(optimizer.state_dict())
    before = copy.deepcopy(module.state_dict())
    optimizer_step(optimizer, 0.0, skip=torch.zeros(()))
    torch.testing.assert_close(dict(module.state_dict()), dict(before), atol=0, rtol=0)
    assert float(optimizer.state[module.get_parameter("0.bias")]["step"]) == 2
