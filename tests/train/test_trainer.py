"""Whole trainings on the real pipeline: they learn, go on where they stopped, and stop when they must."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seq2seq.config.compose import compose
from seq2seq.data.batches import Batch
from seq2seq.data.prepare import prepare
from seq2seq.model.translation import TranslationModel
from seq2seq.search.beam import BeamSearch
from seq2seq.support.errors import RunError, Stopped, UserError
from seq2seq.support.files import read_json, sha256_of, write_json
from seq2seq.train import trainer as trainer_module
from seq2seq.train import validation
from seq2seq.train.checkpoint import Checkpoints
from seq2seq.train.distributed import World
from seq2seq.train.fitting import worst_part
from seq2seq.train.recorded import RecordedPasses
from seq2seq.train.trainer import Trainer
from seq2seq.train.update import Update
from seq2seq.train.updater import Updater
from seq2seq.translate.translator import Translator
from tests.train.runs import TINY, Make, assert_same_state, draw, log, manifest, steps_saved, tensors, write_copies


@pytest.mark.slow
def test_copying_is_learnt_from_a_random_seed(tmp_path: Path) -> None:
    known = draw(6000, 3)
    unseen = [text for text in draw(2000, 4) if text not in {*known}][:1000]
    overrides = [
        *write_copies(tmp_path, known, draw(20, 5)),
        *(f"run_dir={tmp_path}/run", "seed=11", "schedule=linear", "schedule.warmup_steps=100", "schedule.peak=0.005"),
        *("model.d_model=64", "model.dropout=0", "trainer.label_smoothing=0", "data.batch_tokens=1000"),
        *(f"model.{side}.{key}" for side in ("encoder", "decoder") for key in ("num_layers=1", "d_ff=128")),
        *("trainer.max_steps=500", "trainer.save_every=500", "trainer.validate_every=500"),
    ]
    config = compose(overrides)
    Trainer(config, prepare(config)).run()
    for beam_size in (1, 4):
        found = Translator.load(tmp_path / "run" / "model", device="cpu", beam_size=beam_size).translate(unseen)
        exact = sum(text == copy for text, copy in zip(unseen, found, strict=True))
        assert exact >= 0.99 * len(unseen), beam_size


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_going_on_is_as_if_never_stopped(make: Make, tmp_path: Path, optimizer: str) -> None:
    # Dropout is on, and step 6 lies within the second epoch.
    make("straight", f"optimizer={optimizer}").run()
    make("stopped", f"optimizer={optimizer}", "trainer.max_steps=6").run()
    assert steps_saved(tmp_path / "stopped") == [6]
    trainer = make("stopped", f"optimizer={optimizer}")
    trainer.run()
    assert len(trainer.sampler.epoch(0)) < 6
    assert_same_state(tmp_path / "straight", tmp_path / "stopped", 12)
    assert steps_saved(tmp_path / "stopped") == [6, 12]


def test_every_update_of_every_epoch_is_made_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make("run")
    made: list[list[int]] = []
    update = trainer.train_step

    def record(made_of: Update) -> int:
        pairs, tokens, ((_, batch, _),) = made_of
        made.append(batch.target_out.tolist())
        assert tokens == (batch.source_layout.total, batch.target_layout.total)
        assert made[-1] == trainer.data.train.gather(1, np.array(pairs)).tolist()
        return update(made_of)

    monkeypatch.setattr(trainer, "train_step", record)
    trainer.run()
    data = trainer.data.train
    epochs = [data.gather(1, pairs).tolist() for epoch in range(12) for pairs in trainer.sampler.epoch(epoch)]
    assert made == epochs[:12]


def test_a_run_that_ends_in_the_warm_up_is_told(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    told = "while its learning rate was still rising: its model is far from what it could be; train longer"
    make("short", "trainer.max_steps=5").run()
    assert f"this run ended at step 5, {told}" in capsys.readouterr().err
    make("long").run()
    assert told not in capsys.readouterr().err


def test_the_same_seed_is_the_same_run(make: Make, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("one", "two", "three")]
    for run_dir in runs:
        make(run_dir.name, "data.micro_batches=2").run()
    for name in ("model", "optimizer"):
        hashes = {sha256_of(run_dir / "checkpoints" / "step-12" / f"{name}.safetensors") for run_dir in runs}
        assert len(hashes) == 1, name
    assert len({sha256_of(run_dir / "model" / "model.safetensors") for run_dir in runs}) == 1


def test_another_seed_is_another_run(make: Make, tmp_path: Path) -> None:
    make("one", "trainer.max_steps=1").run()
    make("other", "trainer.max_steps=1", "seed=2").run()
    own, other = (tensors(tmp_path / name, 1)["model/target_embedding.weight"] for name in ("one", "other"))
    assert not torch.allclose(own, other, atol=0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_is_saved(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    update = Trainer.train_step

    def interrupted(trainer: Trainer, made_of: Update) -> int:
        if trainer.progress.step == 2:
            signal.raise_signal(number)
        return update(trainer, made_of)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched, pytest.raises(Stopped) as stopped:
        patched.setattr(Trainer, "train_step", interrupted)
        make("stopped").run()
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    assert steps_saved(tmp_path / "stopped") == [3]
    make("stopped").run()
    make("straight").run()
    assert_same_state(tmp_path / "straight", tmp_path / "stopped", 12)


def test_a_signal_in_a_validation_does_not_wait_for_its_end(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = Trainer._scores

    def interrupted(trainer: Trainer, model: TranslationModel) -> dict[str, Any]:
        signal.raise_signal(signal.SIGTERM)
        return scores(trainer, model)

    overrides = ["trainer.validate_every=5"]
    with monkeypatch.context() as patched, pytest.raises(Stopped, match="at step 5, saved"):
        patched.setattr(Trainer, "_scores", interrupted)
        make("stopped", *overrides).run()
    assert steps_saved(tmp_path / "stopped") == [5]
    make("stopped", *overrides).run()
    make("straight", *overrides).run()
    assert [line["step"] for line in log(tmp_path / "stopped", "valid")] == [5, 10, 12]
    assert_same_state(tmp_path / "straight", tmp_path / "stopped", 12)


@pytest.mark.parametrize("end", ["steps", "signal", "patience"])
def test_the_log_counts_each_update_whatever_is_saved_and_validated_in_between(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    make("each", "trainer.max_steps=6", "trainer.log_seconds=0").run()
    losses = [line["loss"] for line in log(tmp_path / "each", "train")]
    update = Trainer.train_step

    def interrupted(trainer: Trainer, made_of: Update) -> int:
        if trainer.progress.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return update(trainer, made_of)

    often = ["trainer.save_every=2", "trainer.validate_every=3", "trainer.log_seconds=1000"]
    trainer = make("run", *often, *(["trainer.max_steps=6"] if end == "steps" else ["trainer.patience=2"]))
    # With patience: no validation is better.
    trainer.progress.best_bleu = 101.0
    if end == "signal":
        monkeypatch.setattr(Trainer, "train_step", interrupted)
    with contextlib.suppress(Stopped):
        trainer.run()
    epochs = [pairs for epoch in range(6) for pairs in trainer.sampler.epoch(epoch)]
    tokens = [int(trainer.data.train.lengths[1][pairs].sum()) for pairs in epochs[:6]]
    first, line = log(tmp_path / "run", "train")
    assert (first["step"], line["step"]) == (1, 6)
    assert first["loss"] == pytest.approx(losses[0], rel=1e-6)
    assert line["loss"] == pytest.approx(np.average(losses[1:], weights=tokens[1:]), rel=1e-6)


def test_a_finished_run_says_so_and_does_nothing(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("run", "trainer.max_steps=2").run()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    make("run", "trainer.max_steps=2").run()
    captured = capsys.readouterr()
    assert "finished" in captured.err
    assert captured.out == ""
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_changed_configuration_is_refused(make: Make, tmp_path: Path) -> None:
    make("run", "trainer.max_steps=2").run()
    with pytest.raises(UserError, match=r"type schedule\.warmup_steps=10 to resume"):
        make("run", "schedule.warmup_steps=20").run()
    assert steps_saved(tmp_path / "run") == [2]


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_trying_whether_an_update_fits_changes_nothing(make: Make, tmp_path: Path, optimizer: str) -> None:
    make("plain", f"optimizer={optimizer}").run()
    trainer = make("tried", f"optimizer={optimizer}")
    trainer.updater.try_out(worst_part(trainer.data.train, trainer.sampler.epoch(0), 1), adds=True)
    assert all(weight.grad is None for weight in trainer.model.parameters())
    trainer.run()
    assert_same_state(tmp_path / "plain", tmp_path / "tried", 12)


@pytest.mark.parametrize(("adds", "ranks", "buckets"), [(False, 1, 0), (False, 2, 0), (True, 1, 0), (True, 2, 1)])
def test_the_trial_computes_beside_all_that_later_passes_find(
    make: Make, monkeypatch: pytest.MonkeyPatch, adds: bool, ranks: int, buckets: int
) -> None:
    trainer = make("run")
    updater, batch = trainer.updater, Batch.of(trainer.data.train, np.arange(3))
    updater.world = World(size=ranks)
    weights = list(updater.model.parameters())
    held: list[tuple[bool, int, int]] = []
    made: list[Tensor] = []
    backward, empty = Updater._backward, torch.empty_like

    def watched(self: Updater, batch: Batch, scale: float) -> Tensor:
        gradients = all(weight.grad is not None for weight in weights)
        held.append((gradients, len(self.optimizer.state), len(made)))
        with monkeypatch.context() as inside:
            inside.setattr(torch, "empty_like", empty)
            return backward(self, batch, scale)

    def bucket(weight: Tensor) -> Tensor:
        made.append(empty(weight))
        return made[-1]

    monkeypatch.setattr(Updater, "_backward", watched)
    monkeypatch.setattr(torch, "empty_like", bucket)
    updater.try_out(batch, adds=adds)
    assert held == [(False, 0, 0), (adds, len(weights), buckets * len(weights))]


def test_sampling_in_validation_is_deterministic_on_processors_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = "trainer.deterministic=true", "search=sampling"
    make("run", *settings)
    monkeypatch.setattr("seq2seq.train.trainer.choose_device", lambda *_: torch.device("cuda"))
    with pytest.raises(UserError, match=r"trainer\.deterministic: not with search\.sampling on a GPU"):
        make("run", *settings)


def test_validation_takes_the_memory_of_recorded_passes_where_it_needs_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, tries = BeamSearch.__call__, [torch.OutOfMemoryError("out of memory")]

    def full_once(*arguments: Any) -> Any:
        if tries:
            raise tries.pop()
        return search(*arguments)

    monkeypatch.setattr(BeamSearch, "__call__", full_once)
    trainer = make("run")
    ended: list[RecordedPasses] = []

    def end(self: RecordedPasses) -> bool:
        ended.append(self)
        return len(ended) == 1

    monkeypatch.setattr(RecordedPasses, "end", end)
    monkeypatch.setattr(RecordedPasses, "_record", lambda *_: False)
    updater = trainer.updater
    updater._recorded = RecordedPasses(updater._loss_of, updater.model, updater.device)
    trainer.run()
    assert ended == [updater._recorded] and not tries and steps_saved(tmp_path / "run") == [12]


def test_an_update_larger_than_pays_on_the_cpu_is_cut(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("seq2seq.train.fitting.CPU_TOKENS", 200)
    trainer = make("run", "trainer.max_steps=1")
    trainer.run()
    assert trainer.progress.micro_batches == 3
    assert "updates of 500 tokens a side are computed in 3 parts (data.micro_batches=3)" in capsys.readouterr().err


def test_the_rate_is_that_of_the_schedule(make: Make, tmp_path: Path) -> None:
    make("run", "schedule.warmup_steps=2", "trainer.max_steps=4", "trainer.log_seconds=0").run()
    rates = [line["learning_rate"] for line in log(tmp_path / "run", "train")]
    assert rates == pytest.approx([16**-0.5 * min(step**-0.5, step * 2**-1.5) for step in (1, 2, 3, 4)])


def test_minutes_end_the_run_with_a_model(make: Make, tmp_path: Path) -> None:
    make("run", "trainer.max_minutes=1e-6").run()
    assert steps_saved(tmp_path / "run") == [1]
    assert manifest(tmp_path / "run")["steps"] == 1
    make("run").run()
    assert steps_saved(tmp_path / "run") == [1, 12]


def test_the_console_says_what_it_should(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("run", "trainer.max_steps=2", "trainer.log_seconds=0", "trainer.samples=1").run()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("step ")]
    shape = r"step {}  loss \d+\.\d+  perplexity \d+\.\d+  lr \d\.\d\de-\d\d"
    first, second = lines
    assert re.fullmatch(shape.format(1), first), lines
    assert re.fullmatch(shape.format(2) + r"  [\d,]+ \+ [\d,]+ tokens/s  \d+\.\d min left", second), lines
    assert "validation at step 2: perplexity" in captured.err
    assert draw(10, 2)[0] in captured.err


@pytest.mark.parametrize(("split", "name"), [("train", "training"), ("valid", "validation")])
def test_changed_data_are_refused(tmp_path: Path, split: str, name: str) -> None:
    overrides = [*write_copies(tmp_path, draw(300, 1), draw(10, 2)), f"run_dir={tmp_path}/run", *TINY]
    config = compose([*overrides, "trainer.max_steps=2"])
    Trainer(config, prepare(config)).run()
    for side in ("source", "target"):
        # The vocabulary stays the same, as it would not if training text had changed.
        lines = (tmp_path / f"{split}.{side}").read_text(encoding="utf-8").split("\n")
        (tmp_path / f"{split}.{side}").write_text("\n".join(lines[1:2] + lines[:1] + lines[2:]), encoding="utf-8")
    config = compose([*overrides, "trainer.max_steps=3"])
    with pytest.raises(UserError, match=f"the {name} data are not those that this run was started with"):
        Trainer(config, prepare(config)).run()


def test_a_run_that_knows_no_hash_of_its_validation_data_goes_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make("run", "trainer.max_steps=2")
    monkeypatch.setattr(trainer.progress, "valid_sha256", "")
    trainer.run()
    trainer = make("run", "trainer.max_steps=3")
    trainer.run()
    assert trainer.progress.valid_sha256 == trainer.data.valid.sha256


def test_a_run_begun_anew_knows_nothing_of_the_one_that_was_finished_there(make: Make, tmp_path: Path) -> None:
    make("run", "trainer.max_steps=2").run()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    trainer = make("run", "trainer.max_steps=2")
    write_json(trainer.saves.end_file, {**read_json(trainer.saves.end_file), "bleu": 100.0})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "_finish", lambda: None)
        trainer.run()
    trainer = make("run", "trainer.max_steps=3")
    trainer.run()
    assert trainer.progress.best_bleu < 100


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", '{"step": 2}', '{"step": 2, "bleu": null}', "[" * 100_000),
        *('{"step": 2, "bleu": NaN}', '{"step": 1e999, "bleu": 1.0}', f'{{"step": 2, "bleu": 1{"0" * 999}}}'),
    ],
)
def test_a_run_whose_end_is_damaged_ends_once_more(make: Make, content: str) -> None:
    make("run", "trainer.max_steps=2").run()
    trainer = make("run", "trainer.max_steps=2")
    whole = read_json(trainer.saves.end_file)
    trainer.saves.end_file.write_text(content)
    trainer.run()
    assert read_json(trainer.saves.end_file) == whole


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((Trainer, "train_step"), r"^step 0: .*500 tokens a side in 1 parts does not fit .*data\.micro_batches=2"),
        ((BeamSearch, "__call__"), r"^step 12: validation does not fit the device's memory .*rerun the same command$"),
        ((validation, "batch_loss"), r"^step 12: validation does not fit the device's memory .*: free memory"),
    ],
)
def test_running_out_of_memory_says_what_to_type(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str], message: str
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(*place, full)
        with pytest.raises(RunError, match=message):
            make("run").run()
    make("run").run()
    assert steps_saved(tmp_path / "run") == [12]


def test_only_updates_count_as_training_time(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]

    def taking(function: Any, seconds: float) -> Any:
        def timed(*given: Any) -> Any:
            now[0] += seconds
            return function(*given)

        return timed

    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(trainer_module, "validate", taking(validation.validate, 7000.0))
    monkeypatch.setattr(Checkpoints, "save", taking(Checkpoints.save, 300.0))
    monkeypatch.setattr(Trainer, "train_step", taking(Trainer.train_step, 10.0))
    trainer = make("run", "trainer.max_minutes=1.1", "trainer.save_every=2", "trainer.validate_every=3")
    now[0] += 500.0
    trainer.run()
    assert trainer.progress.step == 7
    lines = log(tmp_path / "run", "valid")
    assert [(line["step"], line["minutes_trained"]) for line in lines] == [
        (3, pytest.approx(0.5)),
        (6, pytest.approx(1.0)),
        (7, pytest.approx(7 / 6)),
    ]


def test_the_command_to_translate_can_be_typed(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("a run", "trainer.max_steps=1").run()
    command = capsys.readouterr().err.splitlines()[-1].removeprefix("to translate with it: ")
    assert shlex.split(command)[:3] == ["seq2seq-translate", "--model", f"{tmp_path}/a run/model"]


def test_a_run_that_ends_with_the_warm_up_is_not_told(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("short", "trainer.max_steps=10").run()
    assert "still rising" not in capsys.readouterr().err


def test_what_a_killed_run_left_is_cleared_away(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("run", "trainer.max_steps=1").run()
    (tmp_path / "run" / "model").rename(tmp_path / "run" / ".model.abc123.replaced")
    (tmp_path / "run" / "checkpoints" / ".step-9.abc123.partial").mkdir()
    capsys.readouterr()
    make("run", "trainer.max_steps=1").run()
    assert capsys.readouterr().err.startswith("this run is finished")
    assert manifest(tmp_path / "run")["steps"] == 1
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-1"]


def test_going_on_between_validations_makes_none(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make("run")
    monkeypatch.setattr(trainer.interrupts, "caught", signal.SIGTERM)
    with pytest.raises(Stopped):
        trainer.run()
    make("run").run()
    assert [line["step"] for line in log(tmp_path / "run", "valid")] == [12]
