"""Stages of preparation: folders made once from their inputs, with the hash of each file in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from seq2seq.data.store import damaged
from seq2seq.support.errors import FULL_DISK
from seq2seq.support.files import new_directory, read_json, require_ours, sha256_of, sha256_of_json, write_json

RECORD = "stage.json"


def stage(folder: Path, inputs: dict[str, Any], make: Callable[[Path], None]) -> str:
    """Make a stage's folder unless it is there, made from the same inputs; returns the fingerprint of the inputs."""
    fingerprint = sha256_of_json(inputs)
    if fingerprint_of(folder) != fingerprint:
        require_place(folder)
        with new_directory(folder) as temporary:
            try:
                make(temporary)
            except OSError as error:
                if error.errno in FULL_DISK:
                    raise OSError(error.errno, error.strerror, str(folder)) from None
                raise
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            sums = {path.relative_to(temporary).as_posix(): sha256_of(path) for path in files}
            write_json(temporary / RECORD, {"fingerprint": fingerprint, "sha256": sums, "inputs": inputs})
    return fingerprint


def require_place(folder: Path) -> None:
    """Raise UserError if there is something other than a stage at `folder`."""
    require_ours(folder, RECORD, "take another data.prepared_dir=DIR")


def require_sound(folder: Path, name: str) -> None:
    """Raise UserError when a stage's file `name`, or one in its folder `name`, is missing or not as it was written."""
    try:
        recorded: dict[str, str] = read_json(folder / RECORD)["sha256"]
        expected = {path: digest for path, digest in recorded.items() if path == name or path.startswith(f"{name}/")}
        if not expected:
            raise damaged(folder, f"{RECORD} does not know {name}")
        for path, digest in expected.items():
            if sha256_of(folder / path) != digest:
                raise damaged(folder, f"{path} is not as it was written: its sha256 is not that in {RECORD}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, str(error)) from None


def fingerprint_of(folder: Path) -> str | None:
    """The fingerprint of the inputs that a stage was made from; None if it is not there."""
    try:
        return str(read_json(folder / RECORD)["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
