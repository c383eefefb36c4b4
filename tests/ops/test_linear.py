"""Linear layers of training, cut off below zero or not, against the plain formula."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from seq2seq.ops import native
from seq2seq.ops.linear import Linear, LinearFunction, linear_reference
from seq2seq.ops.product import multiplies

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def applied(x: Tensor, layer: nn.Linear, rectify: bool = True) -> Tensor:
    out: Tensor = LinearFunction.apply(x, layer.weight, layer.bias, rectify)  # type: ignore[no-untyped-call]
    return out


def plain(x: Tensor, layer: nn.Linear, rectify: bool = True) -> Tensor:
    return linear_reference(x, layer.weight, layer.bias, rectify=rectify)


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_and_gradients_are_those_of_the_plain_layer(dtype: torch.dtype, rectify: bool) -> None:
    layer = Linear(12, 20).to(DEVICE, dtype)
    x = torch.randn(2, 7, 12, device=DEVICE, dtype=dtype, requires_grad=True)
    inputs = (x, layer.weight, layer.bias)
    upstream = torch.randn(2, 7, 20, device=DEVICE, dtype=dtype)
    expected = plain(x, layer, rectify)
    assert 0 < (expected <= 0).sum() < expected.numel()
    of_expected = torch.autograd.grad(expected, inputs, upstream)
    for out in (layer(x, rectify=rectify), applied(x.flatten(0, 1), layer, rectify).view(2, 7, 20)):
        torch.testing.assert_close((out, *torch.autograd.grad(out, inputs, upstream)), (expected, *of_expected))


@pytest.mark.skipif(not multiplies(torch.ones(1)), reason="PyTorch's products are the ones here")
def test_large_layers_in_float32_are_computed_by_our_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str, *rest: Tensor | float) -> None:
        calls.append(name)
        call(name, *rest)

    call = native.call
    monkeypatch.setattr(native, "call", counted)
    layer, x = Linear(200, 150), torch.randn(300, 200, requires_grad=True)
    layer(x, rectify=True).sum().backward()
    assert calls == ["product"] * 3
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    layer(x.bfloat16().float()[:20])
    assert calls == ["product"] * 3, "neither in another format nor for a few rows"


def test_products_are_in_the_format_of_autocast_and_gradients_in_that_of_the_weights() -> None:
    layer = Linear(12, 20).to(DEVICE)
    x = torch.randn(7, 12, device=DEVICE, requires_grad=True)
    inputs = (x, layer.weight, layer.bias)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        own, expected = applied(x, layer), plain(x, layer)
    assert own.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(own, expected)
    gradients = [torch.autograd.grad(out, inputs, torch.ones_like(out)) for out in (own, expected)]
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_what_is_not_a_number_stays_so_where_nothing_is_cut_off() -> None:
    layer, x = Linear(200, 150), torch.randn(300, 200)
    x[5, 3] = torch.nan
    finite = layer(x).isfinite().all(1)
    assert not finite[5] and finite.sum() == 299


def test_it_is_compiled_once_for_all_numbers_of_rows() -> None:
    layer = Linear(12, 20).to(DEVICE)
    counted = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(applied, backend=counted, fullgraph=True, dynamic=True)
    for rows in (3, 7, 12, 20, 33):
        x = torch.randn(rows, 12, device=DEVICE, requires_grad=True)
        outs = [function(x, layer) for function in (compiled, applied)]
        found, expected = (torch.autograd.grad(out.sum(), (x, layer.weight, layer.bias)) for out in outs)
        torch.testing.assert_close((outs[0], *found), (outs[1], *expected))
    assert counted.frame_count == 1
