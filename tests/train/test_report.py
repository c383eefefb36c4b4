"""What a run writes of itself."""

from __future__ import annotations

import errno
import json
import math
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from seq2seq.train.report import Report


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def test_a_line_averages_what_came_since_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path, log_seconds=5.0, trained=60.0)
    report.update(1, (30.0, 20.0), (8, 10), 0.1, 100.0, (3, math.inf))
    assert capsys.readouterr().err == "step 1  loss 3.000  perplexity 7.39  lr 1.00e-01\n"
    report.update(2, (30.0, 20.0), (8, 5), 0.1, 104.9, (2, math.inf))
    assert capsys.readouterr().err == ""
    report.update(3, (10.0, 10.0), (9, 15), 0.2, 110.0, (1, math.inf))
    report.close()
    first, line = lines(tmp_path)
    assert (first["step"], first["loss"]) == (1, 3.0) and "target_tokens_per_second" not in first
    assert (line["kind"], line["step"], line["learning_rate"]) == ("train", 3, 0.2)
    assert line["loss"] == pytest.approx(40 / 20)
    assert line["perplexity"] == pytest.approx(math.exp(30 / 20))
    assert (line["source_tokens_per_second"], line["target_tokens_per_second"]) == (1.7, 2.0)
    captured = capsys.readouterr()
    assert captured.out == ""
    for part in ("step 3", "loss 2.000", "perplexity 4.48", "tokens/s", "lr 2.00e-01", "0.1 min left"):
        assert part in captured.err


def test_time_left_is_the_shorter_of_steps_and_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path, log_seconds=0.0)
    for step in (1, 2):
        report.update(step, (1.0, 1.0), (1, 1), 0.1, float(step), (10**9, 90.0))
    report.close()
    assert "1.5 min left" in capsys.readouterr().err


def test_every_line_starts_anew(tmp_path: Path) -> None:
    report = Report(tmp_path, log_seconds=0.0)
    report.update(1, (9.0, 9.0), (3, 3), 0.1, 1.0, (3, math.inf))
    report.update(2, (30.0, 20.0), (8, 5), 0.1, 3.0, (2, math.inf))
    report.update(3, (10.0, 10.0), (9, 10), 0.2, 5.0, (1, math.inf))
    report.close()
    assert [line["loss"] for line in lines(tmp_path)] == pytest.approx([3.0, 6.0, 1.0])
    assert [line["target_tokens_per_second"] for line in lines(tmp_path)[1:]] == [2.5, 5.0]


def test_what_is_left_at_the_end_is_told_once(tmp_path: Path) -> None:
    report = Report(tmp_path, log_seconds=1000.0)
    report.tell()
    report.update(1, (30.0, 20.0), (8, 5), 0.1, 2.0, (2, math.inf))
    report.update(2, (40.0, 20.0), (8, 5), 0.1, 3.0, (1, math.inf))
    report.tell()
    report.tell()
    report.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 6.0), (2, 8.0)]
    assert not any("target_tokens_per_second" in line for line in lines(tmp_path)), "no rate of so short a time"


def test_a_diverged_run_still_has_a_perplexity(tmp_path: Path) -> None:
    report = Report(tmp_path, log_seconds=0.0)
    report.update(1, (1e6, 1e6), (1, 1), 0.1, 1.0, (1, math.inf))
    report.close()
    assert math.isfinite(lines(tmp_path)[0]["perplexity"])


def test_going_on_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        report = Report(tmp_path, log_seconds=0.0)
        report.record("valid", step, {"bleu": 1.5, "samples": [{"source": "Straße\u2028"}]})
        report.close()
    assert [(line["kind"], line["step"]) for line in lines(tmp_path)] == [("valid", 1), ("valid", 2)]
    assert lines(tmp_path)[0]["samples"] == [{"source": "Straße\u2028"}]


@pytest.mark.parametrize("torn", [b'{"kind": "train", "st', '{"kind": "valid", "samples": ["Stra\u00df'.encode()[:-1]])
@pytest.mark.parametrize("before", [0, 2])
def test_going_on_after_a_line_torn_by_a_kill(tmp_path: Path, before: int, torn: bytes) -> None:
    report = Report(tmp_path, log_seconds=0.0)
    for step in range(before):
        report.record("valid", step, {"bleu": 1.5})
    report.close()
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(torn)
    report = Report(tmp_path, log_seconds=0.0)
    report.record("valid", 7, {"bleu": 2.5})
    report.close()
    assert [line["step"] for line in lines(tmp_path)] == [*range(before), 7]


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs extra plot")
    report = Report(tmp_path, log_seconds=0.0)
    report.record("valid", 7, {"bleu": 31.5, "samples": ["text"]})
    report.close()
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["valid/bleu"]
    assert [(event.step, event.value) for event in events.Scalars("valid/bleu")] == [(7, 31.5)]


def test_a_full_disk_leaves_no_half_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    report = Report(tmp_path, log_seconds=0.0)
    report.record("valid", 1, {})

    class Full:
        """The log, on a disk with room for a part of what comes."""

        def __init__(self, log: Any) -> None:
            self.log, self.fileno, self.truncate, self.close = log, log.fileno, log.truncate, log.close
            self.calls = 0

        def write(self, line: bytes) -> int:
            self.calls += 1
            if self.calls > 1:
                raise OSError(errno.ENOSPC, "no space")
            return int(self.log.write(line[:9000]))

    log = report._log
    report._log = cast(Any, Full(log))
    report.record("skipped", 2, {"lines": ["corpus/train.en:1"] * 1000})
    report._log = log
    report.record("valid", 3, {})
    report.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_a_full_disk_costs_lines_of_the_log_and_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    report = Report(tmp_path, log_seconds=1000.0)
    report.record("valid", 1, {"bleu": 1.0})
    report.record("valid", 2, {"bleu": 2.0})
    report.close()
    assert capsys.readouterr().err.count("the disk is full: log.jsonl has no room for some lines") == 1
