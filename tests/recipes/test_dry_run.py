"""recipes/wmt14_en_de/run.sh from nothing to the score table, on generated text: killed, gone on, typed once more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "wmt14_en_de" / "run.sh"
STEPS, SAVE_EVERY, KILLED_FROM = 120, 20, 50
SMALLER = [
    *("trainer.device=cpu", "trainer.precision=float32", "trainer.samples=1", "trainer.log_seconds=0"),
    *(f"trainer.max_steps={STEPS}", f"trainer.save_every={SAVE_EVERY}", f"trainer.validate_every={STEPS}"),
    *("data.batch_tokens=400", "data.workers=1", "tokenizer.vocab_size=310"),
]


@pytest.fixture
def stand_in(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> Path:
    """A folder with the files that WMT14=DIR names."""
    folder = tmp_path / "wmt14"
    folder.mkdir()
    for name, part in (("train", slice(376)), ("newstest2013", slice(376, 388)), ("test", slice(388, 400))):
        for side, language in enumerate(("en", "de")):
            lines = "".join(f"{pair[side]}\n" for pair in toy_pairs[part])
            (folder / f"{name}.{language}").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture
def this_checkout(commands: Path, environment: dict[str, str], stand_in: Path) -> dict[str, str]:
    """The environment with the commands of this checkout and the stand-in data."""
    for name in ("train", "evaluate"):
        command = commands / f"seq2seq-{name}"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m seq2seq.cli.{name} "$@"\n', encoding="utf-8")
        command.chmod(0o755)
    return {**environment, "WMT14": str(stand_in)}


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def steps_of(run_dir: Path) -> list[int]:
    return [line["step"] for line in log_of(run_dir) if line["kind"] == "train"]


@pytest.mark.slow
def test_from_nothing_to_the_score_table(tmp_path: Path, this_checkout: dict[str, str], tiny: list[str]) -> None:
    command = ["bash", str(SCRIPT), *SMALLER, *tiny]
    run_dir = tmp_path / "runs" / "wmt14_en_de"

    process = subprocess.Popen(
        command, cwd=tmp_path, env=this_checkout, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr
    try:
        shown = []
        for line in process.stderr:
            shown.append(line)
            if line.startswith(f"step {KILLED_FROM} "):
                break
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert (run_dir / "log.jsonl").is_file(), "".join(shown)
    before = steps_of(run_dir)
    assert before == list(range(1, before[-1] + 1)) and KILLED_FROM - 1 <= before[-1] < STEPS
    assert not (run_dir / "model").exists()

    again = subprocess.run(command, cwd=tmp_path, env=this_checkout, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    after = steps_of(run_dir)[len(before) :]
    assert after == list(range(after[0], STEPS + 1))
    assert after[0] > KILLED_FROM - SAVE_EVERY and f"resuming from step {after[0] - 1}\n" in again.stderr
    assert [line["checkpoints"] for line in log_of(run_dir) if line["kind"] == "average"] == [5]
    scores = json.loads((run_dir / "scores" / "test.json").read_text(encoding="utf-8"))
    head, _, *rows = again.stdout.split("\n")[:-1]
    assert head == "| test set | score | published | signature |"
    assert rows[0].startswith(f"| test | BLEU {scores['bleu']['score']:.2f} | ")
    assert rows[-1].startswith(f"| test | the paper's BLEU {scores['paper_bleu']['score']:.2f} | 27.3 | `nrefs:1")
    assert (run_dir / "test.hypotheses").read_text(encoding="utf-8").count("\n") == 12
    assert not list(run_dir.rglob("*.partial"))

    files = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    third = subprocess.run(command, cwd=tmp_path, env=this_checkout, capture_output=True, text=True)
    assert (third.returncode, third.stdout) == (0, again.stdout), third.stderr
    told = f"this run is finished (step {STEPS}: trainer.max_steps={STEPS}); its model: runs/wmt14_en_de/model\n"
    assert third.stderr == told
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == files
