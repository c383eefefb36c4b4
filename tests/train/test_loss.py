"""The loss of a batch against log-probabilities looked up one by one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from seq2seq.config.schema import ModelConfig, RecurrentConfig, TransformerConfig
from seq2seq.data.batches import Batch
from seq2seq.model.translation import DECODERS, ENCODERS, TranslationModel, build_model
from seq2seq.ops.packing import Layout
from seq2seq.train.loss import batch_loss

VOCABULARY, BOS, EOS = 13, 2, 3
TARGETS = [[5, 6, EOS], [EOS], [7, 8, 9, 10, EOS]]

BATCH = Batch(
    torch.tensor([4, 5, EOS, 6, EOS, 7, EOS]),
    Layout.of([3, 2, 2]),
    torch.tensor([BOS, 5, 6, BOS, BOS, 7, 8, 9, 10]),
    torch.tensor([5, 6, EOS, EOS, 7, 8, 9, 10, EOS]),
    Layout.of([3, 1, 5]),
)


def model_of(encoder: str = "transformer", decoder: str = "transformer", tie: str = "all") -> TranslationModel:
    kinds = {"transformer": TransformerConfig(num_layers=1, num_heads=2, d_ff=16), "recurrent": RecurrentConfig()}
    config = ModelConfig(d_model=8, tie_embeddings=tie, encoder=kinds[encoder], decoder=kinds[decoder])
    return build_model(config, VOCABULARY, 1).eval()


@pytest.mark.parametrize("tie", ["all", "none"])
@pytest.mark.parametrize(("encoder", "decoder"), [*itertools.product(ENCODERS, DECODERS)])
def test_sums_over_all_target_tokens(encoder: str, decoder: str, tie: str) -> None:
    model = model_of(encoder, decoder, tie)
    loss, plain = batch_loss(model, BATCH, 0.1)
    scores = F.linear(model(BATCH), model.output_weight).log_softmax(-1)
    predicted = [token for target in TARGETS for token in target]
    expected_plain = -sum(float(scores[row, token].detach()) for row, token in enumerate(predicted))
    uniform = -float(scores.detach().mean(1).sum())
    assert float(plain) == pytest.approx(expected_plain, rel=1e-5)
    assert float(loss.detach()) == pytest.approx(0.9 * expected_plain + 0.1 * uniform, rel=1e-5)


@pytest.mark.parametrize(("encoder", "decoder"), [*itertools.product(ENCODERS, DECODERS)])
def test_filler_changes_neither_loss_nor_gradients(encoder: str, decoder: str) -> None:
    model = model_of(encoder, decoder)
    source, target = (
        Layout(layout.lengths, layout.max_length, layout.total + filler, filler)
        for layout, filler in ((BATCH.source_layout, 3), (BATCH.target_layout, 2))
    )
    tokens = F.pad(BATCH.source, (0, 3), value=6), F.pad(BATCH.target_in, (0, 2), value=9)
    filled = Batch(tokens[0], source, tokens[1], F.pad(BATCH.target_out, (0, 2), value=-1), target)
    losses = [batch_loss(model, batch, 0.1) for batch in (BATCH, filled)]
    torch.testing.assert_close(losses[1], losses[0])
    gradients = [torch.autograd.grad(loss, [*model.parameters()]) for loss, _ in losses]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("encoder", "decoder"), [*itertools.product(ENCODERS, DECODERS)])
def test_bfloat16_autocast_gives_float32_gradients_near_the_exact_ones(encoder: str, decoder: str) -> None:
    model = model_of(encoder, decoder)
    weights = list(model.parameters())
    exact_loss, _ = batch_loss(model, BATCH, 0.1)
    exact = torch.autograd.grad(exact_loss, weights)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = batch_loss(model, BATCH, 0.1)
    rounded = torch.autograd.grad(loss, weights)
    assert float(loss.detach()) == pytest.approx(float(exact_loss.detach()), rel=0.02)
    assert {gradient.dtype for gradient in rounded} == {torch.float32}
    error = sum(float((one - other).square().sum()) for one, other in zip(rounded, exact, strict=True))
    assert error < 0.05**2 * sum(float(other.square().sum()) for other in exact)
