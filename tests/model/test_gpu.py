"""The model on a GPU against the same model on the processor."""

from __future__ import annotations

import random

import pytest
import torch

from seq2seq.config.schema import ModelConfig, TransformerConfig
from seq2seq.config.search import SearchConfig
from seq2seq.data.batches import Batch
from seq2seq.model.translation import build_model
from seq2seq.ops.compiled import compile_regions
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


def test_compiled_layers_compute_what_plain_ones_do_and_are_made_once(capsys: pytest.CaptureFixture[str]) -> None:
    plain, compiled = (build_model(MODEL, 100, 1).to(CUDA).train() for _ in range(2))
    compile_regions(compiled)
    rng = random.Random(1)
    graphs = []
    for _ in range(20):
        layouts = [Layout.of([rng.randint(1, 60) for _ in range(50)]) for _ in range(2)]
        source, target = (torch.randint(4, 100, (layout.total,)) for layout in layouts)
        data = Batch(source, layouts[0], target, target.roll(1), layouts[1]).to(CUDA)
        for model in (plain, compiled):
            model.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = batch_loss(model, data, 0.1)[0]
            loss.backward()
        own, expected = (
            torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
            for model in (compiled, plain)
        )
        assert (own - expected).norm() <= 0.05 * expected.norm()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs[-1] == graphs[1]
    assert "uncompiled" not in capsys.readouterr().err


def test_search_finds_the_same() -> None:
    search = BeamSearch(SearchConfig(max_length_offset=10), 2, 3, [0, 1, 2])
    data = batch()
    here = search(build_model(MODEL, 100, 1).eval(), data.source, data.source_layout)
    there = search(build_model(MODEL, 100, 1).eval().to(CUDA), data.source.to(CUDA), data.source_layout.to(CUDA))
    assert [found[0].tokens for found in there] == [found[0].tokens for found in here]
