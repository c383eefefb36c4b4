"""Any change of any file of a directory is found, and the file is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from seq2seq.support.files import sha256_of_json
from seq2seq.support.manifest import damage, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(bytes(range(40)))
    (tmp_path / "b.txt").write_text("text\n")
    write_manifest(tmp_path)
    return tmp_path


@pytest.mark.parametrize("from_disk", [False, True])
def test_what_was_written_is_whole(folder: Path, from_disk: bool) -> None:
    assert damage(folder, from_disk=from_disk) is None
    (folder / "other").write_text("a file that came later says nothing of these")
    assert damage(folder, from_disk=from_disk) is None


@pytest.mark.parametrize("name", ["a.bin", "b.txt", "manifest.json"])
def test_a_bit_more_or_less_anywhere_is_damage(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 5):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        found = damage(folder)
        assert found is not None, bit
        assert found.startswith(f"{name}: "), bit
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        assert str(damage(folder)).startswith(f"{name}: ")
    path.write_bytes(whole)
    assert damage(folder) is None


@pytest.mark.parametrize("name", ["a.bin", "manifest.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert str(damage(folder)).startswith(f"{name}: ")


def test_a_manifest_of_another_shape_is_damaged(folder: Path) -> None:
    for text in ("[]", "{}", "null", '{"sha256": 3}', '{"sha256": {}}'):
        (folder / "manifest.json").write_text(text)
        assert str(damage(folder)).startswith("manifest.json: "), text


@pytest.mark.parametrize("hashes", [[], "abc", 5, None, {"a\0b": "x"}, {"\ud800": "x"}])
def test_a_manifest_that_agrees_with_itself_alone_is_damaged(folder: Path, hashes: object) -> None:
    manifest = {"format_version": 1, "sha256": hashes, "own_sha256": sha256_of_json(hashes)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    assert damage(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "a.bin").chmod(0)
    assert str(damage(folder)).startswith("a.bin: cannot be read")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="cannot be asked for here")
def test_files_are_read_from_the_disk_itself_if_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("text")
    write_manifest(tmp_path)
    told: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *given: told.append(given[3]))
    assert damage(tmp_path) is None and told == []
    assert damage(tmp_path, from_disk=True) is None and told == [os.POSIX_FADV_DONTNEED]
