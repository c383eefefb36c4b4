"""Feed-forward with a backward pass of its own, against the plain layers, on a GPU or in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seq2seq.ops import feed_forward as module
from seq2seq.ops import native
from seq2seq.ops.feed_forward import _fits, feed_forward, feed_forward_reference, supports_rectified_product
from seq2seq.ops.linear import Linear
from seq2seq.support.devices import capability
from tests.kernels import DEVICE, HAS_GPU, distance

pytest.importorskip("triton", reason="Triton is not installed here")
if HAS_GPU and capability(DEVICE) < (9, 0):
    pytest.skip("this GPU does not copy tiles by itself", allow_module_level=True)

# The interpreter has no bfloat16.
DTYPE = torch.bfloat16 if HAS_GPU else torch.float16
LIMIT = 1e-2 if HAS_GPU else 2e-3


@pytest.mark.parametrize(("rows", "inner", "width"), [(300, 64, 256), (1, 8, 16), (130, 72, 136), (0, 64, 64)])
def test_a_rectified_product_and_its_sums_are_the_reference(rows: int, inner: int, width: int) -> None:
    x, y = torch.randn(rows, inner, device=DEVICE), torch.randn(inner, width, device=DEVICE) / inner**0.5
    rectified = torch.randn(rows, width, device=DEVICE).relu()
    given = [tensor.to(DTYPE) for tensor in (x, y, rectified)]
    exact, sums = module.rectified_product_reference(*(tensor.double() for tensor in given))
    own, of_tiles = torch.ops.seq2seq.rectified_product(*given)
    assert own.dtype == DTYPE and of_tiles.dtype == torch.float32
    assert not rows or distance(own, exact) <= LIMIT
    assert not own[given[2] == 0].any()
    torch.testing.assert_close(of_tiles.sum(0, keepdim=True), sums, rtol=1e-2, atol=0.1)
    again = torch.ops.seq2seq.rectified_product(*given)
    assert torch.equal(own, again[0]) and torch.equal(of_tiles, again[1])


@pytest.mark.parametrize("rows", [0, 1, 300])
@pytest.mark.parametrize("dtype", [DTYPE, torch.float32])
@pytest.mark.parametrize("compiles", [False, True])
def test_outputs_and_gradients_are_those_of_the_layers(
    compiles: bool, dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "supports", lambda _: False)
    torch.manual_seed(1)
    inner, outer = Linear(64, 136, device=DEVICE, dtype=dtype), Linear(136, 64, device=DEVICE, dtype=dtype)
    x = torch.randn(2, rows, 64, device=DEVICE, dtype=DTYPE, requires_grad=True)
    upstream = torch.randn_like(x)
    tensors = [x, inner.weight, inner.bias, outer.weight, outer.bias]

    def found(function: Callable[..., Tensor]) -> list[Tensor]:
        with torch.autocast(DEVICE.type, DTYPE, enabled=dtype != DTYPE):
            out = function(x, inner, outer)
        return [out, *torch.autograd.grad(out, tensors, upstream)]

    expected = found(feed_forward_reference)
    monkeypatch.setattr(module, "supports_rectified_product", lambda *_: True)
    if compiles and rows:
        own = torch.compile(feed_forward, backend="aot_eager", dynamic=True, fullgraph=True)
    else:
        own = feed_forward
    for ours, plain in zip(found(own), expected, strict=True):
        assert ours.dtype == plain.dtype and ours.shape == plain.shape
        assert torch.equal(ours, plain) or distance(ours, plain.double()) <= 2 * LIMIT


def test_what_is_frozen_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "supports", lambda _: False)
    monkeypatch.setattr(module, "supports_rectified_product", lambda *_: True)
    inner, outer = Linear(16, 32, device=DEVICE, dtype=DTYPE), Linear(32, 16, device=DEVICE, dtype=DTYPE)
    inner.weight.requires_grad_(False)
    feed_forward(torch.randn(3, 16, device=DEVICE, dtype=DTYPE), inner, outer).sum().backward()
    assert inner.weight.grad is None and inner.bias.grad is not None and outer.weight.grad is not None


def test_widths_that_are_no_whole_16_bytes_and_float32_are_left_to_the_layers() -> None:
    assert not supports_rectified_product(DEVICE, torch.float32)
    assert supports_rectified_product(DEVICE, DTYPE) == HAS_GPU
    assert _fits(torch.Size((64, 136))) and not _fits(torch.Size((64, 60)))
