"""The penalties against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from seq2seq.search.penalties import coverage_penalty, length_penalty


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
    assert float(length_penalty("gnmt", torch.tensor(float(length)), alpha)) == pytest.approx(expected, abs=1e-6)


def test_any_shape() -> None:
    lengths = torch.tensor([[1.0, 7.0]])
    for kind, expected in {"gnmt": [[1.0, 2.0]], "average": [[1.0, 7.0]], "none": [[1.0, 1.0]]}.items():
        torch.testing.assert_close(length_penalty(kind, lengths, 1.0), torch.tensor(expected))


def test_coverage_by_hand() -> None:
    # The first piece of the source got more than 1 in all, the second 0.5, the third 0.25: ln ½ + ln ¼.
    attention = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.25, 0.25]])
    assert coverage_penalty(attention, 0.2) == pytest.approx(0.2 * (-0.6931472 - 1.3862944), abs=1e-6)
    assert coverage_penalty(torch.tensor([[1.0, 0.0]]), 0.2) < -10, "no attention at all: finite, and very bad"
