"""Faults in what a program does to files: counted, and at one of them the disk fails or the process dies.

The operations are those by which support/files.py, train/checkpoint.py and safetensors change a disk. Of a file of
tensors half is written before its operation is done, so that a fault there leaves a torn one.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch

OPERATIONS = ("mkdir", "chmod", "fsync", "replace", "rename", "unlink", "remove", "rmdir")


class Dead(BaseException):
    """Stands for the death of the process: whatever it tries to do to a file afterwards does not happen."""


class Faults:
    """Counts operations, and at number `at` (from 0) calls `fault` with its name in place of doing it.

    `inside` limits it to paths with this in them.
    """

    def __init__(self, at: int | None, fault: Callable[[str], None], inside: str = "") -> None:
        self.at, self.fault, self.inside = at, fault, inside
        self.seen: list[str] = []

    def happen(self, name: str, path: Any) -> None:
        """Count an operation on a path, or on a file descriptor."""
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        if self.inside not in str(path):
            return
        self.seen.append(f"{name} {Path(str(path)).name}")
        if self.at is not None and len(self.seen) > self.at:
            self.fault(self.seen[-1])


def disk_fails(faults: Faults) -> None:
    """The one operation fails; the next ones are done."""

    def fail(name: str) -> None:
        if len(faults.seen) == (faults.at or 0) + 1:
            raise OSError(errno.EIO, f"a fault at: {name}")

    faults.fault = fail


def process_dies(faults: Faults) -> None:
    """Neither this operation is done nor any after it."""

    def die(name: str) -> None:
        raise Dead(name)

    faults.fault = die


def kill(_: str) -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def installed(faults: Faults) -> Iterator[Faults]:
    """Have `faults` count while the block runs."""
    with contextlib.ExitStack() as patches:
        for name in OPERATIONS:
            patches.enter_context(mock.patch.object(os, name, _counted(faults, name, getattr(os, name))))
        patches.enter_context(mock.patch.object(io, "open", _opening(faults, io.open)))
        save_file = safetensors.torch.save_file
        patches.enter_context(mock.patch.object(safetensors.torch, "save_file", _torn(faults, save_file)))
        yield faults


def _counted(faults: Faults, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def operation(path: Any, *arguments: Any, **options: Any) -> Any:
        folder = options.get("dir_fd")
        faults.happen(name, path if folder is None else Path(f"/proc/self/fd/{folder}").readlink() / path)
        return real(path, *arguments, **options)

    return operation


def _opening(faults: Faults, real: Callable[..., Any]) -> Callable[..., Any]:
    def opening(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if set(mode) & set("wax+"):
            faults.happen("open", path)
        return real(path, mode, *arguments, **options)

    return opening


def _torn(faults: Faults, real: Callable[..., Any]) -> Callable[..., Any]:
    def save_file(tensors: Any, path: Path) -> None:
        faults.happen("create", path)
        real(tensors, path)
        whole = path.read_bytes()
        os.truncate(path, len(whole) // 2)
        faults.happen("write", path)
        path.write_bytes(whole)

    return save_file
