"""Writing files and directories so that a final name never holds anything half-written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from seq2seq.support.errors import UserError
from seq2seq.support.progress import bar, say

PARTIAL, REPLACED = ".partial", ".replaced"
"""Suffixes of the hidden names of what is being written or deleted, and of directories moved aside meanwhile."""


def sha256_of(path: Path) -> str:
    """The hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file, bar(f"checking {path.name}", path.stat().st_size, unit="bytes") as progress:
        while block := file.read(1 << 22):
            digest.update(block)
            progress.update(len(block))
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """The hex SHA-256 of a JSON-like value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8 atomically; into a pipe or a device, directly."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    # What a link points to is replaced, not the link.
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def require_ours(folder: Path, record: str, remedy: str) -> None:
    """Raise UserError if anything is where our folder is to be, except a folder that is empty or has our `record`."""
    if folder.exists() and not (folder.is_dir() and ((folder / record).is_file() or not any(folder.iterdir()))):
        raise UserError(f"{folder}: already exists and was not created by seq2seq; move it away, or {remedy}")


@contextlib.contextmanager
def new_directory(final: Path, verify: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary directory beside `final` that becomes `final`, synced to disk, when the block ends well.

    A directory already there is replaced. When the block raises, or `verify`, which is given the directory once it is
    on disk, nothing under the final name has changed.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden(final, PARTIAL)
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _fsync(path)
        if verify:
            verify(temporary)
        _rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _hidden(final: Path, suffix: str) -> Path:
    """A new directory beside `final`; unlike one of `tempfile`, with the rights that the user's umask gives."""
    path = final.parent / f".{final.name}.{secrets.token_hex(4)}{suffix}"
    path.mkdir()
    return path


def _rename(new: Path, final: Path) -> None:
    old = None
    if final.exists():
        old = _hidden(final, REPLACED)
        final.replace(old)
    try:
        new.replace(final)
    except BaseException:
        if old:
            old.replace(final)
        raise
    _fsync(final.parent)
    if old:
        _clear(old)


def remove_directory(path: Path) -> None:
    """Delete a directory without ever leaving half of it under its own name; what cannot be deleted is told."""
    doomed = _hidden(path, PARTIAL)
    path.replace(doomed)
    _clear(doomed)


def _clear(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        say(f"{path}: cannot be deleted ({error.strerror}); the next start tries again")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process while the block runs; a process that dies releases it.

    Raises UserError when another process holds it. On a file system without locks nothing is held.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("ab") as file:
        if not _acquire(file, fcntl.LOCK_NB):
            raise UserError(f"{directory}: another process trains there; wait for its end, or take another run_dir=DIR")
        yield


@contextlib.contextmanager
def in_turn(directory: Path) -> Iterator[None]:
    """Hold `directory` to prepare data in it while the block runs; waits, with a notice, while another process does.

    It may also be `locked` by this process. Where nothing can be written, and so nothing made, nothing is held.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            file = held.enter_context((directory / ".preparing").open("ab"))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        else:
            if not _acquire(file, fcntl.LOCK_NB):
                say(f"{directory}: another process prepares data there; waiting for its end")
                _acquire(file)
        yield


def _acquire(file: BinaryIO, flags: int = 0) -> bool:
    """Lock the file; returns whether this process now holds it, or there are no locks on its file system."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | flags)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
    return True


def remove_leftovers(parent: Path) -> None:
    """Clear away what a killed `new_directory` left under `parent`; a directory that it had moved aside is restored."""
    for old in parent.glob(f".*{REPLACED}"):
        final = parent / old.name[1:].rpartition(".")[0].rpartition(".")[0]
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.replace(final)
    for path in parent.glob(f".*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
