"""Which model a training leaves: the best one seen, an average, and what is written beside it."""

from __future__ import annotations

import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from seq2seq.config.compose import compose
from seq2seq.data.batches import Batch, in_order
from seq2seq.data.prepare import prepare
from seq2seq.model.directory import load_model_directory
from seq2seq.model.translation import TranslationModel, build_model
from seq2seq.model.weights import own_weights
from seq2seq.support.errors import RunError, Stopped
from seq2seq.train import validation
from seq2seq.train.averaging import average_weights
from seq2seq.train.loss import batch_loss
from seq2seq.train.trainer import Trainer
from seq2seq.translate.translator import Translator
from tests.train.runs import LETTERS, TINY, Make, draw, log, manifest, steps_saved, tensors, write_copies


def test_validation_is_the_loss_of_the_saved_model(make: Make, tmp_path: Path) -> None:
    trainer = make("run", "trainer.max_steps=3", "trainer.samples=2")
    trainer.run()
    (line,) = log(tmp_path / "run", "valid")
    _, tokenizer, model, _ = load_model_directory(tmp_path / "run" / "model")
    valid = trainer.data.valid
    with torch.inference_mode():
        (batch,) = in_order(valid, 10_000)
        plain = float(batch_loss(model.eval(), batch, 0.1)[1])
    expected = plain / sum(len(ids) + 1 for ids in tokenizer.encode(draw(10, 2)))
    assert line["loss"] == pytest.approx(expected, rel=1e-5)
    assert line["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert [sample["source"] for sample in line["samples"]] == draw(10, 2)[:2]
    loaded = Translator.load(tmp_path / "run" / "model", device="cpu").translate(draw(10, 2)[:2])
    assert [sample["hypothesis"] for sample in line["samples"]] == loaded
    assert manifest(tmp_path / "run")["steps"] == 3
    kept = manifest(tmp_path / "run")["valid"]
    assert (kept["loss"], kept["bleu"]) == (line["loss"], line["bleu"])
    assert kept["signature"].startswith("nrefs:1|case:mixed|")


def test_validation_splits_words_as_the_target_language_needs(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signatures = {}
    for language in ("de", "zh"):
        trainer = make(language, f"data.target_language={language}", "trainer.max_steps=1", "schedule.warmup_steps=1")
        pair = trainer.data.valid_text[0]
        trainer.data.valid_text = [pair._replace(target="一只狗跑过草地。")]
        trainer.run()
        signatures[language] = manifest(tmp_path / language)["valid"]["signature"].split("|")[3]
    assert signatures == {"de": "tok:13a", "zh": "tok:zh"}
    assert capsys.readouterr().err.count("; type data.target_language=L and another run_dir=DIR") == 1


def test_validation_translates_with_a_copy_made_ready(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make("run", "trainer.max_steps=2", "trainer.validate_every=1")
    used: list[TranslationModel] = []

    class Noted(Translator):
        @classmethod
        def of(cls, model: TranslationModel, *rest: Any) -> Translator:
            used.append(model)
            return Translator.of(model, *rest)

    monkeypatch.setattr(validation, "Translator", Noted)
    trainer.run()
    assert len(used) == 2
    for model in used:
        assert model.projection is not None and not model.training
    assert trainer.model.projection is None and trainer.model.training


def script_bleu(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    script = iter(scores)
    monkeypatch.setattr("seq2seq.train.validation.bleu", lambda *_: (next(script), ""))


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


def test_patience_ends_the_run_until_it_is_raised(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script_bleu(monkeypatch, 10.0, 20.0, 19.0, 21.0, 21.0, 20.0, 19.0, 18.0)
    make("run", *EVERY_STEP, "trainer.patience=2").run()
    why = "no better validation BLEU in trainer.patience=2 validations"
    assert f"minutes of training ({why}); the model: " in capsys.readouterr().err
    make("run", *EVERY_STEP, "trainer.patience=2").run()
    assert capsys.readouterr().err.startswith(f"this run is finished (step 6: {why}); its model: ")
    assert [line["step"] for line in log(tmp_path / "run", "valid")] == [1, 2, 3, 4, 5, 6]
    assert steps_saved(tmp_path / "run")[-1] == 6
    assert manifest(tmp_path / "run")["steps"] == 4
    make("run", *EVERY_STEP, "trainer.patience=4").run()
    assert [line["step"] for line in log(tmp_path / "run", "valid")] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_finished_run_whose_model_was_taken_away_trains_no_more(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_bleu(monkeypatch, 10.0, 9.0, 8.0, 7.0)
    make("run", *EVERY_STEP, "trainer.patience=2").run()
    shutil.rmtree(tmp_path / "run" / "model")
    make("run", *EVERY_STEP, "trainer.patience=2").run()
    assert [line["step"] for line in log(tmp_path / "run", "valid")] == [1, 2, 3, 3]
    assert manifest(tmp_path / "run")["steps"] == 3


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


def test_source_and_target_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = write_copies(tmp_path, draw(300, 1), draw(10, 2))
    for split in ("train", "valid"):
        path = tmp_path / f"{split}.target"
        path.write_text("".join(f"{line} j a\n" for line in path.read_text(encoding="utf-8").splitlines()))
    scored: list[tuple[list[str], list[str]]] = []

    def noted(hypotheses: list[str], references: list[str], _: str) -> tuple[float, str]:
        scored.append((hypotheses, references))
        return 1.0, ""

    monkeypatch.setattr(validation, "bleu", noted)
    settings = ("model.dropout=0", "trainer.max_steps=2", "trainer.samples=10", "trainer.log_seconds=0")
    config = compose([*overrides, f"run_dir={tmp_path}/run", *TINY, *settings])
    trainer = Trainer(config, prepare(config))
    data = trainer.data
    trainer.run()
    updates = trainer.sampler.epoch(0)
    first, second = updates[0], updates[1]
    (line,), trained = log(tmp_path / "run", "valid"), log(tmp_path / "run", "train")
    counts = [int(lengths[[*first, *second]].sum()) for lengths in data.train.lengths]
    assert counts[0] != counts[1]
    assert [line["source_tokens"], line["target_tokens"]] == counts
    with torch.inference_mode():
        model = build_model(config.model, data.tokenizer.vocab_size, config.seed)
        batch = Batch.of(data.train, first)
        loss = float(batch_loss(model, batch, 0.1)[0]) / len(batch.target_out)
        assert trained[0]["loss"] == pytest.approx(loss, rel=1e-4)
        (batch,) = in_order(data.valid, 10_000)
        kept = load_model_directory(tmp_path / "run" / "model").model.eval()
        loss = float(batch_loss(kept, batch, 0.0)[1]) / len(batch.target_out)
        assert line["loss"] == pytest.approx(loss, rel=1e-4)
    found = Translator.load(tmp_path / "run" / "model", device="cpu").translate(draw(10, 2))
    references = [f"{text} j a" for text in draw(10, 2)]
    assert scored == [(found, references)]
    assert [(one["source"], one["hypothesis"], one["reference"]) for one in line["samples"]] == list(
        zip(draw(10, 2), found, references, strict=True)
    )


def test_a_long_pair_to_validate_on_is_a_batch_of_its_own(make: Make, tmp_path: Path) -> None:
    trainer = make("run", "trainer.max_steps=1", "data.batch_tokens=32", "data.micro_batches=8")
    assert trainer.data.valid.lengths[0].max() > 32 // 8
    trainer.run()
    assert len(log(tmp_path / "run", "valid")) == 1


def test_a_damaged_checkpoint_is_left_out_of_the_average(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish = Trainer._finish

    def damaged(trainer: Trainer) -> None:
        (tmp_path / "run" / "checkpoints" / "step-8" / "model.safetensors").write_bytes(b"half")
        finish(trainer)

    monkeypatch.setattr(Trainer, "_finish", damaged)
    make("run", "trainer.save_every=4", "trainer.average_last=3").run()
    assert "step-8/model.safetensors: damaged" in capsys.readouterr().err
    (line,) = log(tmp_path / "run", "average")
    assert line["checkpoints"] == 2
