"""seq2seq-train, end to end: training, stopping, going on, finishing; the paper's recipes on stand-in data."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from seq2seq.cli import average, train, translate
from seq2seq.model.weights import load_weights
from seq2seq.support.files import read_json
from seq2seq.train.loss import batch_loss
from seq2seq.translate.translator import Translator
from tests.processes import PATIENCE

QUICK = [
    *("trainer.device=cpu", "trainer.precision=float32", "trainer.samples=1", "data.workers=1"),
    *("data.batch_tokens=400", "trainer.log_seconds=0", "tokenizer.vocab_size=310"),
]


@pytest.fixture
def overrides(toy_corpus: tuple[Path, Path], tmp_path: Path, tiny: list[str]) -> list[str]:
    files = [f"data.train.{side}={path}" for side, path in zip(("source", "target"), toy_corpus, strict=True)]
    return ["+recipe=files", f"run_dir={tmp_path / 'run'}", *files, *QUICK, *tiny]


def checkpoints(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("wanted", [False, True])
def test_a_training_is_held_to_operations_that_repeat_if_asked(
    run: Any, overrides: list[str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    seen: list[bool] = []

    def noted(*given: Any) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return batch_loss(*given)

    monkeypatch.setattr("seq2seq.train.loss.batch_loss", noted)
    try:
        command = [*overrides, "trainer.max_steps=1", "trainer.validate_every=1", "trainer.save_every=1"]
        code, _, err = run(train.main, *command, f"trainer.deterministic={str(wanted).lower()}")
    finally:
        torch.use_deterministic_algorithms(False)
    assert code == 0, err
    assert seen and set(seen) == {wanted}


@pytest.mark.slow
def test_training_from_raw_text_to_a_model_directory(run: Any, overrides: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [*overrides, "trainer.max_steps=6", "trainer.save_every=2", "trainer.validate_every=3"]
    code, out, err = run(train.main, *command, "trainer.keep_checkpoints=2", "trainer.average_last=2")
    assert (code, out) == (0, "")
    lines = err.split("\n")
    told = [line for line in lines if line.startswith("step ") and " lr " in line]
    assert ["min left" in line for line in told] == [False] + 5 * [True]
    assert sum(line.startswith("validation at step ") for line in lines) == 2
    assert sum(line.startswith("    source:     the ") for line in lines) == 2, "one sample translation at each"
    assert lines[-3].startswith("finished after") and str(run_dir / "model") in lines[-3]
    assert f"seq2seq-translate --model {shlex.quote(str(run_dir / 'model'))}" in lines[-2], "what to type next"
    assert [step for step in checkpoints(run_dir) if step != 3] == [4, 6], "the last two, and the best"
    assert {path.name for path in run_dir.iterdir()} >= {"checkpoints", "data", "model", "log.jsonl"}
    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [(row["kind"], row["step"]) for row in rows if row["kind"] == "valid"] == [("valid", 3), ("valid", 6)]
    assert all(row["loss"] > 0 for row in rows)
    manifest = read_json(run_dir / "model" / "manifest.json")
    assert len(manifest["data_sha256"]) == 64

    # A model directory can be moved.
    (run_dir / "model").rename(tmp_path / "moved")
    assert len(Translator.load(tmp_path / "moved", device="cpu").translate(["the dog", ""])) == 2
    (tmp_path / "moved").rename(run_dir / "model")

    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    again = run(train.main, *command, "trainer.keep_checkpoints=2", "trainer.average_last=2")
    assert again == (0, "", f"this run is finished (step 6: trainer.max_steps=6); its model: {run_dir / 'model'}\n")
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before

    run(train.main, *overrides, "trainer.max_steps=6", "trainer.save_every=2", "optimizer.beta2=0.9").refused(
        "seq2seq-train", "type optimizer.beta2=0.98 trainer.average_last=2 trainer.validate_every=3 to resume"
    )
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before

    shutil.rmtree(run_dir / "model")
    again = run(train.main, *command, "trainer.keep_checkpoints=2", "trainer.average_last=2")
    assert again.code == 0 and "this run is finished" not in again.err
    assert read_json(run_dir / "end.json")["step"] == 6
    assert len(Translator.load(run_dir / "model", device="cpu").translate(["the dog"])) == 1


def test_a_folder_of_the_users_is_not_replaced_by_the_model(run: Any, overrides: list[str], tmp_path: Path) -> None:
    own = tmp_path / "run" / "model" / "theirs.txt"
    own.parent.mkdir(parents=True)
    own.write_text("years of work", encoding="utf-8")
    run(train.main, *overrides, "trainer.max_steps=1").refused("seq2seq-train", f"{own.parent}: already exists and was")
    assert own.read_text(encoding="utf-8") == "years of work"


def stopped(overrides: list[str], number: signal.Signals) -> tuple[int, str]:
    """Train in a process of its own, send it a signal after its second step; its exit code and errors."""
    process = subprocess.Popen(
        [sys.executable, "-m", "seq2seq.cli.train", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout and process.stderr
    shown = []
    try:
        for line in process.stderr:
            shown.append(line)
            if sum(text.startswith("step ") for text in shown) == 2:
                process.send_signal(number)
                break
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert out == ""
    return process.returncode, "".join(shown) + err


@pytest.mark.slow
def test_a_stopped_run_is_saved_and_goes_on(run: Any, overrides: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [*overrides, "trainer.save_every=100000", "trainer.validate_every=100000", "trainer.average_last=0"]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        done = checkpoints(run_dir)[-1] if run_dir.exists() and (run_dir / "checkpoints").is_dir() else 0
        found, err = stopped([*command, "trainer.max_steps=100000"], number)
        assert found == code, err
        assert "Traceback" not in err
        assert (f"resuming from step {done:,}\n" in err) == (done > 0)
        reached = checkpoints(run_dir)[-1]
        assert reached >= done + 2
        last = err.rstrip("\n").rpartition("\n")[2]
        assert last == (
            f"seq2seq-train: stopped by {number.name} at step {reached:,}, saved; rerun the same command to resume"
        )
    assert not (run_dir / "model").exists()
    run(average.main, run_dir, "--last", "1", "--output", tmp_path / "averaged").refused(
        "seq2seq-average", "not there before the run's first validation"
    )
    code, out, err = run(train.main, *command, f"trainer.max_steps={reached + 2}")
    assert (code, out) == (0, "")
    assert f"resuming from step {reached:,}\n" in err
    assert checkpoints(run_dir)[-1] == reached + 2


@pytest.mark.slow
def test_rows_of_table_3_train_on_the_same_data(run: Any, overrides: list[str], tmp_path: Path) -> None:
    rows = "base,B_key_size_16,E_learned_positions"
    few = ["trainer.max_steps=3", "trainer.validate_every=3", "trainer.average_last=0"]
    command = ["--multirun", *overrides, f"+ablation={rows}", *few]
    code, out, err = run(train.main, *command)
    assert (code, out) == (0, ""), err
    run_dir = tmp_path / "run"
    assert {path.name for path in run_dir.iterdir()} == {"data", *rows.split(",")}
    assert err.count("training a bpe vocabulary") == 1, "the data are prepared once"
    assert len({read_json(run_dir / row / "model" / "manifest.json")["data_sha256"] for row in rows.split(",")}) == 1
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in load_weights(run_dir / row / "model/model.safetensors").items()}
        for row in rows.split(",")
    ]
    query, positions = "decoder.layers.0.cross_attention.query.weight", "decoder.input.positions.weight"
    assert [of_row[query] for of_row in shapes] == [(16, 16), (32, 16), (16, 16)]
    assert [of_row.get(positions) for of_row in shapes] == [None, None, (1024, 16)]
    again = run(train.main, *command)
    assert again.code == 0 and again.err.count("this run is finished (step 3: trainer.max_steps=3)") == 3

    lines = [("the old dog sees the red apple. " * 200)[:5000], "", "the dog"]
    text = "".join(f"{line}\n" for line in lines).encode()
    for row in rows.split(","):
        done = run(
            translate.main, "--model", run_dir / row / "model", "--device", "cpu", "--beam-size", "2", stdin=text
        )
        assert (done.code, done.out.count("\n"), done.out.split("\n")[1]) == (0, 3, "")


STANDING = {"train": 300, "validation": 12, "test": 12}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, toy_pairs: list[tuple[str, str]]) -> list[tuple[Any, ...]]:
    """Puts toy sentences in the place of WMT 2014 on the Hub; returns what is asked of it."""
    asked: list[tuple[Any, ...]] = []
    letters = [f"{chr(first)}{chr(second)}" for first in range(0x61, 0x7B) for second in range(0xE0, 0x100)]

    def load_dataset(name: str, subset: str, *, split: str, verification_mode: str) -> datasets.Dataset:
        assert verification_mode == "all_checks"
        asked.append((name, subset, split))
        # Enough different syllables for a thousand pieces.
        texts = [(f"{a} {letters[n % 832]}{letters[n * 7 % 832]}", b) for n, (a, b) in enumerate(toy_pairs)]
        other = subset.removesuffix("-en")
        rows = [{"translation": {other: german, "en": english}} for english, german in texts[: STANDING[split]]]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "smaller"),
    [
        ("wmt14_en_de", []),
        ("wmt14_en_de_big", ["model.d_model=64"]),
        ("wmt14_en_fr", ["model.d_model=64"]),
    ],
)
def test_the_papers_recipes_run(
    recipe: str, smaller: list[str], run: Any, stand_in: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    few = ["trainer.max_steps=3", "trainer.validate_every=3", "data.batch_tokens=300", "tokenizer.vocab_size=1000"]
    short = ["search.max_length_ratio=0", "search.max_length_offset=3", "trainer.device=cpu", "data.workers=1"]
    code, out, err = run(train.main, f"+recipe={recipe}", f"run_dir={tmp_path / 'run'}", *few, *short, *smaller)
    assert (code, out) == (0, ""), err
    subset = "fr-en" if "fr" in recipe else "de-en"
    assert stand_in == [("wmt/wmt14", subset, "train"), ("wmt/wmt14", subset, "validation")]
    assert "finished after" in err
    weights = load_weights(tmp_path / "run" / "model" / "model.safetensors")
    assert weights["target_embedding.weight"].shape == (1000, 512 if recipe == "wmt14_en_de" else 64)
    done = run(translate.main, "--model", tmp_path / "run" / "model", "--device", "cpu", stdin=b"the dog\n")
    assert (done.code, done.out.count("\n")) == (0, 1)
    shutil.rmtree(tmp_path / "run")  # Half a gigabyte, which pytest would keep for three runs.


def test_a_loss_that_is_no_number_ends_the_run(run: Any, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> tuple[Any, ...]:
        return tuple(value * float("nan") for value in batch_loss(*given))

    monkeypatch.setattr("seq2seq.train.loss.batch_loss", broken)
    code, out, err = run(train.main, *overrides, "trainer.max_steps=3")
    assert (code, out) == (3, "")
    last = err.rstrip("\n").rpartition("\n")[2]
    assert last.startswith("seq2seq-train: step 3: the loss is nan") and "schedule.peak" in last
    assert "Traceback" not in err
