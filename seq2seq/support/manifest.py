"""A directory's manifest: the SHA-256 of each of its files, and its own, so that any change is detected."""

from __future__ import annotations

import json
import os
from pathlib import Path

from seq2seq.support.files import sha256_of, sha256_of_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write the manifest of the files that stand in `folder`."""
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_bytes(_encoded(hashes))


def damage(folder: Path, *, from_disk: bool = False) -> str | None:
    """The first file of `folder` that does not match the manifest, and why; None if all are intact.

    With `from_disk`, files are read from the disk itself, not from the page cache, where the system can.
    """
    try:
        written = (folder / MANIFEST).read_bytes()
        hashes = json.loads(written)["sha256"]
        # Compared byte by byte: a change that means the same in JSON is a change too.
        if _encoded(hashes) != written or not isinstance(hashes, dict):
            return f"{MANIFEST}: damaged"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{MANIFEST}: missing or damaged ({error})"
    for name, expected in hashes.items():
        try:
            if "/" in name or (folder / name).is_symlink():
                return f"{name}: leads out of the directory; bring the file itself here"
            if from_disk:
                _forget(folder / name)
            if sha256_of(folder / name) != expected:
                return f"{name}: damaged, its SHA-256 is not that of the manifest"
        except OSError as error:
            return f"{name}: cannot be read ({error.strerror})"
        except ValueError as error:
            return f"{name!r}: no name of a file ({error})"
    return None


def _encoded(hashes: dict[str, str]) -> bytes:
    manifest = {"format_version": 1, "sha256": hashes, "own_sha256": sha256_of_json(hashes)}
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _forget(path: Path) -> None:
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
