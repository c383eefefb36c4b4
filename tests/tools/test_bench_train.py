"""The benchmark's arithmetic on given times, and a short run of the whole."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from seq2seq.support.errors import RunError
from tools import bench_train
from tools.benchmarks import train_table
from tools.parts import BETWEEN, OTHER, PARTS
from tools.training_worker import MATRIX, Job, Stretch
from tools.worker import Worker

SECONDS = {MATRIX: [9.0, 1.0, 2.0, 1.0], "ours": [9.0, 2.0, 4.0, 2.0], "nn.Transformer": [9.0, 6.0, 8.0, 2.0]}
THREE = list(SECONDS)
SECONDS["ours, 2 ranks"] = SECONDS["ours"]
"""By contestant and round; the first is not to be counted."""


def job(contestant: str) -> Job:
    return Job(contestant, "float32", "cpu", 1, 50, {})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Stretch]]:
    """The stretches that workers were given, who answer at once with the times above."""
    made: list[tuple[str, Stretch]] = []

    class Told(Worker):
        def __init__(self, job: Job) -> None:
            self.job, self.answers, self.started = job, [], 1.0
            self.built = {"build_started": 2.0, "device": "cpu", "threads": 1, "parameters": 7}

        def build(self) -> None:
            pass

        def run(self, stretch: Stretch) -> dict[str, Any]:
            made.append((self.job.contestant, stretch))
            seconds = SECONDS[self.job.contestant][max(0, (stretch.first - 1) // 4)]
            rows = {"tokens": 150.0, "target_tokens": 100.0, "rows": 200.0}
            state = {"ended": 5.0, "peak_memory": 1 << 20, "others": 0.25}
            return {"seconds": seconds, "flops": 1000.0, **rows, **state}

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(bench_train, "Worker", Told)
    return made


def test_rounds_rotate_and_ratios_are_within_a_round(calls: list[tuple[str, Stretch]]) -> None:
    figures = bench_train.compare([job(name) for name in THREE], Stretch("", 512, 0, 4), rounds=3)
    assert [name for name, _ in calls[3::3]] == [MATRIX, "ours", "nn.Transformer", MATRIX]
    assert {(stretch.first, stretch.count) for _, stretch in calls[3:]} == {(1, 4), (5, 4), (9, 4), (13, 4)}
    ours, plain = figures["contestants"]["ours"], figures["contestants"]["nn.Transformer"]
    assert ours["target_tokens_per_second"] == {"median": 50, "min": 25, "max": 50}
    assert plain["tokens_per_second"] == {"median": 25, "min": 18.75, "max": 75}
    assert ours["share_of_matrix_rate"]["median"] == 0.5
    assert ours["padding_share"] == 0.25
    assert ours["seconds_to_first_update"] == {"from_process_start": 4, "from_build": 3}
    assert figures["processors_busy_for_others"]["median"] == 0.25
    assert figures["ratios"]["ours"] == {"nn.Transformer": {"median": 2, "min": 1, "max": 3}}
    assert "2.00 (1.00–3.00)" in "\n".join(train_table("float32", figures))


def test_all_that_train_are_warmed_up(calls: list[tuple[str, Stretch]]) -> None:
    bench_train.compare([job(name) for name in THREE], Stretch("", 512, 0, 4), rounds=1, warm=6)
    assert [name for name, stretch in calls if stretch.count == 6] == ["ours", "nn.Transformer"]


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 1), (1e9, 3)])
def test_no_round_begins_after_the_time_but_one_is_counted(
    calls: list[tuple[str, Stretch]], seconds: float, rounds: int
) -> None:
    figures = bench_train.compare([job(name) for name in THREE], Stretch("", 512, 0, 4), rounds=3, seconds=seconds)
    assert figures["rounds"] == rounds
    assert len(calls) == 3 * (1 + 1 + rounds)


def run(monkeypatch: pytest.MonkeyPatch, tiny: list[str], output: Path, *options: str) -> dict[str, Any]:
    """The figures of a short run on one thread, without real text."""
    monkeypatch.delenv("SEQ2SEQ_SHARED_DATA", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sizes = ["--vocab-size", "300", "--batch-tokens", "512", "--rounds", "1", "--updates", "1", "--set", *tiny]
    monkeypatch.setattr(sys, "argv", ["bench_train.py", *sizes, *options, "--device", "cpu", "--output", str(output)])
    bench_train.main()
    figures: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return figures


@pytest.mark.slow
def test_a_whole_run(
    monkeypatch: pytest.MonkeyPatch, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = ["ours, 2 ranks", "nn.Transformer"]
    if importlib.util.find_spec("transformers"):
        peers.append("Marian, eager")
    figures = run(monkeypatch, tiny, tmp_path / "figures.json", "--formats", "bfloat16", "--peers", *peers)
    assert json.loads(capsys.readouterr().out) == figures
    assert figures["corpus"] == "random"
    found = figures["formats"]["bfloat16"]
    assert found["processors_busy_for_others"]["median"] >= 0
    assert list(found["contestants"]) == ["ours", *peers]
    assert list(found["ratios"]["ours"]) == peers
    pads = {name: row["padding_share"] for name, row in found["contestants"].items()}
    assert list(found["ratios"]["ours, 2 ranks"]) == ["ours", *peers[1:]]
    # At most 1/32 is filler.
    assert max(pads["ours"], pads["ours, 2 ranks"]) <= 1 / 32 and 0 < pads["nn.Transformer"] < 0.5
    for row in found["contestants"].values():
        assert row["parameters"] == found["contestants"]["ours"]["parameters"]
        assert row["peak_memory_bytes"] > 1 << 26
        assert 0 < row["share_of_matrix_rate"]["median"] < 1
        since_start, since_build = row["seconds_to_first_update"].values()
        assert since_start > since_build > 0


@pytest.mark.slow
def test_the_parts_of_an_update(monkeypatch: pytest.MonkeyPatch, tiny: list[str], tmp_path: Path) -> None:
    options = ("--formats", "float32", "--parts", "--warm", "2", "--rounds", "1", "--peers", "nn.Transformer")
    figures = run(monkeypatch, tiny, tmp_path / "figures.json", *options)
    found = figures["formats"]["float32"]["milliseconds"]
    assert list(found) == ["ours", "nn.Transformer"]
    for taken in found.values():
        assert set(taken) == {"all", *PARTS, OTHER, BETWEEN}
        assert all(taken[part] > 0 for part in ("products", "attention", "optimizer", "loss", "norms, dropout, sums"))


@pytest.mark.slow
def test_growth(monkeypatch: pytest.MonkeyPatch, tiny: list[str], tmp_path: Path) -> None:
    figures = run(
        monkeypatch, tiny, tmp_path / "figures.json", "--formats", "float32", "--growth", "600", "--pairs", "50", "90"
    )
    costs = figures["formats"]["float32"]["microseconds_per_target_token"]
    assert list(costs["batch_tokens"]) == ["512", "600"]
    assert list(costs["sentence_length"]) == ["8", "16", "32", "64", "128", "256", "512"]
    assert list(costs["corpus_pairs"]) == ["50", "90"]
    assert all(cost["median"] > 0 for by_size in costs.values() for cost in by_size.values())


def test_a_missing_package_is_said_in_one_line(
    calls: list[tuple[str, Stretch]],
    monkeypatch: pytest.MonkeyPatch,
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else object())
    figures = run(monkeypatch, tiny, tmp_path / "figures.json", "--formats", "float32")
    assert list(figures["formats"]["float32"]["contestants"]) == ["ours", "ours, 2 ranks", "nn.Transformer"]
    assert {name for name, _ in calls} == {MATRIX, "ours", "ours, 2 ranks", "nn.Transformer"}
    assert "transformers" not in figures["versions"]
    assert "pip install './[bench]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_that_ends_is_named() -> None:
    with pytest.raises(RunError, match="no such peer in float32 ended with code 1"):
        Worker(job("no such peer")).build()
