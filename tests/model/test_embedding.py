"""Embeddings: their scale when drawn and when looked up."""

from __future__ import annotations

import pytest
import torch

from seq2seq.model.embedding import Embedding


def test_rows_are_scaled_by_the_root_of_the_width() -> None:
    embedding = Embedding(10, 16)
    tokens = torch.tensor([[3, 1], [3, 9]])
    assert torch.equal(embedding(tokens), 4 * embedding.weight[tokens])


@pytest.mark.parametrize("width", [64, 256])
def test_rows_are_drawn_with_variance_one_over_the_width(width: int) -> None:
    torch.manual_seed(2)
    weight = Embedding(1000, width).weight.detach()
    assert weight.shape == (1000, width)
    assert float(weight.std()) == pytest.approx(width**-0.5, rel=0.02)
    assert float(weight.mean()) == pytest.approx(0, abs=5 * width**-0.5 / weight.numel() ** 0.5)
