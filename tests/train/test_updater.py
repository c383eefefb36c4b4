"""The gradients of an update: of its parts together, per target token, with random numbers of their own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from seq2seq.data.batches import Batch, MicroBatch, micro_batches
from seq2seq.model.translation import TranslationModel
from seq2seq.train.loss import batch_loss
from seq2seq.train.trainer import Trainer
from tests.train.runs import Make, log, tensors


def collect_gradients(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Train with updates that change nothing; the gradients of each."""
    found: list[dict[str, Tensor]] = []

    def step() -> None:
        weights = trainer.model.named_parameters()
        found.append({name: weight.grad.clone() for name, weight in weights if weight.grad is not None})

    monkeypatch.setattr(trainer.updater.optimizer, "step", step)
    monkeypatch.setattr(trainer, "_save", lambda: None)
    trainer.run()
    return found


def test_muon_multiplies_in_the_format_of_the_passes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    formats: list[torch.dtype] = []

    def same(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        formats.append(dtype)
        return matrices

    monkeypatch.setattr("seq2seq.train.optimizer.polar_factor", same)
    make("run", "optimizer=muon", "trainer.precision=bfloat16", "trainer.max_steps=1").run()
    assert set(formats) == {torch.bfloat16}


def test_micro_batches_add_up_to_the_batch(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["model.dropout=0", "trainer.max_steps=3", "trainer.log_seconds=0"]
    whole = collect_gradients(make("1", *overrides), monkeypatch)
    parts = collect_gradients(make("3", *overrides, "data.micro_batches=3"), monkeypatch)
    assert len(whole) == len(parts) == 3
    for one, three in zip(whole, parts, strict=True):
        assert one.keys() == three.keys()
        for name, gradient in one.items():
            torch.testing.assert_close(three[name], gradient, atol=1e-5, rtol=0)
    assert max(float(gradient.abs().max()) for gradient in whole[0].values()) > 1e-2
    for one_line, three_line in zip(log(tmp_path / "1", "train"), log(tmp_path / "3", "train"), strict=True):
        assert three_line["loss"] == pytest.approx(one_line["loss"], abs=1e-5)


def test_the_gradient_is_that_of_the_mean_over_target_tokens(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make("run", "model.dropout=0", "trainer.max_steps=1")
    (found,) = collect_gradients(trainer, monkeypatch)
    trainer.updater.optimizer.zero_grad()
    batch = Batch.of(trainer.data.train, trainer.sampler.epoch(0)[0])
    (batch_loss(trainer.model, batch, 0.1)[0] / len(batch.target_out)).backward()
    for name, weight in trainer.model.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(found[name], weight.grad, atol=1e-6, rtol=0)


def test_every_micro_batch_has_random_numbers_of_its_own(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make("run", "trainer.max_steps=4", "data.micro_batches=3")
    states: list[bytes] = []

    def spy(model: TranslationModel, batch: Batch, smoothing: float) -> tuple[Tensor, Tensor]:
        if model.training:
            states.append(torch.get_rng_state().numpy().tobytes())
        return batch_loss(model, batch, smoothing)

    monkeypatch.setattr("seq2seq.train.loss.batch_loss", spy)
    trainer.run()
    assert len(states) == len({*states}) == 4 * 3


def test_clipping_limits_the_norm_of_the_whole_gradient(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    free = collect_gradients(make("free", "trainer.max_steps=1"), monkeypatch)[0]
    clipped = collect_gradients(make("clipped", "trainer.max_steps=1", "optimizer.clip_norm=0.5"), monkeypatch)[0]
    norms = [math.sqrt(sum(float(one.square().sum()) for one in side.values())) for side in (free, clipped)]
    assert norms[0] > 0.6
    assert norms[1] == pytest.approx(0.5, rel=1e-4)


def test_bfloat16_trains_weights_in_float32_to_about_the_same_loss(make: Make, tmp_path: Path) -> None:
    overrides = ["trainer.max_steps=4", "trainer.log_seconds=0"]
    make("float32", *overrides).run()
    make("bfloat16", *overrides, "trainer.precision=bfloat16").run()
    exact, rounded = ([line["loss"] for line in log(tmp_path / name, "train")] for name in ("float32", "bfloat16"))
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact
    assert {tensor.dtype for tensor in tensors(tmp_path / "bfloat16", 4).values()} == {torch.float32}


def test_a_part_without_weight_changes_nothing(make: Make) -> None:
    updater, data = (trainer := make("run", "model.dropout=0")).updater, trainer.data.train
    (part,) = micro_batches(data, trainer.sampler.epoch(0)[0], 1)
    found = []
    for parts in ([part], [part, MicroBatch(1, part.batch, 0.0)]):
        sums = updater.gradients(parts, len(part.batch.target_out), 1)
        found.append([*sums, *(cast(Tensor, weight.grad) for weight in updater.model.parameters())])
        updater.optimizer.zero_grad(set_to_none=True)
    for alone, both in zip(*found, strict=True):
        assert torch.equal(alone, both)


def test_another_seed_draws_other_dropout(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[bytes] = []

    def spy(*given: Any) -> Any:
        states.append(torch.get_rng_state().numpy().tobytes())
        return batch_loss(*given)

    monkeypatch.setattr("seq2seq.train.loss.batch_loss", spy)
    for seed in (1, 2):
        trainer = make("run", f"seed={seed}")
        trainer.updater.gradients(list(micro_batches(trainer.data.train, np.arange(9), 2)), 9, 1)
    assert len({*states}) == 4
