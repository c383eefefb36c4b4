"""What the launcher tells of ranks that failed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from seq2seq.cli.launch import _first_failure, launch
from seq2seq.config.compose import compose
from seq2seq.support.errors import MAX_CHARACTERS, ProcessFailed, RunError, explain
from seq2seq.support.files import write_json

LONG = f"{'x' * 2 * MAX_CHARACTERS} and its end"


@pytest.mark.parametrize("error", [ValueError(LONG), RunError("two\nlines"), RunError(LONG)])
def test_the_error_of_a_rank_is_told_as_if_it_were_alone(error: Exception, tmp_path: Path) -> None:
    exit_code, message = told = explain(error)
    write_json(tmp_path / "error.json", {"message": message, "exit_code": exit_code, "lost": False})
    assert explain(_first_failure(tmp_path, {1: exit_code}, ProcessFailed("unknown", 3))) == told
    is_defect = isinstance(error, ValueError)
    assert ("\n" in message, LONG in message) == (is_defect, is_defect)


def test_ranks_share_the_processors_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: lambda *_: None)
    # Set first, so that what `launch` sets is taken back.
    for name in ("OMP_NUM_THREADS", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    settings = ["+recipe=quickstart", f"run_dir={tmp_path}", "trainer.devices=3"]
    launch(compose([*settings, "trainer.device=cpu"]))
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert capsys.readouterr().err == ""
    launch(compose(settings))
    assert capsys.readouterr().err == "trainer.devices=3 without a GPU: the processes share 6 CPU cores\n"
