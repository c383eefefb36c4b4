"""What a training says and does when its gradients are not finite or its loss rises."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seq2seq.config.compose import compose
from seq2seq.data.batches import MicroBatch
from seq2seq.data.prepare import prepare
from seq2seq.support.errors import RunError
from seq2seq.train import health
from seq2seq.train.report import Report
from seq2seq.train.trainer import Trainer
from seq2seq.train.update import Pending, Update
from tests.train.runs import TINY, Make, assert_same_state, draw, log, manifest, steps_saved, tensors, write_copies


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_copies(tmp_path_factory.mktemp("corpus"), draw(300, 1), draw(10, 2))


def trainer_in(run_dir: Path, corpus: list[str], *overrides: str) -> Trainer:
    config = compose([*corpus, *TINY, f"run_dir={run_dir}", *overrides])
    return Trainer(config, prepare(config))


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_last_checkpoint(
    tmp_path: Path, corpus: list[str]
) -> None:
    # After a first step as large as this, the products of the second overflow.
    overrides = ["schedule.peak=1e30", "schedule.warmup_steps=1", "trainer.save_every=1", "trainer.max_skipped=1"]
    for _ in range(2):  # going on changes nothing
        trainer = trainer_in(tmp_path / "run", corpus, *overrides)
        with pytest.raises(RunError, match=r"step 2: the loss is (nan|inf)"):
            trainer.run()
        assert steps_saved(tmp_path / "run") == [1]
        saved = tensors(tmp_path / "run", 1)
        for name, parameter in trainer.model.named_parameters():
            assert torch.equal(parameter, saved[f"model/{name}"]), "the weights were updated"


def breaking(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the gradients of these steps infinite."""
    gradients = trainer.updater.gradients

    def broken(parts: list[MicroBatch], target_tokens: int, step: int) -> Tensor:
        sums = gradients(parts, target_tokens, step)
        if trainer.progress.step in steps:
            next(iter(trainer.model.parameters())).grad.view(-1)[3] = math.inf  # type: ignore[union-attr]
        return sums

    monkeypatch.setattr(trainer.updater, "gradients", broken)


def test_an_update_that_is_not_finite_changes_nothing_and_the_run_goes_on(
    tmp_path: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_in(
        tmp_path / "run", corpus, "trainer.max_steps=7", "trainer.save_every=1", "trainer.keep_checkpoints=10"
    )
    breaking(trainer, monkeypatch, {2, 3, 5})
    trainer.run()
    states = [tensors(tmp_path / "run", step) for step in range(1, 8)]
    same = [all(torch.equal(old[name], new[name]) for name in old) for old, new in itertools.pairwise(states)]
    assert same == [True, True, False, True, False, False]
    pattern = r"step (\d): .* gradient inf; the weights were not updated .*; going on \((\d) in a row"
    assert re.findall(pattern, capsys.readouterr().err) == [("2", "1"), ("3", "2"), ("5", "1")]


def test_too_many_of_them_in_a_row_end_the_run(
    tmp_path: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_in(tmp_path / "run", corpus, "trainer.max_skipped=2", "trainer.save_every=2")
    breaking(trainer, monkeypatch, {2, 4, 5})
    with pytest.raises(
        RunError, match=r"^step 5: .* not updated .*; 2 in a row, the limit of trainer.max_skipped\. Try a lower"
    ):
        trainer.run()
    # Also over a stop: the count is a part of the state.
    assert steps_saved(tmp_path / "run") == [2, 4]
    trainer = trainer_in(tmp_path / "run", corpus, "trainer.max_skipped=2", "trainer.save_every=2")
    breaking(trainer, monkeypatch, {5})
    with pytest.raises(RunError, match=r"^step 5: "):
        trainer.run()


def test_the_lines_of_an_update_that_was_skipped_are_told(
    tmp_path: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_in(tmp_path, corpus, "trainer.max_steps=4", "data.micro_batches=2")
    gradients = trainer.updater.gradients

    def broken(parts: list[MicroBatch], target_tokens: int, step: int) -> Tensor:
        sums = gradients(parts, target_tokens, step)
        if trainer.progress.step == 3:
            next(iter(trainer.model.parameters())).grad.view(-1)[3] = math.nan  # type: ignore[union-attr]
        return sums

    monkeypatch.setattr(trainer.updater, "gradients", broken)
    trainer.run()
    (line,) = log(tmp_path, "skipped")
    assert line["step"] == 3
    assert line["norm"] == "nan"
    pairs = trainer.sampler.epoch(0)[2]
    source = trainer.config.data.train.source
    assert line["lines"] == [f"{source}:{pair + 1}" for pair in pairs]
    (told,) = re.findall(r"step 3: the loss is (.*), the norm .* \(its lines: (.*); all", capsys.readouterr().err)
    assert told == (line["loss"], ", ".join(line["lines"]))
    first = trainer.data.train.gather(0, pairs[:1])[:-1].tolist()
    text = Path(str(source)).read_text(encoding="utf-8").split("\n")[pairs[0]]
    assert trainer.data.tokenizer.decode([first]) == [text]


def test_an_update_is_skipped_though_its_lines_are_not_known(
    tmp_path: Path, corpus: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_in(tmp_path, corpus, f"data.prepared_dir={tmp_path}/data")
    (tmp_path / "data" / "train" / "rows.npy").unlink()
    with contextlib.closing(Report(tmp_path, 0)) as report:
        judge = health.Health(trainer.config.trainer, trainer.progress, report, trainer.data, trainer.world)
        assert not judge.accept(Pending(3, 0.1, (9, 9), [*range(7, 20)], torch.zeros(3)), 1.0, math.nan)
    told = capsys.readouterr().err
    assert "(its lines: pair 7 of the encoded training data, counted from 0, pair 8" in told
    assert "pair 14 of the encoded training data, counted from 0, …; all 13 in log.jsonl)" in told


SPIKING = ["trainer.max_steps=60", "trainer.save_every=10", "schedule.peak=0.002"]


def spoil(monkeypatch: pytest.MonkeyPatch, times: int, step: int = 44) -> None:
    """Throw the weights about after this step, as often as it comes, up to so many times."""
    left, update = itertools.repeat(None, times), Trainer.train_step

    def spoilt(trainer: Trainer, made_of: Update) -> int:
        stop = update(trainer, made_of)
        if trainer.progress.step == step and next(left, True) is None:
            torch.manual_seed(0)
            with torch.no_grad():
                for weight in trainer.model.parameters():
                    weight.add_(3 * torch.randn_like(weight))
        return stop

    monkeypatch.setattr(Trainer, "train_step", spoilt)


def test_a_spike_is_told(
    tmp_path: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, 1)
    trainer_in(tmp_path, corpus, *SPIKING).run()
    (line,) = log(tmp_path, "spike")
    assert (line["since"], line["step"]) == (45, 47)
    assert re.search(r"step 47: the loss rose to .* since step 45 above the limit", capsys.readouterr().err)
    assert steps_saved(tmp_path) == [20, 30, 40, 50, 60]


def test_a_clean_run_tells_none(tmp_path: Path, corpus: list[str]) -> None:
    trainer_in(tmp_path, corpus, *SPIKING).run()
    assert log(tmp_path, "spike") == []


def test_a_spike_can_be_looked_away_from(tmp_path: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 1)
    trainer_in(tmp_path, corpus, *SPIKING, "trainer.on_loss_spike=off").run()
    assert log(tmp_path, "spike") == []


def test_the_run_goes_back_to_before_it_and_leaves_out_its_pairs(
    tmp_path: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*SPIKING, "trainer.on_loss_spike=rollback", "trainer.log_seconds=0", "trainer.keep_checkpoints=9"]
    made: list[list[int]] = []
    update = Trainer.train_step

    def noted(trainer: Trainer, made_of: Update) -> int:
        made.append(made_of.pairs)
        return update(trainer, made_of)

    monkeypatch.setattr(Trainer, "train_step", noted)
    spoil(monkeypatch, 1)
    trainer = trainer_in(tmp_path / "run", corpus, *overrides)
    trainer.run()
    # Found when the update of step 48 was on its way.
    steps = [line["step"] for line in log(tmp_path / "run", "train")]
    assert steps == [*range(1, 48), *range(41, 61)]
    assert made == [pairs.tolist() for epoch in range(20) for pairs in trainer.sampler.epoch(epoch)][: 48 + 20]
    losses = [line["loss"] for line in log(tmp_path / "run", "train")]
    assert max(losses[47:]) < max(losses[:40]) < min(losses[44:47])
    assert steps_saved(tmp_path / "run") == [10, 20, 30, 40, 50, 60]

    # Found in a step that also saves.
    (tmp_path / "saved").mkdir()
    spoil(monkeypatch, 1)
    trainer_in(tmp_path / "saved", corpus, *overrides, "trainer.save_every=12").run()
    steps = [line["step"] for line in log(tmp_path / "saved", "train")]
    assert steps == [*range(1, 49), *range(37, 61)]

    # It went back to before a validation, which is then made again.
    (tmp_path / "validated").mkdir()
    spoil(monkeypatch, 1)
    validated = []
    go_back = Trainer._go_back

    def noted_place(trainer: Trainer, since: int) -> bool:
        validated.append(trainer.progress.validated)
        done = go_back(trainer, since)
        validated.append(trainer.progress.validated)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_go_back", noted_place)
        trainer_in(tmp_path / "validated", corpus, *overrides, "trainer.validate_every=45").run()
    assert validated == [45, 0]
    assert [line["step"] for line in log(tmp_path / "validated", "valid")] == [45, 45, 60]

    # A run that ended after it went back goes on as one that did not end.
    monkeypatch.undo()
    spoil(monkeypatch, 1)
    trainer_in(tmp_path / "ended", corpus, *overrides, "trainer.max_steps=50").run()
    trainer_in(tmp_path / "ended", corpus, *overrides).run()
    assert_same_state(tmp_path / "run", tmp_path / "ended", 60)


def test_a_spike_that_comes_again_and_again_ends_the_run(
    tmp_path: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 10)
    trainer = trainer_in(tmp_path, corpus, *SPIKING, "trainer.on_loss_spike=rollback")
    with pytest.raises(RunError, match=r"^step 47: the loss rose .*; going back 3 times did not help\. Try a lower"):
        trainer.run()
    assert steps_saved(tmp_path)[-1] == 40


def test_without_a_checkpoint_before_it_the_run_goes_on(
    tmp_path: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, 1)
    trainer_in(tmp_path, corpus, *SPIKING, "trainer.on_loss_spike=rollback", "trainer.save_every=100").run()
    assert "there is no checkpoint before it to go back to; going on" in capsys.readouterr().err
    assert steps_saved(tmp_path) == [60]


def test_losses_are_told_for_each_target_token_and_the_highest_of_a_rise(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make("run", "trainer.on_loss_spike=warn")
    (tmp_path / "run").mkdir()
    report = Report(tmp_path / "run", 0)
    judge = health.Health(trainer.config.trainer, trainer.progress, report, trainer.data, trainer.world)
    assert not judge.accept(Pending(3, 0.1, (10, 5), [0], torch.zeros(3)), 1.0, float("nan"))
    assert "step 3: the loss is 0.2, the norm" in capsys.readouterr().err
    for step, loss in enumerate([9.0] + [2.0] * 21 + [5.0, 6.0, 5.5], 4):
        assert judge.spike(Pending(step, 0.1, (10, 5), [0], torch.zeros(3)), 5 * loss) is None
    report.close()
    (line,) = log(tmp_path / "run", "spike")
    assert (line["step"], line["since"], line["loss"]) == (28, 26, 6.0)
    assert "step 28: the loss rose to 6.000, since step 26 above the limit 3.200" in capsys.readouterr().err


def test_a_save_ends_the_count_of_rollbacks(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MOST_ROLLBACKS", 1)
    for step in (44, 54):
        spoil(monkeypatch, 1, step)
    make("run", *SPIKING, "trainer.on_loss_spike=rollback").run()
    assert len(log(tmp_path / "run", "spike")) == 2


def test_it_goes_back_three_times(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, 10)
    with pytest.raises(RunError):
        make("run", *SPIKING, "trainer.on_loss_spike=rollback").run()
    assert capsys.readouterr().err.count("back at step 40;") == 3


def test_a_run_whose_time_is_over_when_it_goes_back_leaves_a_model(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_back = Trainer._go_back

    def at_the_end_of_its_time(trainer: Trainer, since: int) -> bool:
        trainer.config.trainer.max_minutes = 1e-6
        return go_back(trainer, since)

    monkeypatch.setattr(Trainer, "_go_back", at_the_end_of_its_time)
    spoil(monkeypatch, 1)
    make("run", *SPIKING, "trainer.on_loss_spike=rollback", "trainer.average_last=0").run()
    assert manifest(tmp_path / "run")["steps"] == 40


def test_a_checkpoint_of_the_step_where_it_began_is_none_to_go_back_to(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, 1)
    make("run", *SPIKING, "trainer.on_loss_spike=rollback", "trainer.save_every=45").run()
    assert "there is no checkpoint before it to go back to; going on" in capsys.readouterr().err
    assert steps_saved(tmp_path / "run") == [45, 60]
