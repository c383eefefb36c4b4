"""What a command does whose standard streams are closed, unread, or of another encoding."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ALL = ["translate", "score", "evaluate"]


def ended(
    folder: Path, shell: str, *, encoding: str = "utf-8", stdin: bytes = b"", stderr: int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """A shell command in a folder; `@NAME` stands for a command of ours."""
    for name in (*ALL, "train"):
        shell = shell.replace(f"@{name}", f'"{sys.executable}" -m seq2seq.cli.{name}')
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONIOENCODING": encoding}
    return subprocess.run(
        ["sh", "-c", shell], cwd=folder, env=environment, input=stdin, stdout=subprocess.PIPE, stderr=stderr
    )


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with a trained model, which translate finds and tells about."""
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "model").symlink_to(tiny_model)
    return tmp_path


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_the_work_is_done_if_nobody_reads_what_is_said_about_it(folder: Path, unread: int) -> None:
    heard = ended(folder, "@translate --device cpu", stdin=b"the dog\n")
    assert (heard.returncode, heard.stderr) == (0, b"model: runs/x/model\n")
    assert heard.stdout.count(b"\n") == 1
    unheard = ended(folder, "@translate --device cpu", stdin=b"the dog\n", stderr=unread)
    assert (unheard.returncode, unheard.stdout) == (0, heard.stdout)
    closed = ended(folder, "@translate --device cpu 2>&-", stdin=b"the dog\n")
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, heard.stdout, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_nor_if_its_disk_is_full_or_its_terminal_gone(folder: Path) -> None:
    heard = ended(folder, "@translate --device cpu", stdin=b"the dog\n")
    full = ended(folder, "@translate --device cpu 2>/dev/full", stdin=b"the dog\n")
    assert (full.returncode, full.stdout) == (0, heard.stdout)
    master, terminal = os.openpty()
    os.close(master)
    gone = ended(folder, "@translate --device cpu", stdin=b"the dog\n", stderr=terminal)
    os.close(terminal)
    assert (gone.returncode, gone.stdout) == (0, heard.stdout)


def test_nor_is_an_error_taken_for_success(tmp_path: Path, unread: int) -> None:
    assert ended(tmp_path, "@translate", stdin=b"the dog\n", stderr=unread).returncode == 2
    ended(tmp_path, "(@train +recipe=none; echo $? >code) 2>&1 | head -c 0")
    assert (tmp_path / "code").read_text() == "2\n"
    assert ended(tmp_path, "@train +recipe=none", stderr=unread).returncode == 2
    closed = ended(tmp_path, "@score --source none --target none 2>&-")
    assert (closed.returncode, closed.stdout) == (2, b"")


@pytest.mark.parametrize("command", ALL)
def test_without_an_output_there_is_nothing_to_do(folder: Path, command: str) -> None:
    found = ended(folder, f"@{command} >&-", stdin=b"the dog\n")
    assert found.returncode == 2
    assert found.stderr.startswith(f"seq2seq-{command}: standard ".encode()) and found.stderr.count(b"\n") == 1
    assert b"output is closed; type: " in found.stderr


@pytest.mark.parametrize("command", ALL[:2])
def test_nor_without_an_input(folder: Path, command: str) -> None:
    found = ended(folder, f"@{command} <&-")
    assert (found.returncode, found.stdout) == (2, b"")
    assert b"standard input or output is closed" in found.stderr and found.stderr.count(b"\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_a_disk_that_is_full_is_told_once(folder: Path) -> None:
    found = ended(folder, "@translate --device cpu > /dev/full", stdin=b"the dog\n")
    assert found.returncode == 3
    assert found.stderr.startswith(b"model: runs/x/model\nseq2seq-translate: the disk is full: ")
    assert found.stderr.count(b"\n") == 2


@pytest.mark.parametrize("command", ["translate", "train"])
def test_help_is_printed_in_utf_8_whatever_the_locale(tmp_path: Path, command: str) -> None:
    found = ended(tmp_path, f"@{command} --help", encoding="latin1")
    assert (found.returncode, found.stderr) == (0, b"")
    assert found.stdout == ended(tmp_path, f"@{command} --help").stdout
    assert "…" in found.stdout.decode() or "α" in found.stdout.decode()
