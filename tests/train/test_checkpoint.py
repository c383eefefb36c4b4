"""Checkpoints: everything comes back bit by bit, old ones go, and another configuration is refused by key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from seq2seq.config.compose import compose
from seq2seq.config.schema import Config, OptimizerConfig
from seq2seq.support.errors import UserError
from seq2seq.support.files import remove_leftovers
from seq2seq.train import checkpoint as module
from seq2seq.train.checkpoint import Checkpoints, Progress
from seq2seq.train.optimizer import build_optimizer

Training = tuple[nn.Module, torch.optim.Optimizer]


def config_of(*overrides: str) -> Config:
    return compose(["+recipe=files", "data.train.source=some.tsv", *overrides])


def training(seed: int) -> Training:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 1))
    return model, build_optimizer(model, OptimizerConfig())


def advance(trained: Training, steps: int) -> None:
    model, optimizer = trained
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        model(torch.full((3, 4), float(step))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_equal(one: Training, other: Training) -> None:
    for own, same in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(own, same)
        have, need = one[1].state[own], other[1].state[same]
        assert have.keys() == need.keys() >= {"step", "exp_avg", "exp_avg_sq"}
        for key, value in need.items():
            assert torch.equal(have[key], value), key
            assert have[key].dtype == value.dtype


def save(run_dir: Path, trained: Training, step: int, keep: int = 5, config: Config | None = None) -> None:
    config = config or config_of()
    config.trainer.keep_checkpoints = keep
    Checkpoints(run_dir).save(*trained, Progress(step=step), config)


def names(run_dir: Path) -> list[str]:
    return [path.name for path in Checkpoints(run_dir).all()]


def test_weights_and_optimizer_come_back_bit_by_bit(tmp_path: Path) -> None:
    saved, fresh = training(1), training(2)
    advance(saved, 3)
    progress = Progress(step=30, epoch=2, update=7, seconds=12.25, best_bleu=3.5, validations_since_best=1)
    Checkpoints(tmp_path).save(*saved, progress, config_of())
    assert Checkpoints(tmp_path).resume(*fresh, config_of()) == progress
    assert_equal(fresh, saved)
    for trained in (saved, fresh):
        advance(trained, 2)
    assert_equal(fresh, saved)


def test_without_a_checkpoint_nothing_is_touched(tmp_path: Path) -> None:
    fresh, same = training(2), training(2)
    assert Checkpoints(tmp_path).resume(*fresh, config_of()) is None
    assert_equal_weights(fresh, same)


def assert_equal_weights(one: Training, other: Training) -> None:
    for own, same in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(own, same)


def test_the_newest_is_taken_by_number(tmp_path: Path) -> None:
    trained = training(1)
    for step in (8, 9, 10):
        advance(trained, 1)
        save(tmp_path, trained, step)
    assert names(tmp_path) == ["step-8", "step-9", "step-10"]
    fresh = training(2)
    found = Checkpoints(tmp_path).resume(*fresh, config_of())
    assert found is not None
    assert found.step == 10
    assert_equal(fresh, trained)


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    trained = training(1)
    advance(trained, 1)
    for step in (5, 90, 100, 110):
        save(tmp_path, trained, step, keep=2)
    assert names(tmp_path) == ["step-100", "step-110"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-100", "step-110"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=7", "seed was 1, is 7"),
        ("model.decoder.num_layers=2", "model.decoder.num_layers was 3, is 2"),
        ("data.train.source=other.tsv", "data.train.source was some.tsv, is other.tsv"),
        ("data.micro_batches=2", "data.micro_batches was None, is 2"),
        ("schedule.peak=0.5", "schedule.peak was None, is 0.5"),
        ("trainer.label_smoothing=0", "trainer.label_smoothing was 0.1, is 0.0"),
    ],
)
def test_a_changed_key_is_refused_by_name(tmp_path: Path, override: str, message: str) -> None:
    trained = training(1)
    advance(trained, 1)
    save(tmp_path, trained, 10)
    fresh, same = training(2), training(2)
    with pytest.raises(UserError) as refused:
        Checkpoints(tmp_path).resume(*fresh, config_of(override))
    assert message in str(refused.value)
    assert "run_dir=" in str(refused.value)
    assert_equal_weights(fresh, same)


def test_all_changed_keys_are_named(tmp_path: Path) -> None:
    trained = training(1)
    advance(trained, 1)
    save(tmp_path, trained, 10)
    with pytest.raises(UserError, match=r"model\.d_model was 256, is 128.*seed was 1, is 2"):
        Checkpoints(tmp_path).resume(*training(2), config_of("seed=2", "model.d_model=128"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.max_steps=77"],
        ["trainer.max_minutes=3", "trainer.save_every=5", "data.workers=1"],
        ["data.train.sha256=" + "1f" * 32],
    ],
)
def test_what_only_says_how_far_to_go_may_change(tmp_path: Path, overrides: Sequence[str]) -> None:
    trained = training(1)
    advance(trained, 1)
    save(tmp_path, trained, 10)
    fresh = training(2)
    assert Checkpoints(tmp_path).resume(*fresh, config_of(*overrides)) is not None
    assert_equal(fresh, trained)


def test_leftovers_of_killed_saves_are_ignored_and_removed(tmp_path: Path) -> None:
    trained = training(1)
    advance(trained, 1)
    save(tmp_path, trained, 10)
    folder = tmp_path / "checkpoints"
    for name in (".step-20.a1b2.partial", ".step-10.c3d4.replaced"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"half")
    assert names(tmp_path) == ["step-10"]
    found = Checkpoints(tmp_path).resume(*training(2), config_of())
    assert found is not None
    assert found.step == 10
    remove_leftovers(folder)
    assert [path.name for path in folder.iterdir()] == ["step-10"]


def test_a_save_that_fails_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = training(1)
    advance(trained, 1)
    save(tmp_path, trained, 10)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, trained, 20, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-10"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    trained = training(1)
    advance(trained, 1)
    save(tmp_path, trained, 10)
    path = tmp_path / "checkpoints" / "step-10" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=name):
        Checkpoints(tmp_path).resume(*training(2), config_of())
