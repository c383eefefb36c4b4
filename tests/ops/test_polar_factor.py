"""The matrix nearest to a matrix with singular values of 1: Newton–Schulz iterations against their plain reference."""

from __future__ import annotations

import pytest
import torch

from seq2seq.ops.polar_factor import polar_factor, polar_factor_reference


def matrices(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 20), (2, 20, 5), (1, 1, 7), (1, 1, 1)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = 1e3 * matrices(*shape)
    found = polar_factor(given, dtype)
    assert found.dtype is torch.float32 and found.shape == given.shape
    left, values, right = torch.linalg.svd(found, full_matrices=False)
    # Of square random matrices the smallest value may be anything.
    tall = shape[1] != shape[2] or shape[1] == 1
    assert values.max() < 1.3 and values.flatten().median() > 0.6
    assert not tall or values.min() > 0.6
    tolerance = 1e-4 if dtype is torch.float32 else 0.05
    if tall:
        torch.testing.assert_close(left @ right, polar_factor_reference(given), atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_values_come_near_one_too(dtype: torch.dtype) -> None:
    values = torch.logspace(0, -4, 60)
    left, right = (torch.linalg.qr(matrices(60, 60 + more))[0] for more in (0, 1))
    given = left @ values.diag() @ right.T
    found = left.T @ polar_factor(given[None], dtype)[0] @ right
    share = values / given.norm()
    tolerance = 0.01 if dtype is torch.float32 else 0.15
    for value, end in zip(share.tolist(), found.diag().tolist(), strict=True):
        assert end < 1.2 + tolerance and (value < 0.003 or end > 0.77 - tolerance)
    assert found.diag().sort(descending=True).values[-1] < 0.3, "the smallest are left"


def test_each_matrix_is_computed_by_itself() -> None:
    given = matrices(4, 6, 9)
    alone = torch.cat([polar_factor(one[None], torch.float32) for one in given])
    torch.testing.assert_close(polar_factor(given, torch.float32), alone, atol=1e-6, rtol=0)
    # The same, turned.
    torch.testing.assert_close(polar_factor(given.mT, torch.float32), alone.mT, atol=1e-6, rtol=0)


def test_of_nothing_comes_nothing() -> None:
    assert not polar_factor(torch.zeros(2, 3, 4), torch.bfloat16).any()
    assert polar_factor(torch.full((1, 2, 2), 1e-30), torch.float32).isfinite().all()
