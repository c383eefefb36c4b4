"""Linear layers of training, cut off below zero or not, against the plain formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

from seq2seq.ops import native
from seq2seq.ops.linear import Linear, LinearFunction, linear_reference, replace_linears
from seq2seq.ops.packed_linear import PackedLinear, supports_packing
from seq2seq.ops.panel_linear import PanelLinear
from seq2seq.ops.quantized_linear import QuantizedLinear

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def applied(x: Tensor, layer: nn.Linear, relu: bool = True) -> Tensor:
    out: Tensor = LinearFunction.apply(x, layer.weight, layer.bias, relu)  # type: ignore[no-untyped-call]
    return out


def plain(x: Tensor, layer: nn.Linear, relu: bool = True) -> Tensor:
    return linear_reference(x, layer.weight, layer.bias, relu=relu)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch, native_calls: list[str]) -> list[str]:
    """On all processors our own are taken to be quicker; the names of the functions that are called."""
    monkeypatch.setattr(native, "has_fast_large_matmul", lambda dtype: dtype in native.FORMATS)
    return native_calls


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "width", "outputs"), [(7, 12, 20), (150, 200, 130)])
def test_output_and_gradients_are_those_of_the_plain_layer(
    rows: int, width: int, outputs: int, dtype: torch.dtype, relu: bool, products: list[str]
) -> None:
    # Near zero, rounding would decide what ReLU lets through.
    torch.manual_seed(1)
    layer = Linear(width, outputs).to(DEVICE, dtype)
    x = torch.randn(2, rows, width, device=DEVICE, dtype=dtype, requires_grad=True)
    inputs = (x, layer.weight, layer.bias)
    expected = plain(x, layer, relu)
    assert 0 < (expected <= 0).sum() < expected.numel()
    dense = torch.randn(2, rows, outputs, device=DEVICE, dtype=dtype)
    for upstream in (dense, torch.ones((), device=DEVICE, dtype=dtype).expand(dense.shape)):
        for out in (layer(x, relu=relu), applied(x.flatten(0, 1), layer, relu).view(dense.shape)):
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
            found = torch.autograd.grad(out, inputs, upstream)
            wanted = torch.autograd.grad(expected, inputs, upstream, retain_graph=True)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    in_c = rows > 7 and dtype is torch.float32 and native.supports(x)
    assert products == ["product"] * (12 if in_c else 0)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("frozen", ["", "weight", "bias"])
def test_weights_in_the_format_of_the_matmuls_have_gradients_in_it(frozen: str, relu: bool) -> None:
    layer = Linear(200, 130).to(DEVICE)
    copy = Linear(200, 130).to(DEVICE, torch.bfloat16)
    x, upstream = (torch.randn(150, width, device=DEVICE, dtype=torch.bfloat16) for width in (200, 130))
    found = []
    for each in (layer, copy):
        each.load_state_dict(layer.state_dict())
        learnt = [weight for name, weight in each.named_parameters() if name != frozen]
        for weight in each.parameters():
            weight.requires_grad_(any(weight is one for one in learnt))
        with torch.autocast(DEVICE.type, torch.bfloat16):
            out = applied(x, each, relu)
        found.append((out.detach(), *torch.autograd.grad(out, learnt, upstream)))
        assert all(gradient.dtype is learnt[0].dtype for gradient in found[-1][1:])
    for own, expected in zip(found[1], found[0], strict=True):
        assert float((own.float() - expected.float()).norm()) <= 4e-3 * float(expected.float().norm())


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
def test_large_layers_are_computed_in_c(products: list[str]) -> None:
    layer, x = Linear(200, 150), torch.randn(300, 200)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert products == ["product"], "what is frozen wants no product"
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    assert products == ["product"] * 2
    layer(x[:20])
    layer.double()(x.double())
    with pytest.raises(RuntimeError):
        layer(x)
    assert products == ["product"] * 2, "neither in another format nor for a few rows"


@pytest.mark.parametrize(("rows", "width", "outputs"), [(7, 12, 20), (150, 200, 130)])
def test_products_are_in_the_format_of_autocast_and_gradients_in_that_of_the_weights(
    rows: int, width: int, outputs: int, products: list[str]
) -> None:
    torch.manual_seed(1)
    layer = Linear(width, outputs).to(DEVICE)
    x = torch.randn(rows, width, device=DEVICE, requires_grad=True)
    inputs = (x, layer.weight, layer.bias)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        own, expected = applied(x, layer), plain(x, layer)
    assert own.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(own, expected, rtol=1e-2, atol=1e-2)
    upstream = torch.randn_like(own)
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in (own, expected)]
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * rows**0.5)
    in_c = rows > 7 and native.library() is not None and DEVICE.type == "cpu"
    assert products == (["product", "product", "product_of_bfloat16"] if in_c else [])
    if in_c:
        # Not rounded to bfloat16.
        masked = (upstream * (own > 0)).double()
        exact = masked.t() @ x.bfloat16().double(), masked.sum(0)
        torch.testing.assert_close(tuple(each.double() for each in gradients[0][1:]), exact, rtol=1e-5, atol=1e-4)


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


@pytest.mark.parametrize("make", [PackedLinear, PanelLinear.of, QuantizedLinear])
def test_all_linear_layers_of_a_module_are_replaced(make: Callable[[Tensor, Tensor | None], nn.Module]) -> None:
    if make == PanelLinear.of and native.library() is None:
        pytest.skip("no C++ compiler here")
    if make is PackedLinear and not supports_packing(torch.ones(8, 8)):
        pytest.skip("this PyTorch has no such operations")
    inner = nn.Sequential(nn.Linear(32, 32, bias=False))
    module = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), inner)
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    before = module(x)
    replace_linears(module, make)
    kind = type(make(torch.ones(1, 1), None))
    assert [type(part) for part in (module[0], module[1], inner[0])] == [kind, nn.LayerNorm, kind]
    torch.testing.assert_close(module(x), before, atol=0.05 if kind is QuantizedLinear else 1e-5, rtol=0)
