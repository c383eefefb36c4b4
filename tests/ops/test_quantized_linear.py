"""Linear layers in int8 against the same roundings in float64, and against the layer that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seq2seq.ops.quantized_linear import QuantizedLinear, quantize, quantize_linears, quantized_linear_reference
from seq2seq.support.errors import UserError


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 16), (5, 16), (2, 3, 48), (70, 48)])
@pytest.mark.parametrize("outputs", [1, 9, 64])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_sums_are_exact(shape: tuple[int, ...], outputs: int, with_bias: bool) -> None:
    x, weight = drawn(*shape), drawn(outputs, shape[-1], seed=2)
    bias = drawn(outputs, seed=3) if with_bias else None
    layer = QuantizedLinear(weight, bias)
    expected = quantized_linear_reference(x, layer.weight, layer.scale[:, None], bias)
    found = layer(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_row_does_not_see_its_neighbours() -> None:
    layer = QuantizedLinear(drawn(32, 48), drawn(32))
    rows = drawn(40, 48, seed=2) * torch.logspace(-3, 3, 40)[:, None]
    together = layer(rows)
    for count in (1, 2, 17):
        assert torch.equal(layer(rows[:count]), together[:count])


def test_rounding_is_to_the_nearest_of_255_levels_and_zeros_stay() -> None:
    x = drawn(6, 100)
    x[3] = 0.0
    rows, scale = quantize(x)
    assert rows.dtype == torch.int8
    assert (rows.abs().amax(-1) == torch.tensor([127, 127, 127, 0, 127, 127])).all()
    assert ((rows * scale - x).abs() <= scale / 2 + 1e-6).all()


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

    monkeypatch.setattr(torch, "_int_mm", missing)
    with pytest.raises(UserError, match=r"int8: .*--dtype float32"):
        quantize_linears(nn.Sequential(nn.Linear(8, 8)))
