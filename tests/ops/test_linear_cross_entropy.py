"""The fused output layer and loss against PyTorch's two, hand-made numbers and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from seq2seq.ops import linear_cross_entropy as module
from seq2seq.ops import native
from seq2seq.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from seq2seq.ops.product import product

ROWS, WIDTH, VOCABULARY = 11, 6, 19


@pytest.fixture(autouse=True, params=["in C++", "by PyTorch"])
def _language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits become gradients in a function of our own, or by PyTorch's operations where there is no compiler."""
    if request.param == "by PyTorch":
        monkeypatch.setattr(native, "supports", lambda _: False)
    elif native.library() is None:
        pytest.skip("no C++ compiler here")


def draw(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        scale * torch.randn(ROWS, WIDTH, generator=generator),
        torch.randn(VOCABULARY, WIDTH, generator=generator),
        torch.randint(VOCABULARY, (ROWS,), generator=generator),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 4, ROWS, 2048])
def test_values_and_gradients_are_the_reference(monkeypatch: pytest.MonkeyPatch, smoothing: float, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    h, w, target = draw()
    inputs = (h.requires_grad_(), w.requires_grad_())
    loss, plain = linear_cross_entropy(*inputs, target, smoothing)
    expected_loss, expected_plain = linear_cross_entropy_reference(*inputs, target, smoothing)
    torch.testing.assert_close(loss, expected_loss, atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(plain, expected_plain, atol=1e-4, rtol=1e-6)
    # The loss of an update is divided by its tokens: the scale must reach the gradients.
    for own, reference in zip(
        torch.autograd.grad(loss / 7, inputs), torch.autograd.grad(expected_loss / 7, inputs), strict=True
    ):
        torch.testing.assert_close(own, reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [0, 1, 4, 7, ROWS])
def test_rows_without_a_target_count_nothing(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(module, "CACHED", 3)
    h, w, target = draw()
    target[count:] = -1
    inputs = (h.requires_grad_(), w.requires_grad_())
    found = linear_cross_entropy(*inputs, target, 0.1)
    expected = linear_cross_entropy_reference(*inputs, target, 0.1)
    fewer = linear_cross_entropy(h[:count], w, target[:count], 0.1)
    for other in (expected, fewer):
        torch.testing.assert_close(found, other, atol=1e-4, rtol=1e-6)
    gradients = torch.autograd.grad(found[0], inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected[0], inputs), atol=1e-5, rtol=0)
    assert not gradients[0][count:].any()


def test_no_rows_give_gradients_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, torch.nan))
    h, w, target = draw()
    loss, plain = linear_cross_entropy(h[:0], w.requires_grad_(), target[:0], 0.1)
    assert float(loss.detach()) == float(plain) == 0.0
    assert not torch.autograd.grad(loss, w)[0].any()


def test_a_target_below_zero_counts_nothing() -> None:
    h, w, target = draw()
    target[2:5] = -1
    rest = torch.tensor([0, 1, *range(5, ROWS)])
    found = linear_cross_entropy(h.requires_grad_(), w.requires_grad_(), target, 0.1)
    gradients = torch.autograd.grad(found[0], (h, w))
    for hidden, targets in ((h, target), (h[rest], target[rest])):
        expected = linear_cross_entropy_reference(hidden, w, targets, 0.1)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-6)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected[0], (h, w)), atol=1e-5, rtol=0)


def test_a_target_beyond_the_vocabulary_is_an_error() -> None:
    h, w, target = draw()
    target[3] = VOCABULARY
    with pytest.raises((IndexError, RuntimeError), match=r"target 19 of a vocabulary of 19|out of bounds"):
        linear_cross_entropy(h, w, target, 0.1)


def test_whole_numbers_are_numbers_too() -> None:
    h, w, target = draw()
    inputs = (h.requires_grad_(), w.requires_grad_())
    results = [linear_cross_entropy(*inputs, target, smoothing) for smoothing in (0, 0.0, 0.1)]
    torch.testing.assert_close(results[0], results[1])
    gradients = [torch.autograd.grad(loss, inputs) for loss, _ in results]
    torch.testing.assert_close(gradients[0], gradients[1])
    expected = linear_cross_entropy_reference(*inputs, target, 0.1)
    torch.testing.assert_close(results[2], expected, atol=1e-4, rtol=1e-6)


def test_threads_change_no_bit() -> None:
    if not native.supports(torch.ones(1)):
        pytest.skip("PyTorch's sums may")
    h, w, target = (each.repeat(30, *[1] * (each.dim() - 1)) for each in draw())
    of_any = h @ w[:VOCABULARY].T
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        logits = of_any.clone()
        figures = module._to_gradients_by_kernel(logits, target, 0.1)
        found.append((logits, *figures))
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_smoothing_spreads_over_the_whole_vocabulary_by_hand() -> None:
    # softmax of these logits is 1/10, 2/10, 3/10, 4/10; q is 0.1/4 everywhere, and 0.9 more at the target.
    w = torch.tensor([[math.log(1)], [math.log(2)], [math.log(3)], [math.log(4)]])
    loss, plain = linear_cross_entropy(torch.ones(1, 1), w, torch.tensor([2]), 0.1)
    everywhere = math.log(0.1) + math.log(0.2) + math.log(0.3) + math.log(0.4)
    assert float(plain) == pytest.approx(-math.log(0.3), abs=1e-6)
    assert float(loss) == pytest.approx(-(0.9 * math.log(0.3) + 0.025 * everywhere), abs=1e-6)


def test_gradient_by_hand_is_probabilities_less_smoothed_target() -> None:
    w = torch.tensor([[math.log(1)], [math.log(2)], [math.log(3)], [math.log(4)]], requires_grad=True)
    loss, _ = linear_cross_entropy(torch.ones(1, 1), w, torch.tensor([2]), 0.1)
    (grad,) = torch.autograd.grad(loss, w)
    expected = torch.tensor([0.1 - 0.025, 0.2 - 0.025, 0.3 - 0.925, 0.4 - 0.025])
    torch.testing.assert_close(grad[:, 0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_agree_with_finite_differences(monkeypatch: pytest.MonkeyPatch, smoothing: float) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    h, w, target = draw()
    grads = torch.autograd.grad(
        linear_cross_entropy(h.requires_grad_(), w.requires_grad_(), target, smoothing)[0], (h, w)
    )
    generator = torch.Generator().manual_seed(8)
    for _ in range(5):
        steps = [torch.randn(side.shape, generator=generator) for side in (h, w)]
        slope = sum(float((step * grad).sum()) for step, grad in zip(steps, grads, strict=True))
        with torch.no_grad():
            ahead, behind = (
                float(linear_cross_entropy(h + size * steps[0], w + size * steps[1], target, smoothing)[0])
                for size in (1e-2, -1e-2)
            )
        assert (ahead - behind) / 2e-2 == pytest.approx(slope, rel=1e-2, abs=0.05)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bfloat16_autocast_is_near_float32(smoothing: float) -> None:
    h, w, target = draw()
    inputs = (h.requires_grad_(), w.requires_grad_())
    exact_loss, exact_plain = linear_cross_entropy_reference(*inputs, target, smoothing)
    with torch.autocast("cpu", torch.bfloat16):
        loss, plain = linear_cross_entropy(*inputs, target, smoothing)
    assert loss.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(loss, exact_loss, rtol=0.01, atol=0)
    torch.testing.assert_close(plain, exact_plain, rtol=0.01, atol=0)
    for own, exact in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(exact_loss, inputs), strict=True):
        assert own.dtype == torch.float32
        assert float((own - exact).norm() / exact.norm()) < 0.02


def test_weights_in_bfloat16_need_no_autocast() -> None:
    h, w, target = draw()
    exact_loss, exact_plain = linear_cross_entropy_reference(h, w, target, 0.1)
    loss, plain = linear_cross_entropy(h.bfloat16(), w.bfloat16(), target, 0.1)
    torch.testing.assert_close(loss, exact_loss, rtol=0.01, atol=0)
    torch.testing.assert_close(plain, exact_plain, rtol=0.01, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_large_logits_stay_finite(smoothing: float) -> None:
    h, w, target = draw(scale=1000.0)
    inputs = (h.requires_grad_(), w.requires_grad_())
    loss, plain = linear_cross_entropy(*inputs, target, smoothing)
    expected_loss, expected_plain = linear_cross_entropy_reference(*inputs, target, smoothing)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(plain, expected_plain, rtol=1e-5, atol=0)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, inputs))


def test_one_gradient_may_be_all_that_is_wanted() -> None:
    h, w, target = draw()
    both = torch.autograd.grad(linear_cross_entropy(h.requires_grad_(), w.requires_grad_(), target, 0.1)[0], (h, w))
    for side, expected in enumerate(both):
        inputs = [h.detach(), w.detach()]
        inputs[side].requires_grad_()
        loss, plain = linear_cross_entropy(inputs[0], inputs[1], target, 0.1)
        torch.testing.assert_close(torch.autograd.grad(loss, inputs[side])[0], expected)
        assert not plain.requires_grad


def test_without_gradients_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    h, w, target = draw()
    counted: list[int] = []

    def counting(*tensors: Tensor, **out: Any) -> Tensor:
        counted.append(1)
        return product(*tensors, **out)

    monkeypatch.setattr(module, "product", counting)
    monkeypatch.delattr(module, "add_product")
    with torch.no_grad():
        linear_cross_entropy(h.requires_grad_(), torch.nn.Parameter(w), target, 0.1)
    assert len(counted) == 1


def test_values_are_the_same_without_gradients() -> None:
    h, w, target = draw()
    with torch.inference_mode():
        without = linear_cross_entropy(h, w, target, 0.1)
    with_gradient = linear_cross_entropy(h.requires_grad_(), w, target, 0.1)
    for one, other in zip(without, with_gradient, strict=True):
        assert torch.equal(one, other.detach())


def test_memory_is_less_than_half_of_the_plain_one() -> None:
    rows, width, vocabulary = 8192, 16, 4000
    h, w = torch.randn(rows, width), torch.randn(vocabulary, width)
    target = torch.randint(vocabulary, (rows,))

    def extra(loss_of: Callable[..., tuple[Tensor, Tensor]]) -> int:
        """Bytes that forward and backward held at once, at the most."""
        inputs = (h.clone().requires_grad_(), w.clone().requires_grad_())
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            loss, _ = loss_of(*inputs, target, 0.1)
            loss.backward()
        held = most = 0
        for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        return most

    plain, fused = extra(linear_cross_entropy_reference), extra(linear_cross_entropy)
    assert plain > 2 * 4 * rows * vocabulary
    assert fused < plain / 2
