"""Linear layers in int8 against the same roundings in float64, and against the layer that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import nn

from seq2seq.ops import native
from seq2seq.ops.quantized_linear import (
    QuantizedLinear,
    in_int8,
    int8_layer,
    quantized_linear_reference,
    rounded_rows,
)
from seq2seq.support.errors import UserError

Make = Callable[..., nn.Module]


@pytest.fixture(params=["native", "oneDNN"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Both ways to make a layer; one alone is taken in the test."""
    is_native = request.param == "native"
    if is_native and native.library() is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.setattr(native, "has_fast_matmul", lambda: is_native)
    return in_int8 if is_native else QuantizedLinear


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 16), (5, 16), (2, 3, 48), (70, 48)])
@pytest.mark.parametrize("outputs", [1, 9, 64, 4096])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_the_sums_are_exact(shape: tuple[int, ...], outputs: int, with_bias: bool, relu: bool, make: Make) -> None:
    x, weight = drawn(*shape), drawn(outputs, shape[-1], seed=2)
    bias = drawn(outputs, seed=3) if with_bias else None
    layer = make(weight, bias)
    expected = quantized_linear_reference(x, weight, bias, cast(int, layer.levels))
    found = layer(x, relu=relu)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected.clamp(min=0) if relu else expected, atol=2e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_its_company(make: Make) -> None:
    x, layer = drawn(40, 48), make(drawn(100, 48, seed=2), drawn(100, seed=3))
    x[7] *= 1000
    for rows in (slice(0, 1), slice(3, 7), slice(9, 30)):
        assert torch.equal(layer(x[rows]), layer(x)[rows])


def test_rows_of_any_layout_will_do(make: Make) -> None:
    x, layer = drawn(2, 8, 40), make(drawn(9, 16, seed=2))
    for part in (x[:1, :4], x):
        own = part.split([16, 24], -1)[0]
        assert torch.equal(layer(own), layer(own.contiguous()))


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_does_not_come_out_as_a_number(strange: float, make: Make) -> None:
    x, layer = drawn(10, 16), make(drawn(9, 16, seed=2))
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


def test_zeros_alone_give_the_bias(make: Make) -> None:
    bias = drawn(9)
    for rows in (2, 5):
        assert torch.equal(make(drawn(9, 16), bias)(torch.zeros(rows, 16)), bias.expand(rows, 9))


def test_the_faster_of_the_two_is_chosen(make: Make) -> None:
    assert int8_layer() is make


def test_without_a_kernel_one_line_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("not implemented for this CPU")

    monkeypatch.setattr(QuantizedLinear, "_product", missing)
    monkeypatch.setattr(native, "has_fast_matmul", lambda: False)
    with pytest.raises(UserError, match=r"int8: .*--dtype float32"):
        int8_layer()


def test_the_result_has_the_format_of_the_rows(make: Make) -> None:
    x, layer = drawn(5, 48).bfloat16(), make(drawn(9, 48, seed=2), drawn(9, seed=3))
    found = layer(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer(x.float()), atol=1e-3, rtol=2**-8)
