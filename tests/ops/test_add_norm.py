"""The norm of a sum in one pass against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seq2seq.ops.add_norm import add_norm, add_norm_reference


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("shape", [(16,), (1, 16), (3, 4, 17), (70, 256)])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-2])
@torch.no_grad()
def test_it_is_layer_norm_of_the_sum(
    shape: tuple[int, ...], epsilon: float, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, *shape, generator=generator) + 0.5).to(dtype)
    norm = nn.LayerNorm(shape[-1], eps=epsilon)
    norm.weight.normal_(generator=generator)
    norm.bias.normal_(generator=generator)
    norm = norm.to(dtype)
    found = add_norm(x, y, norm)
    assert found.dtype == dtype
    expected = add_norm_reference(x.double(), y.double(), norm.double())
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


def test_gradients_go_through_the_plain_form() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    norm = nn.LayerNorm(8)
    add_norm(x, x.detach(), norm).square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@torch.no_grad()
def test_what_is_not_a_number_stays_so_in_its_row() -> None:
    x = torch.randn(3, 8)
    x[1, 2] = torch.nan
    assert add_norm(x, x, nn.LayerNorm(8)).isnan().any(1).tolist() == [False, True, False]
