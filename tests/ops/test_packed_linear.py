"""Linear layers with packed weights against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from seq2seq.ops.filled_rows import EXACT
from seq2seq.ops.packed_linear import PackedLinear, supports_packing

pytestmark = pytest.mark.skipif(not supports_packing(torch.ones(8, 8)), reason="this PyTorch has no oneDNN")


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(1, 16), (5, 16), (2, 3, 48), (EXACT, 16), (EXACT + 1, 16), (30, 3, 48)])
@pytest.mark.parametrize("outputs", [1, 9, 64])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_it_is_the_linear_layer(
    shape: tuple[int, ...], outputs: int, with_bias: bool, relu: bool, dtype: torch.dtype, tolerance: float
) -> None:
    x, weight = drawn(*shape).to(dtype), drawn(outputs, shape[-1], seed=2).to(dtype)
    bias = drawn(outputs, seed=3).to(dtype) if with_bias else None
    found = PackedLinear(weight, bias)(x, relu=relu)
    assert found.dtype == dtype
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    expected = expected.clamp(min=0) if relu else expected
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


def test_rows_of_any_layout_will_do() -> None:
    x, weight = drawn(16, 40).T, drawn(9, 16, seed=2)
    torch.testing.assert_close(PackedLinear(weight)(x), x @ weight.T, atol=1e-5, rtol=0)


def test_what_cannot_be_packed_is_known_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not supports_packing(torch.ones(8, 8, dtype=torch.float64))
    assert not supports_packing(torch.ones(8, 8, device="meta"))

    def missing(*_: object) -> None:
        raise RuntimeError("built without oneDNN")

    monkeypatch.setattr(PackedLinear, "forward", missing)
    assert not supports_packing(torch.ones(8, 8))
