"""A linear layer cut off below zero, in one product, against the plain formula."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from seq2seq.ops.rectified_linear import RectifiedLinear, rectified_linear, rectified_linear_reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def applied(x: Tensor, linear: nn.Linear) -> Tensor:
    out: Tensor = RectifiedLinear.apply(x, linear.weight, linear.bias)  # type: ignore[no-untyped-call]
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_and_gradients_are_those_of_the_layer_and_relu(dtype: torch.dtype) -> None:
    linear = nn.Linear(12, 20).to(DEVICE, dtype)
    x = torch.randn(7, 12, device=DEVICE, dtype=dtype, requires_grad=True)
    inputs = (x, linear.weight, linear.bias)
    upstream = torch.randn(7, 20, device=DEVICE, dtype=dtype)
    plain = rectified_linear_reference(x, linear)
    assert 0 < (plain == 0).sum() < plain.numel()
    expected = plain, *torch.autograd.grad(plain, inputs, upstream)
    # On a processor the latter is the plain formula.
    for function in (applied, rectified_linear) if DEVICE.type == "cuda" else (applied,):
        own = function(x, linear)
        torch.testing.assert_close((own, *torch.autograd.grad(own, inputs, upstream)), expected)


def test_products_are_in_the_format_of_autocast_and_gradients_in_that_of_the_weights() -> None:
    linear = nn.Linear(12, 20).to(DEVICE)
    x = torch.randn(7, 12, device=DEVICE, requires_grad=True)
    inputs = (x, linear.weight, linear.bias)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        own, plain = applied(x, linear), rectified_linear_reference(x, linear)
    assert own.dtype == plain.dtype == torch.bfloat16
    found, expected = (torch.autograd.grad(out, inputs, torch.ones_like(out)) for out in (own, plain))
    torch.testing.assert_close(own, plain)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_it_is_compiled_once_for_all_numbers_of_rows() -> None:
    linear = nn.Linear(12, 20).to(DEVICE)
    counted = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(applied, backend=counted, fullgraph=True, dynamic=True)
    for rows in (3, 7, 12, 20, 33):
        x = torch.randn(rows, 12, device=DEVICE, requires_grad=True)
        outs = [function(x, linear) for function in (compiled, applied)]
        found, expected = (torch.autograd.grad(out.sum(), (x, linear.weight, linear.bias)) for out in outs)
        torch.testing.assert_close((outs[0], *found), (outs[1], *expected))
    assert counted.frame_count == 1
