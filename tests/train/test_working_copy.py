"""Passes of a working copy: the gradients of autocast, for the model's own weights."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from torch import Tensor

from seq2seq.config.schema import Config, ModelConfig, TrainerConfig, TransformerConfig
from seq2seq.data.batches import Batch, MicroBatch
from seq2seq.model.translation import TranslationModel, build_model
from seq2seq.ops.packing import Layout
from seq2seq.train import updater as updater_module
from seq2seq.train.distributed import World
from seq2seq.train.loss import batch_loss
from seq2seq.train.recorded import RecordedPasses
from seq2seq.train.updater import Updater
from seq2seq.train.working_copy import working_copy

LAYERS = TransformerConfig(num_layers=1, num_heads=2, d_ff=32, dropout=0.0)
MODEL = ModelConfig(d_model=32, dropout=0.0, encoder=LAYERS, decoder=LAYERS)
MATRICES = re.compile("query|key_value|attention.output|inner|outer")


def batch_of(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    source, target = (torch.randint(4, 150, (12,), generator=generator) for _ in range(2))
    return Batch(source, Layout.of([5, 7]), target.roll(1), target, Layout.of([9, 3]))


def loss_by(model: TranslationModel, batch: Batch) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        loss, nll = batch_loss(model, batch, 0.1)
    return loss, torch.stack((loss.detach(), nll))


@pytest.mark.parametrize("tie", ["all", "target", "none"])
def test_matrices_are_copies_and_the_rest_is_shared(tie: str) -> None:
    model = build_model(ModelConfig(d_model=32, tie_embeddings=tie, encoder=LAYERS, decoder=LAYERS), 150, 1)
    working = working_copy(model, torch.bfloat16)
    assert [name for name, _ in working.named_parameters()] == [name for name, _ in model.named_parameters()]
    for (name, copy), own in zip(working.named_parameters(), model.parameters(), strict=True):
        assert (copy is not own) == bool(MATRICES.search(name)), name
        assert copy.dtype is (torch.float32 if copy is own else torch.bfloat16)
    assert working.output_weight is model.output_weight


def test_gradients_are_those_of_autocast_also_when_weights_change_or_are_frozen() -> None:
    model = build_model(MODEL, 150, 1)
    frozen = [weight for name, weight in model.named_parameters() if re.search("key_value.bias|inner.weight", name)]
    for weight in frozen:
        weight.requires_grad_(False)
    working = working_copy(model, torch.bfloat16)
    for changes in range(2):
        found = []
        for computing in (model, working):
            passes = RecordedPasses(partial(loss_by, computing), model, torch.device("cpu"), computing)
            figures = [passes(batch_of(seed), 0.5, adds=seed > 1).clone() for seed in (1, 2)]
            gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
            found.append((figures, [gradient.clone() for gradient in gradients]))
        assert len(found[0][1]) == len(list(model.parameters())) - len(frozen)
        torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-3)
        for own, expected in zip(found[1][1], found[0][1], strict=True):
            assert own.dtype is torch.float32
            assert float((own - expected).norm()) <= 1e-2 * float(expected.norm()), changes
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)


def test_updates_by_a_working_copy_are_those_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updater_module, "compile_regions", lambda _: None)
    monkeypatch.setattr(updater_module, "choose_compiling", lambda *_: True)
    found, began = [], []
    for records in (False, True):
        monkeypatch.setattr(TranslationModel, "can_be_recorded", lambda *_, records=records: records)
        model = build_model(MODEL, 150, 1)
        began = [weight.detach().clone() for weight in model.parameters()]
        updater = Updater(model, Config(model=MODEL, trainer=TrainerConfig(precision="bfloat16")), World())
        updater.start()
        for step in range(1, 5):
            parts = [MicroBatch(0, batch_of(step), 1.0), MicroBatch(1, batch_of(10 * step), 1.0)]
            updater.gradients(parts, 24, step)
            updater.apply(1e-3, step)
        found.append([weight.detach() for weight in model.parameters()])
    for own, expected, before in zip(found[1], found[0], began, strict=True):
        # Adam takes whole steps by gradients that are nothing but rounding errors, too, as those of keys' biases.
        same = (own - expected).abs() <= 0.1 * (expected - before).abs() + 1e-4
        assert float(same.float().mean()) >= 0.9
        assert own.dtype is torch.float32
