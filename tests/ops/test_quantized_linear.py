"""Linear layers in int8 against the same roundings in float64, and against the layer that they stand for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from seq2seq.ops import native
from seq2seq.ops import quantized_linear as module
from seq2seq.ops.few_rows import FEW
from seq2seq.ops.packed_linear import PackedLinear, can_pack
from seq2seq.ops.quantized_linear import (
    QuantizedLinear,
    quantize_linears,
    quantized_linear_reference,
    rounded_rows,
)
from seq2seq.support.errors import UserError


@pytest.fixture(autouse=True, params=["native", "plain"])
def _in_int8_with_and_without_functions_of_our_own(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "many_in_bfloat16", lambda: False)
    if request.param == "plain":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C++ compiler here")


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 16), (FEW, 16), (FEW + 1, 16), (2, 3, 48), (70, 48)])
@pytest.mark.parametrize("outputs", [1, 9, 64, 4096])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rectify", [False, True])
def test_the_sums_are_exact(shape: tuple[int, ...], outputs: int, with_bias: bool, rectify: bool) -> None:
    x, weight = drawn(*shape), drawn(outputs, shape[-1], seed=2)
    bias = drawn(outputs, seed=3) if with_bias else None
    layer = QuantizedLinear(weight, bias)
    expected = quantized_linear_reference(x, weight, bias, layer.levels)
    found = layer(x, rectify=rectify)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected.clamp(min=0) if rectify else expected, atol=2e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_its_company() -> None:
    x, layer = drawn(40, 48), QuantizedLinear(drawn(100, 48, seed=2), drawn(100, seed=3))
    x[7] *= 1000
    for rows in (slice(0, 1), slice(3, 3 + FEW), slice(9, 30)):
        assert torch.equal(layer(x[rows]), layer(x)[rows])


def test_rows_of_any_layout_will_do() -> None:
    x, layer = drawn(2, 8, 40), QuantizedLinear(drawn(9, 16, seed=2))
    for part in (x[:1, :FEW], x):
        own = part.split([16, 24], -1)[0]
        assert torch.equal(layer(own), layer(own.contiguous()))


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_does_not_come_out_as_a_number(strange: float) -> None:
    x, layer = drawn(10, 16), QuantizedLinear(drawn(9, 16, seed=2))
    x[2, 3] = strange
    for rows in (3, 10):
        finite = layer(x[:rows]).isfinite()
        assert not finite[2].any() and finite[:2].all() and finite[3:].all()


def test_rounding_is_to_the_nearest_step_and_zeros_stay() -> None:
    x = drawn(6, 100)
    x[3] = 0.0
    x[:, 5] = 0.0
    rounded, step = rounded_rows(x, 127)
    assert (rounded[3] == 0).all() and (rounded[:, 5] == 0).all()
    assert (rounded == rounded.round()).all() and rounded.abs().max() == 127
    assert (rounded * step[:, None] - x).abs().max() <= step.max() / 2 + 1e-6


@pytest.mark.skipif(not can_pack(torch.ones(1, 8, dtype=torch.bfloat16)), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows_may_be_computed_in_bfloat16(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = drawn(3, FEW, 48).to(dtype), drawn(100, 48, seed=2), drawn(100, seed=3)
    in_int8 = QuantizedLinear(weight, bias)
    monkeypatch.setattr(module, "many_in_bfloat16", lambda: True)
    both = QuantizedLinear(weight, bias)
    found = both(x, rectify=True)
    assert found.dtype == dtype
    expected = PackedLinear(weight.bfloat16(), bias.bfloat16())(x.bfloat16(), rectify=True)
    assert torch.equal(found, expected.to(dtype))
    few = both(x[0], rectify=True)
    assert torch.equal(few, in_int8(x[0], rectify=True) if native.library() else found[0])


def test_zeros_alone_give_the_bias() -> None:
    bias = drawn(9)
    for rows in (2, FEW + 1):
        assert torch.equal(QuantizedLinear(drawn(9, 16), bias)(torch.zeros(rows, 16)), bias.expand(rows, 9))


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

    monkeypatch.setattr(QuantizedLinear, "_product", missing)
    with pytest.raises(UserError, match=r"int8: .*--dtype float32"):
        quantize_linears(nn.Sequential(nn.Linear(8, 8)))
