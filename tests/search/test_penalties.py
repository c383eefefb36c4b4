"""The length penalty against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from seq2seq.search.penalties import gnmt


@pytest.mark.parametrize(
    ("length", "alpha", "expected"),
    [
        (1, 0.6, 1.0),  # (6/6)^α
        (7, 1.0, 2.0),  # 12/6
        (19, 0.5, 2.0),  # √(24/6)
        (10, 0.6, 1.7328621),  # 2.5^0.6
        (3, 2.0, 1.7777778),  # (8/6)²
        (50, 0.0, 1.0),
    ],
)
def test_by_hand(length: int, alpha: float, expected: float) -> None:
    assert float(gnmt(torch.tensor(float(length)), alpha)) == pytest.approx(expected, abs=1e-6)


def test_any_shape() -> None:
    torch.testing.assert_close(gnmt(torch.tensor([[1.0, 7.0]]), 1.0), torch.tensor([[1.0, 2.0]]))
