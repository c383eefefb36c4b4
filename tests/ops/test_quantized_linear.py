"""Linear layers in int8 against the same roundings in float64, and against the layer that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seq2seq.ops.quantized_linear import (
    WIDE,
    QuantizedLinear,
    quantize_linears,
    quantized_linear_reference,
    rounded_rows,
)
from seq2seq.support.errors import UserError


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 16), (5, 16), (2, 3, 48), (70, 48)])
@pytest.mark.parametrize("outputs", [1, 9, 64, WIDE])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_sums_are_exact(shape: tuple[int, ...], outputs: int, with_bias: bool) -> None:
    x, weight = drawn(*shape), drawn(outputs, shape[-1], seed=2)
    bias = drawn(outputs, seed=3) if with_bias else None
    layer = QuantizedLinear(weight, bias)
    expected = quantized_linear_reference(x, weight, bias, 127 if layer.reduce_range else 255)
    found = layer(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", [-10.0, -0.5, 0.0, 10.0])
def test_rounding_is_to_the_nearest_step_and_zeros_stay(shift: float) -> None:
    x = drawn(6, 100) + shift
    x[3] = 0.0
    rounded = rounded_rows(x)
    step = (x.amax().clamp(min=0) - x.amin().clamp(max=0)) / 255
    assert (rounded[3] == 0).all()
    assert len(rounded.unique()) <= 256
    # Half a step for the value, and at the ends half a step for the zero point.
    assert (rounded - x).abs().max() <= step + 1e-6


def test_zeros_alone_give_the_bias() -> None:
    bias = drawn(9)
    assert torch.equal(QuantizedLinear(drawn(9, 16), bias)(torch.zeros(2, 16)), bias.expand(2, 9))


def test_all_linear_layers_of_a_module_are_replaced() -> None:
    inner = nn.Sequential(nn.Linear(32, 32, bias=False))
    module = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), inner)
    x = drawn(4, 32)
    before = module(x)
    quantize_linears(module)
    assert [type(part).__name__ for part in (module[0], module[1], inner[0])] == [
        "QuantizedLinear",
        "LayerNorm",
        "QuantizedLinear",
    ]
    torch.testing.assert_close(module(x), before, atol=0.05, rtol=0)


def test_without_a_kernel_one_line_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("not implemented for this CPU")

    monkeypatch.setattr(torch, "_make_per_channel_quantized_tensor", missing)
    with pytest.raises(UserError, match=r"int8: .*--dtype float32"):
        quantize_linears(nn.Sequential(nn.Linear(8, 8)))
