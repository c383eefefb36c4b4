"""Dropout: how often, by how much, from which seed, and that the gradient goes where the values went."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from seq2seq.ops.dropout import Dropout, add_dropout, dropout, mask

COUNT = 200_000


@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_rest_scaled(p: float) -> None:
    torch.manual_seed(1)
    out = dropout(torch.full((COUNT,), 2.0), p)
    deviation = (p * (1 - p) / COUNT) ** 0.5
    assert float((out == 0).float().mean()) == pytest.approx(p, abs=4 * deviation)
    torch.testing.assert_close(out[out != 0], torch.full((int((out != 0).sum()),), 2 / (1 - p)))
    # the expectation is the value itself
    assert float(out.mean()) == pytest.approx(2.0, abs=4 * 2 * (p / (1 - p) / COUNT) ** 0.5)


@pytest.mark.parametrize("p", [0.1, 0.3])
def test_moments_are_those_of_pytorch(p: float) -> None:
    torch.manual_seed(2)
    x = torch.randn(COUNT)
    ours, theirs = dropout(x, p), F.dropout(x, p)
    assert float((ours == 0).float().mean()) == pytest.approx(float((theirs == 0).float().mean()), abs=0.006)
    assert float(ours.mean()) == pytest.approx(float(theirs.mean()), abs=0.02)
    assert float(ours.var()) == pytest.approx(float(theirs.var()), rel=0.02)
    assert float((ours * x).mean()) == pytest.approx(float((theirs * x).mean()), rel=0.02)


def test_neighbours_are_dropped_independently() -> None:
    # Four elements share one draw of the generator.
    torch.manual_seed(3)
    kept = mask(torch.ones(COUNT), 0.3) * 0.7 - 0.7
    for lag in range(1, 9):
        correlation = float((kept[:-lag] * kept[lag:]).mean()) / (0.3 * 0.7)
        assert abs(correlation) < 5 / COUNT**0.5, lag


def test_each_place_in_a_draw_has_the_same_rate() -> None:
    torch.manual_seed(4)
    rates = (mask(torch.ones(COUNT), 0.3) * 0.7).view(-1, 4).mean(0)
    torch.testing.assert_close(rates, torch.full((4,), 0.7), atol=0.009, rtol=0)


def test_a_seed_names_one_mask() -> None:
    x = torch.ones(64, 33)
    torch.manual_seed(5)
    first, second = dropout(x, 0.4), dropout(x, 0.4)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.4), first)
    assert not torch.equal(second, first)
    torch.manual_seed(6)
    assert not torch.equal(dropout(x, 0.4), first)


def test_gradient_is_dropped_where_the_value_was() -> None:
    torch.manual_seed(7)
    x = torch.randn(50, 7, requires_grad=True)
    out = dropout(x, 0.3)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad == 0, out == 0)
    assert 0 < int((grad == 0).sum()) < x.numel()
    torch.testing.assert_close(grad[grad != 0], torch.full((int((grad != 0).sum()),), 1 / 0.7))


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 7), (0, 4)])
def test_any_shape_and_format(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        out = dropout(torch.ones(shape, dtype=dtype), 0.5)
        assert out.shape == shape
        assert out.dtype == dtype


def test_no_dropout_is_the_identity() -> None:
    x = torch.randn(5, 3)
    assert dropout(x, 0.0) is x


@pytest.mark.parametrize("p", [1e-6, 1e-4])
def test_a_tiny_p_drops_next_to_nothing(p: float) -> None:
    assert float((dropout(torch.ones(COUNT), p) == 0).float().mean()) < 1e-3


@pytest.mark.parametrize("p", [0.9999, 0.9999999])
def test_a_p_near_one_keeps_next_to_nothing(p: float) -> None:
    assert float((dropout(torch.ones(COUNT), p) == 0).float().mean()) > 0.999


def test_the_module_drops_in_training_only() -> None:
    module, x = Dropout(0.5), torch.ones(1000)
    assert 300 < int((module.train()(x) == 0).sum()) < 700
    assert module.eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_added_in_one_pass_it_is_the_sum(dtype: torch.dtype) -> None:
    x, y = (torch.randn(40, 9).to(dtype).requires_grad_() for _ in range(2))
    torch.manual_seed(8)
    expected = x + dropout(y, 0.3)
    torch.manual_seed(8)
    out = add_dropout(x, y, 0.3)
    # One rounding in place of two.
    near = 0.02 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(out, expected, atol=near, rtol=near)
    weights = torch.randn(40, 9).to(dtype)
    for own, reference in zip(
        torch.autograd.grad(out, (x, y), weights), torch.autograd.grad(expected, (x, y), weights), strict=True
    ):
        torch.testing.assert_close(own, reference)
    assert torch.equal(add_dropout(x, y, 0.0), x + y)
