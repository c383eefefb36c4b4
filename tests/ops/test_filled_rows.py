"""Rows filled up to numbers for which there is code."""

from __future__ import annotations

import pytest
import torch

from seq2seq.ops.filled_rows import EXACT, filled_up, whole_steps


def test_few_numbers_of_rows_are_ever_computed_and_little_in_vain() -> None:
    assert [whole_steps(rows) for rows in (1, EXACT, EXACT + 1, 64, 65, 128, 129, 160, 161, 1025)] == [
        *(1, EXACT, 2 * EXACT, 64, 80, 128, 160, 160, 192, 1280)
    ]
    found = [whole_steps(rows) for rows in range(EXACT + 1, 8193)]
    assert len(set(found)) <= 32
    assert all(rows <= whole <= max(1.25 * rows, rows + EXACT) for rows, whole in enumerate(found, EXACT + 1))


@pytest.mark.parametrize(
    "x", [torch.randn(20, 6), torch.randn(40, 6)[20:], torch.randn(64, 12)[:20, :6], torch.randn(6, 20).T]
)
def test_what_fills_up_stands_behind_them(x: torch.Tensor) -> None:
    filled = filled_up(x, 32)
    assert filled.shape == (32, 6)
    assert torch.equal(filled[:20], x)


def test_as_many_rows_as_wanted_are_themselves() -> None:
    x = torch.randn(32, 6)
    assert filled_up(x, 32) is x
