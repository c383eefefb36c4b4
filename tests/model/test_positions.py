"""Sinusoids against the paper's formula, entry by entry, and the table that grows."""

from __future__ import annotations

import math
import weakref

import pytest
import torch

from seq2seq.config.schema import TransformerConfig
from seq2seq.model.embedding import Embedding
from seq2seq.model.positions import LearnedPositions, PositionedEmbedding, SinusoidalPositions, sinusoids
from seq2seq.support.errors import UserError


def test_entries_by_hand() -> None:
    # d_model 8: the rates 10000^(-2i/8) are 1, 1/10, 1/100 and 1/1000.
    table = sinusoids(51, 8)
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    by_hand = {
        (1, 0): 0.8414710,  # sin 1
        (1, 1): 0.5403023,  # cos 1
        (3, 2): 0.2955202,  # sin 0.3
        (3, 3): 0.9553365,  # cos 0.3
        (50, 4): 0.4794255,  # sin 0.5
        (50, 5): 0.8775826,  # cos 0.5
        (50, 6): 0.0499792,  # sin 0.05
        (50, 7): 0.9987503,  # cos 0.05
    }
    for (position, column), value in by_hand.items():
        assert float(table[position, column]) == pytest.approx(value, abs=1e-6), (position, column)


def test_all_entries_are_the_formula() -> None:
    table = sinusoids(300, 512)
    for position in (0, 1, 7, 299):
        for i in (0, 1, 100, 255):
            angle = position / 10000 ** (2 * i / 512)
            assert float(table[position, 2 * i]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[position, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=1e-6)


def test_far_positions_stay_exact() -> None:
    # In float32 an angle of 90,000 would be off by 0.004.
    table = sinusoids(90_001, 4)
    assert float(table[90_000, 0]) == pytest.approx(math.sin(90_000), abs=1e-6)


def test_the_table_grows_and_keeps_what_it_had() -> None:
    module = SinusoidalPositions(8)
    before = module(512)
    after = module(2 * len(before))
    assert len(after) >= 2 * len(before) >= 1024
    assert torch.equal(after[: len(before)], before)
    assert torch.equal(after[len(before)], sinusoids(2000, 8)[len(before)])


def test_the_table_is_neither_learnt_nor_stored() -> None:
    module = SinusoidalPositions(8)
    module(1)
    assert not module.state_dict()
    assert not list(module.parameters())


def test_the_table_has_the_modules_format() -> None:
    module = SinusoidalPositions(8).to(torch.bfloat16)
    assert module(2).dtype == torch.bfloat16


def test_input_is_the_scaled_embedding_and_its_position() -> None:
    embedding = Embedding(11, 8)
    module = PositionedEmbedding(embedding, TransformerConfig(dropout=0.5)).eval()
    tokens, positions = torch.tensor([4, 9, 4]), torch.tensor([0, 1, 2])
    expected = embedding.weight[tokens] * math.sqrt(8) + sinusoids(3, 8)
    torch.testing.assert_close(module(tokens, positions, 3), expected)
    dropped = module.train()(tokens.repeat(100), positions.repeat(100), 3)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.5, abs=0.07)


def test_learned_positions_are_rows_of_a_table_that_is_trained() -> None:
    config = TransformerConfig(dropout=0.0, positions="learned", max_positions=16)
    module = PositionedEmbedding(Embedding(11, 8), config)
    table = dict(module.named_parameters())["positions.weight"]
    assert table.shape == (16, 8)
    tokens, positions = torch.tensor([4, 9, 4]), torch.tensor([0, 1, 0])
    out = module(tokens, positions, 2)
    torch.testing.assert_close(out, module.embedding.weight[tokens] * math.sqrt(8) + table[positions])
    torch.testing.assert_close(module(tokens[:1], torch.tensor(15), 16), module.embedding(tokens[:1]) + table[15])
    (gradient,) = torch.autograd.grad(out.sum(), table)
    assert gradient[:, 0].tolist() == [2, 1] + [0] * 14, "each position gets the gradients of its rows"


def test_learned_positions_start_at_the_scale_of_embeddings() -> None:
    torch.manual_seed(1)
    assert float(LearnedPositions(64, 1024).weight.detach().std()) == pytest.approx(1 / 8, rel=0.02)


def test_a_sequence_longer_than_the_table_is_refused() -> None:
    with pytest.raises(UserError, match=r"^a sequence of 17 .*max_positions=16; set data.*max_pieces=15, or cut"):
        LearnedPositions(8, 16)(17)


def test_a_table_that_was_outgrown_stays_where_it_is() -> None:
    module = SinusoidalPositions(8)
    module(10)
    table = weakref.ref(module.table)
    module(2000)
    assert module.table is not table() and table() is not None, "a CUDA graph may still read it"
