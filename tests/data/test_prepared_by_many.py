"""Preparation by several threads, beside other processes, and where nothing may be written."""

from __future__ import annotations

import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from seq2seq.data import prepare as preparing
from seq2seq.data.prepare import prepare
from seq2seq.data.tokenizer import Tokenizer
from seq2seq.support.files import in_turn, locked, new_directory
from tests.data.test_prepare import config, stamps
from tests.processes import PATIENCE


def test_the_number_of_threads_does_not_show(
    tmp_path: Path, toy_pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "BLOCK", 20)
    at_once, most = [0], [0, 0]
    lock, encode = threading.Lock(), Tokenizer.encode

    def noted(tokenizer: Any, texts: Any) -> list[list[int]]:
        with lock:
            at_once[0] += 1
            most[len(made)] = max(most[len(made)], at_once[0])
        time.sleep(0.005)  # Others come to their turn.
        found = encode(tokenizer, texts)
        with lock:
            at_once[0] -= 1
        return found

    monkeypatch.setattr(Tokenizer, "encode", noted)
    made: list[dict[Path, bytes]] = []
    for workers in (1, 3):
        settings = config(tmp_path, toy_pairs, toy_pairs[:20])
        settings.data.prepared_dir = str(tmp_path / str(workers))
        settings.data.workers = workers
        prepare(settings)
        root = tmp_path / str(workers)
        made.append({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()})
    assert made[0].keys() == made[1].keys()
    assert [name for name in made[0] if made[0][name] != made[1][name] and name.name != "dataset_info.json"] == []
    assert most[0] == 1 < most[1] <= 3


def test_as_many_threads_encode_as_there_are_processors_to_use(
    tmp_path: Path, toy_pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "available_processors", lambda: 3)
    asked, encoded = [], preparing._encoded

    def noted(table: Any, tokenizer: Tokenizer, workers: int) -> Any:
        asked.append(workers)
        return encoded(table, tokenizer, workers)

    monkeypatch.setattr(preparing, "_encoded", noted)
    settings = config(tmp_path, toy_pairs, toy_pairs[:20])
    settings.data.workers = None
    prepare(settings)
    assert asked == [3, 3]


def test_who_prepares_beside_another_waits_and_leaves_its_work_alone(
    tmp_path: Path, toy_pairs: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path, toy_pairs[:150], toy_pairs[150:170])
    root = Path(settings.data.prepared_dir)
    said = ""
    with ThreadPoolExecutor(1) as threads:
        with in_turn(root), new_directory(root / "clean") as folder:
            other = threads.submit(prepare, settings)
            began = time.monotonic()
            while not said and not other.done() and time.monotonic() < began + PATIENCE:
                said = capsys.readouterr().err
                time.sleep(0.01)
            assert folder.is_dir()
        assert said == f"{root}: another process prepares data there; waiting for its end\n"
        assert len(other.result().train)


@pytest.mark.parametrize("place", [".", "data", "run/data"])
def test_a_run_that_is_held_can_be_prepared_in(place: str, tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    settings = config(tmp_path, toy_pairs[:150], toy_pairs[150:170])
    settings.data.prepared_dir = str(tmp_path / place)
    with locked(Path(settings.run_dir)):
        prepare(settings)


def test_who_may_not_write_there_can_still_use_what_is_prepared(
    tmp_path: Path, toy_pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, toy_pairs[:150], toy_pairs[150:170])
    prepare(settings)
    before, opened = stamps(tmp_path), Path.open

    def open_to_read(path: Path, mode: str = "r", **options: Any) -> Any:
        if mode[0] in "wax":
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", open_to_read)
    assert len(prepare(settings).train)
    assert stamps(tmp_path) == before
