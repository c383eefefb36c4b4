"""The model on a GPU against the same model on the processor."""

from __future__ import annotations

import pytest
import torch

from seq2seq.config.schema import ModelConfig, SearchConfig, TransformerConfig
from seq2seq.data.batches import Batch
from seq2seq.model.translation import build_model
from seq2seq.ops.packing import Layout
from seq2seq.search.beam import BeamSearch
from seq2seq.train.loss import batch_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the same is tested on the processor"),
]
LAYERS = TransformerConfig(num_layers=2, num_heads=4, d_ff=128, dropout=0.0)
MODEL = ModelConfig(d_model=64, dropout=0.0, encoder=LAYERS, decoder=LAYERS)
CUDA = torch.device("cuda")


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    source, target = Layout.of([5, 9, 7]), Layout.of([6, 4, 8])
    tokens = torch.randint(4, 100, (source.total + target.total,), generator=generator)
    return Batch(tokens[: source.total], source, tokens[source.total :], tokens[source.total :].roll(1), target)


def test_loss_and_gradients_are_those_of_the_processor() -> None:
    here, there = build_model(MODEL, 100, 1), build_model(MODEL, 100, 1).to(CUDA)
    for model, data in ((here, batch()), (there, batch().to(CUDA))):
        batch_loss(model, data, 0.1)[0].backward()
    for name, parameter in here.named_parameters():
        other = there.get_parameter(name).grad
        assert parameter.grad is not None and other is not None
        torch.testing.assert_close(other.cpu(), parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_search_finds_the_same() -> None:
    search = BeamSearch(SearchConfig(max_length_offset=10), 2, 3, [0, 1, 2])
    data = batch()
    here = search(build_model(MODEL, 100, 1).eval(), data.source, data.source_layout)
    there = search(build_model(MODEL, 100, 1).eval().to(CUDA), data.source.to(CUDA), data.source_layout.to(CUDA))
    assert [found[0].tokens for found in there] == [found[0].tokens for found in here]
