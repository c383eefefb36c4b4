"""Feed-forward and residual connections against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from seq2seq.model import layers
from seq2seq.model.layers import FeedForward, LayerNorm, Residual, final_norm
from seq2seq.ops.residual_norm import residual_norm_reference


def normalised(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def test_feed_forward_by_hand() -> None:
    module = FeedForward(2, 3)
    weights = {
        "inner.weight": [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]],
        "inner.bias": [0.0, -5.0, 1.0],
        "outer.weight": [[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]],
        "outer.bias": [0.5, -0.5],
    }
    module.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    # x·W₁ + b₁ is (3, -1, -6): only the first passes.
    assert module(torch.tensor([[3.0, 4.0]])).tolist() == [[3.5, 5.5]]


def test_both_matrices_of_feed_forward_start_at_the_scale_of_their_shape() -> None:
    torch.manual_seed(1)
    module, limit = FeedForward(64, 256), math.sqrt(6 / (64 + 256))
    for linear in (module.inner, module.outer):
        assert 0.98 * limit < float(linear.weight.detach().abs().max()) <= limit
        assert not linear.bias.any()


def test_post_norm_normalises_the_sum() -> None:
    x = torch.randn(5, 8)
    torch.testing.assert_close(Residual(8, "post", 0.0)(x, lambda y: 3 * y.flip(-1)), normalised(x + 3 * x.flip(-1)))


def test_pre_norm_normalises_what_the_sublayer_reads() -> None:
    x = torch.randn(5, 8)
    torch.testing.assert_close(Residual(8, "pre", 0.0)(x, lambda y: 3 * y.flip(-1)), x + 3 * normalised(x).flip(-1))


def test_gradients_of_many_rows_in_bfloat16_are_added_up_in_float32() -> None:
    norm, rows = LayerNorm(16), torch.randn(8192, 16).bfloat16()
    upstream = torch.randn(8192, 16) + 0.3
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(rows)
    assert out.dtype == torch.bfloat16
    found = torch.autograd.grad(out, (norm.weight, norm.bias), upstream.bfloat16())
    expected = torch.autograd.grad(norm(rows.float()), (norm.weight, norm.bias), upstream)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=2.0)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_dropout_falls_on_the_sublayer_alone(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is in one with the norm cannot be looked at before it; that it does the same is tested beside it.
    monkeypatch.setattr(layers, "residual_norm", residual_norm_reference)
    torch.manual_seed(3)
    x = torch.zeros(200, 8)
    module = Residual(8, norm, 0.5)
    own, module.norm = module.norm, nn.Identity()  # type: ignore[assignment]
    out = module(x + 1, lambda y: torch.full_like(y, 4.0))
    # 1 where the sublayer's 4 was dropped, 1 + 4/0.5 where it was kept
    assert sorted(set(out.flatten().tolist())) == [1.0, 9.0]
    assert float((out == 1).float().mean()) == pytest.approx(0.5, abs=0.06)
    module.norm = own
    out = module.eval()(x + 1, lambda y: torch.full_like(y, 4.0))
    assert torch.equal(out, own(x + 5) if norm == "post" else x + 5)


def test_only_pre_norm_stacks_end_in_a_norm() -> None:
    x = torch.randn(3, 8)
    assert final_norm(8, "post")(x) is x
    torch.testing.assert_close(final_norm(8, "pre")(x), normalised(x))
