"""Whole trainings on the real pipeline: they learn, go on where they stopped, and stop when they must."""

from __future__ import annotations

import json
import math
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from seq2seq.config.compose import compose
from seq2seq.data.batches import Batch, in_order
from seq2seq.data.prepare import prepare
from seq2seq.model.directory import load_model_directory, own_weights
from seq2seq.model.translation import TranslationModel, build_model
from seq2seq.support.errors import RunError, Stopped, UserError
from seq2seq.support.files import sha256_of
from seq2seq.train.averaging import average_weights
from seq2seq.train.fitting import worst_part
from seq2seq.train.loss import batch_loss
from seq2seq.train.trainer import Trainer
from seq2seq.train.update import Update
from seq2seq.translate.translator import Translator

LETTERS = "abcdefghij"

TINY = [
    *("model.d_model=16", "model.encoder.num_layers=1", "model.decoder.num_layers=1"),
    *("model.encoder.num_heads=2", "model.decoder.num_heads=2", "model.encoder.d_ff=32", "model.decoder.d_ff=32"),
    *("search.max_length_ratio=0", "search.max_length_offset=5", "data.batch_tokens=500"),
    *("schedule.warmup_steps=10", "trainer.max_steps=12", "trainer.save_every=100", "trainer.validate_every=100"),
]


def draw(count: int, seed: int) -> list[str]:
    """Texts of one to seven letters with blanks between; some come twice."""
    rng = random.Random(seed)
    return [" ".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 7))) for _ in range(count)]


def write_copies(folder: Path, train: list[str], valid: list[str]) -> list[str]:
    """Files of which source and target are the same; the overrides that name them."""
    for split, texts in (("train", train), ("valid", valid)):
        for side in ("source", "target"):
            (folder / f"{split}.{side}").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    sides = [(split, side) for split in ("train", "valid") for side in ("source", "target")]
    return [
        "+recipe=files",
        *(f"data.{split}.{side}={folder}/{split}.{side}" for split, side in sides),
        f"data.prepared_dir={folder}/data",
        *("data.cleaning.same=false", "data.cleaning.duplicate=false", "data.cleaning.max_pieces=30"),
        *("tokenizer.vocab_size=300", "trainer.device=cpu", "trainer.precision=float32", "trainer.average_last=0"),
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_copies(tmp_path_factory.mktemp("corpus"), draw(300, 1), draw(10, 2))


Make = Callable[..., Trainer]


@pytest.fixture
def make(corpus: list[str], tmp_path: Path) -> Make:
    """A trainer of a tiny model in `tmp_path/NAME`, five updates an epoch."""

    def make_trainer(name: str, *overrides: str) -> Trainer:
        config = compose([*corpus, f"run_dir={tmp_path}/{name}", *TINY, *overrides])
        return Trainer(config, prepare(config))

    return make_trainer


def tensors(run_dir: Path, step: int) -> dict[str, Tensor]:
    folder = run_dir / "checkpoints" / f"step-{step}"
    return {
        f"{name}/{key}": tensor
        for name in ("model", "optimizer")
        for key, tensor in safetensors.torch.load_file(folder / f"{name}.safetensors").items()
    }


def assert_same_state(one: Path, other: Path, step: int) -> None:
    own, same = tensors(one, step), tensors(other, step)
    assert own.keys() == same.keys()
    assert [name for name, tensor in own.items() if not torch.equal(tensor, same[name])] == []
    counts = [json.loads((path / f"checkpoints/step-{step}/progress.json").read_text()) for path in (one, other)]
    assert len({(count["step"], count["epoch"], count["update"]) for count in counts}) == 1


def steps_saved(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run_dir / "checkpoints").iterdir())


def log(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    return [line for line in lines if line["kind"] == kind]


def manifest(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "model" / "manifest.json").read_text(encoding="utf-8"))
    return found


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


def test_going_on_is_as_if_never_stopped(make: Make, tmp_path: Path) -> None:
    # Dropout is on, and step 6 lies within the second epoch.
    make("straight").run()
    make("stopped", "trainer.max_steps=6").run()
    assert steps_saved(tmp_path / "stopped") == [6]
    trainer = make("stopped")
    trainer.run()
    assert len(trainer.sampler.epoch(0)) < 6
    assert_same_state(tmp_path / "straight", tmp_path / "stopped", 12)
    assert steps_saved(tmp_path / "stopped") == [6, 12]


def test_every_update_of_every_epoch_is_made_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make("run")
    made: list[list[int]] = []
    update = trainer._update

    def record(made_of: Update) -> int:
        pairs, tokens, ((_, batch, _),) = made_of
        made.append(batch.target_out.tolist())
        assert tokens == (batch.source_layout.total, batch.target_layout.total)
        assert made[-1] == trainer.data.train.gather(1, np.array(pairs)).tolist()
        return update(made_of)

    monkeypatch.setattr(trainer, "_update", record)
    trainer.run()
    data = trainer.data.train
    epochs = [data.gather(1, pairs).tolist() for epoch in range(12) for pairs in trainer.sampler.epoch(epoch)]
    assert made == epochs[:12]


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
    update = Trainer._update

    def interrupted(trainer: Trainer, made_of: Update) -> int:
        if trainer.progress.step == 2:
            signal.raise_signal(number)
        return update(trainer, made_of)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched, pytest.raises(Stopped) as stopped:
        patched.setattr(Trainer, "_update", interrupted)
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
    with pytest.raises(UserError, match=r"schedule\.warmup_steps was 10, is 20"):
        make("run", "schedule.warmup_steps=20").run()
    assert steps_saved(tmp_path / "run") == [2]


def test_trying_whether_an_update_fits_changes_nothing(make: Make, tmp_path: Path) -> None:
    make("plain").run()
    trainer = make("tried")
    trainer._try(worst_part(trainer.data.train, trainer.sampler.epoch(0), 1))
    assert all(weight.grad is None for weight in trainer.model.parameters())
    trainer.run()
    assert_same_state(tmp_path / "plain", tmp_path / "tried", 12)


def test_an_update_larger_than_pays_on_the_cpu_is_cut(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("seq2seq.train.trainer.CPU_TOKENS", 200)
    trainer = make("run", "trainer.max_steps=1")
    trainer.run()
    assert trainer.progress.micro_batches == 3
    assert "updates of 500 tokens a side are computed in 3 parts (data.micro_batches=3)" in capsys.readouterr().err


def collect_gradients(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Train with updates that change nothing; the gradients of each."""
    found: list[dict[str, Tensor]] = []

    def step() -> None:
        weights = trainer.model.named_parameters()
        found.append({name: weight.grad.clone() for name, weight in weights if weight.grad is not None})

    monkeypatch.setattr(trainer.optimizer, "step", step)
    monkeypatch.setattr(trainer, "_save", lambda: None)
    trainer.run()
    return found


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
    trainer.optimizer.zero_grad()
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


def test_the_rate_is_that_of_the_schedule(make: Make, tmp_path: Path) -> None:
    make("run", "schedule.warmup_steps=2", "trainer.max_steps=4", "trainer.log_seconds=0").run()
    rates = [line["learning_rate"] for line in log(tmp_path / "run", "train")]
    assert rates == pytest.approx([16**-0.5 * min(step**-0.5, step * 2**-1.5) for step in (1, 2, 3, 4)])


def test_validation_is_the_loss_of_the_saved_model(make: Make, tmp_path: Path) -> None:
    trainer = make("run", "trainer.max_steps=3", "trainer.samples=2")
    trainer.run()
    (line,) = log(tmp_path / "run", "valid")
    _, tokenizer, model = load_model_directory(tmp_path / "run" / "model")
    valid = trainer.data.valid
    with torch.inference_mode():
        (batch,) = in_order(valid, 10_000)
        plain = float(batch_loss(model.eval(), batch, 0.1)[1])
    expected = plain / sum(len(ids) + 1 for ids in tokenizer.encode(draw(10, 2)))
    assert line["loss"] == pytest.approx(expected, rel=1e-5)
    assert line["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert [sample["source"] for sample in line["samples"]] == draw(10, 2)[:2]
    assert manifest(tmp_path / "run")["steps"] == 3
    kept = manifest(tmp_path / "run")["valid"]
    assert (kept["loss"], kept["bleu"]) == (line["loss"], line["bleu"])
    assert kept["signature"].startswith("nrefs:1|case:mixed|")


def script_bleu(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    script = iter(scores)
    monkeypatch.setattr("seq2seq.train.validation.bleu", lambda *_: next(script))


def weights_of(run_dir: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(run_dir / "model" / "model.safetensors")


EVERY_STEP = ["trainer.save_every=1", "trainer.validate_every=1", "trainer.keep_checkpoints=9"]


@pytest.mark.parametrize("average", [0, 2])
def test_the_best_model_is_kept(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: int) -> None:
    # The average of the last two, if there is one, scores 12.
    script_bleu(monkeypatch, 10.0, 20.0, 20.0, 15.0, 12.0)
    make("run", *EVERY_STEP, "trainer.max_steps=4", f"trainer.average_last={average}").run()
    assert manifest(tmp_path / "run")["steps"] == 2
    assert manifest(tmp_path / "run")["valid"]["bleu"] == 20.0
    best = tensors(tmp_path / "run", 2)
    assert all(torch.equal(weight, best[f"model/{name}"]) for name, weight in weights_of(tmp_path / "run").items())
    assert len(log(tmp_path / "run", "average")) == (1 if average else 0)


def test_the_average_of_the_last_is_taken_when_it_is_better(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_bleu(monkeypatch, 10.0, 20.0, 18.0, 15.0, 25.0)
    make("run", *EVERY_STEP, "trainer.max_steps=4", "trainer.average_last=3").run()
    assert manifest(tmp_path / "run")["steps"] == 4
    assert manifest(tmp_path / "run")["valid"]["bleu"] == 25.0
    files = [tmp_path / "run" / "checkpoints" / f"step-{step}" / "model.safetensors" for step in (2, 3, 4)]
    for name, weight in average_weights(files).items():
        assert torch.equal(weights_of(tmp_path / "run")[name], weight)


def test_a_moving_average_is_what_is_kept(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_bleu(monkeypatch, *map(float, range(10)))
    overrides = [*EVERY_STEP, "trainer.average_decay=0.25"]
    make("run", *overrides, "trainer.max_steps=2").run()
    make("run", *overrides, "trainer.max_steps=4").run()
    trainer = make("run", *overrides)
    start = build_model(trainer.config.model, trainer.data.tokenizer.vocab_size, trainer.config.seed)
    expected = own_weights(start)
    for step in (1, 2, 3, 4):
        weights = safetensors.torch.load_file(tmp_path / "run" / "checkpoints" / f"step-{step}" / "model.safetensors")
        decay = min(0.25, (1 + step) / (10 + step))
        expected = {name: decay * weight + (1 - decay) * weights[name] for name, weight in expected.items()}
    for name, weight in weights_of(tmp_path / "run").items():
        torch.testing.assert_close(weight, expected[name])


def test_a_text_longer_than_any_seen_is_cut_into_what_was_seen(make: Make, tmp_path: Path) -> None:
    trainer = make("run", "trainer.max_steps=1")
    trainer.run()
    translator = Translator.load(tmp_path / "run" / "model")
    assert translator.longest == trainer.data.longest_source == max(translator.tokenizer.count(draw(300, 1)))
    assert translator.translate_n_best([" ".join(LETTERS * 3)])[0].flags[0] == "split"


def test_patience_ends_the_run(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_bleu(monkeypatch, 10.0, 20.0, 19.0, 21.0, 21.0, 20.0)
    make("run", *EVERY_STEP, "trainer.patience=2").run()
    assert [line["step"] for line in log(tmp_path / "run", "valid")] == [1, 2, 3, 4, 5, 6]
    assert steps_saved(tmp_path / "run")[-1] == 6
    assert manifest(tmp_path / "run")["steps"] == 4


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
    assert len(lines) == 2
    shape = r"step [12]  loss \d+\.\d+  perplexity \d+\.\d+  [\d,]+ \+ [\d,]+ tokens/s  lr \d\.\d\de-\d\d  .* min left"
    assert all(re.fullmatch(shape, line) for line in lines), lines
    assert "validation at step 2: perplexity" in captured.err
    assert draw(10, 2)[0] in captured.err


def test_a_run_killed_before_its_end_averages_when_typed_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaging = ("trainer.save_every=6", "trainer.average_last=2")
    monkeypatch.setattr(Trainer, "_finish", lambda _: None)
    make("run", *averaging).run()
    monkeypatch.undo()
    assert log(tmp_path / "run", "average") == []
    make("run", *averaging).run()
    assert len(log(tmp_path / "run", "average")) == 1


def test_a_longer_run_does_not_replace_a_better_average(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaging = ("trainer.save_every=6", "trainer.average_last=2")
    script_bleu(monkeypatch, 20.0, 25.0)
    make("run", *averaging).run()
    averaged = weights_of(tmp_path / "run")
    script_bleu(monkeypatch, 22.0, 21.0)
    make("run", *averaging, "trainer.max_steps=14").run()
    kept = weights_of(tmp_path / "run")
    assert all(torch.equal(kept[name], averaged[name]) for name in averaged)


def test_broken_weights_are_not_saved(make: Make, tmp_path: Path) -> None:
    trainer = make("run", "schedule.peak=1e38", "schedule.warmup_steps=1", "trainer.save_every=1")
    with pytest.raises(RunError, match=r"step \d+: (a weight is not finite|the loss is)"):
        trainer.run()
    for folder in (tmp_path / "run" / "checkpoints").glob("step-*"):
        assert all(
            bool(tensor.isfinite().all())
            for tensor in safetensors.torch.load_file(folder / "model.safetensors").values()
        )


def test_changed_training_data_are_refused(make: Make) -> None:
    make("run", "trainer.max_steps=2").run()
    trainer = make("run", "trainer.max_steps=3")
    trainer.data.data_sha256 = "of other data"
    with pytest.raises(UserError, match="the training data are not those that this run was started with"):
        trainer.run()


def test_a_checkpoint_made_by_a_signal_is_not_averaged(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("trainer.save_every=4", "trainer.average_last=2", "trainer.keep_checkpoints=2")
    with pytest.raises(Stopped), monkeypatch.context() as patched:
        trainer = make("run", *settings)
        patched.setattr(trainer.interrupts, "caught", signal.SIGTERM)
        trainer.run()
    assert steps_saved(tmp_path / "run") == [1]
    make("run", *settings).run()
    assert steps_saved(tmp_path / "run") == [8, 12]
    (line,) = log(tmp_path / "run", "average")
    assert line["checkpoints"] == 2


def test_running_out_of_memory_says_what_to_type(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Trainer, "_update", full)
    with pytest.raises(RunError, match=r"500 tokens a side in 1 parts does not fit .*data\.micro_batches=2"):
        make("run").run()
