"""A final name never holds half a thing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from seq2seq.model.weights import save_weights
from seq2seq.support import files
from seq2seq.support.errors import UserError
from seq2seq.support.files import (
    in_turn,
    locked,
    new_directory,
    read_json,
    remove_directory,
    remove_leftovers,
    sha256_of,
    sha256_of_json,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_directory_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "made"
    with new_directory(final) as folder:
        (folder / "a").write_text("1")
        assert not final.exists()
        assert folder.parent == final.parent, "a rename works within one file system only"
    assert names(final) == ["a"]
    assert names(final.parent) == ["made"]


@pytest.mark.parametrize(
    ("umask", "folder", "file"), [(0o022, 0o755, 0o644), (0o002, 0o775, 0o664), (0o077, 0o700, 0o600)]
)
def test_who_may_read_it_is_as_the_user_set(tmp_path: Path, umask: int, folder: int, file: int) -> None:
    before = os.umask(umask)
    try:
        with new_directory(tmp_path / "made") as made:
            save_weights(made / "weights", {"a": torch.ones(2)})
            (made / "text").write_text("1")
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == folder
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()} == {file}


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with new_directory(tmp_path / "made") as folder:
            (folder / content).write_text(content)
    assert names(tmp_path) == ["made"]
    assert names(tmp_path / "made") == ["new"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    with new_directory(tmp_path / "made") as folder:
        (folder / "old").write_text("1")
    with pytest.raises(error), new_directory(tmp_path / "made") as folder:
        (folder / "new").write_text("1")
        raise error
    assert names(tmp_path) == ["made"]
    assert names(tmp_path / "made") == ["old"]


def test_everything_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(files, "_fsync", lambda path: order.append(path.name))
    replace = Path.replace

    def noted(path: Path, target: Path) -> Path:
        order.append(f"-> {target.name}")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", noted)
    with new_directory(tmp_path / "made") as folder:
        (folder / "in").mkdir()
        (folder / "in" / "file").write_text("1")
    assert order.index("-> made") == len(order) - 2
    assert {"in", "file", folder.name} == set(order[:-2])
    assert order[-1] == tmp_path.name


def test_leftovers_go_and_the_rest_stays(tmp_path: Path) -> None:
    for name in (".made.abc.partial", ".made.abc.replaced", "made", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / ".x.json.12.partial").write_text("{")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "made"]


def test_json_is_read_back_and_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"text": "ä\u2028\n", "numbers": [1, 2.5, None]}
    write_json(path, value)
    assert read_json(path) == value
    assert "ä" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(path, {"no": object()})
    assert read_json(path) == value


def test_a_link_stays_and_a_pipe_gets_the_text(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_text(encoding="utf-8") == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 9) == b"text"
    os.close(reader)


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert sha256_of_json({"a": 1, "b": [2]}) == sha256_of_json({"b": [2], "a": 1})
    assert sha256_of_json({"a": 1}) != sha256_of_json({"a": 2})


def test_what_a_killed_replacement_had_moved_aside_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".model.abc123.replaced").mkdir()
    (tmp_path / ".model.abc123.replaced" / "weights").write_text("good")
    (tmp_path / ".model.def456.partial").mkdir()
    files.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "good"


def test_a_directory_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "run"),
        pytest.raises(UserError, match="run: another process trains there"),
        locked(tmp_path / "run"),
    ):
        pass
    with locked(tmp_path / "run"):
        pass


def test_who_takes_turns_waits_for_the_other_and_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = []

    def second() -> None:
        with in_turn(tmp_path / "data"):
            order.append("second")

    with ThreadPoolExecutor(1) as threads:
        with in_turn(tmp_path / "data"):
            waiting = threads.submit(second)
            said, began = "", time.monotonic()
            while not said:
                assert time.monotonic() < began + 20
                time.sleep(0.01)
                said = capsys.readouterr().err
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
            order.append("first")
        waiting.result(timeout=20)
    assert order == ["first", "second"]
    assert said == f"{tmp_path}/data: another process prepares data there; waiting for its end\n"
    assert capsys.readouterr().err == ""


def test_a_text_is_on_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace = Path.replace

    def named(path: Path, target: Path) -> Path:
        order.append("named")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", lambda _: order.append("synced"))
    monkeypatch.setattr(Path, "replace", named)
    files.write_text(tmp_path / "a", "text")
    assert order == ["synced", "named"]


def test_a_text_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    files.write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        files.write_text(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_where_there_are_no_locks_nothing_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with locked(tmp_path), locked(tmp_path):
        pass
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path):
        pass


def test_what_was_moved_aside_comes_back_where_the_new_one_cannot_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with files.new_directory(tmp_path / "made") as folder:
        (folder / "old").touch()
    replace = Path.replace

    def refused(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(errno.EIO, "broken")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(OSError, match="broken"), files.new_directory(tmp_path / "made") as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "old"]


def test_a_directory_goes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "in").mkdir(parents=True)

    def killed(_: Path) -> None:
        assert not (tmp_path / "a").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("seq2seq.support.files.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_directory(tmp_path / "a")
