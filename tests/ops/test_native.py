"""The functions in C++: how they are compiled and kept, and what happens where they cannot be."""

from __future__ import annotations

import ctypes
import os
import platform
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from seq2seq.ops import native

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing compiled so far, an empty folder to keep it in, and little to be compiled."""
    sources = tmp_path_factory.mktemp("sources")
    (sources / "kernels.cpp").write_text('#include "rows.h"\nextern "C" int nothing() { return 0; }\n')
    (sources / "rows.h").write_text("")
    monkeypatch.setattr(native, "SOURCE", sources / "kernels.cpp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "seq2seq").iterdir())


@needs_compiler
def test_it_is_compiled_once_and_kept_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(native.library(), ctypes.CDLL)
    [path] = kept(tmp_path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    def compile_again(*_: object, **__: object) -> None:
        raise AssertionError("compiled a second time")

    monkeypatch.setattr(subprocess, "run", compile_again)
    native.library.cache_clear()
    assert isinstance(native.library(), ctypes.CDLL)
    assert kept(tmp_path) == [path]


@needs_compiler
@pytest.mark.parametrize("what", ["cut short", "a byte changed", "others can write it"])
def test_a_damaged_one_is_compiled_anew(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.library()
    [path] = kept(tmp_path)
    whole = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2] + (b"" if what == "cut short" else b"?" + whole[len(whole) // 2 + 1 :]))
    if what == "others can write it":
        path.write_bytes(whole)
        path.chmod(0o720)
    loaded: list[str] = []
    load = ctypes.CDLL

    def told(name: str, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
        loaded.append(name)
        return load(name, mode)

    monkeypatch.setattr(ctypes, "CDLL", told)
    native.library.cache_clear()
    assert isinstance(native.library(), load)
    # Not even to try: what is cut short ends the process with SIGBUS.
    assert str(path) not in loaded
    assert path.read_bytes() == whole or len(kept(tmp_path)) == 2


@needs_compiler
@pytest.mark.parametrize("what", ["_processor", "FLAGS", "a header"])
def test_another_processor_other_flags_or_another_source_make_another_library(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native.library()
    if what == "a header":
        native.SOURCE.with_name("rows.h").write_text("\n")
    else:
        others = {"_processor": lambda: "another", "FLAGS": [*native.FLAGS, "-g0"]}
        monkeypatch.setattr(native, what, others[what])
    native.library.cache_clear()
    native.library()
    assert len(kept(tmp_path)) == 2


@needs_compiler
def test_a_compiler_may_stand_behind_another_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "env LANG=C c++ -g0")
    assert isinstance(native.library(), ctypes.CDLL)
    assert len(kept(tmp_path)) == 1


@needs_compiler
def test_libraries_that_nobody_has_used_for_months_are_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "seq2seq"
    folder.mkdir(mode=0o700)
    for name, days in (("old", 91), ("recent", 89)):
        (folder / f"{name}.so").touch()
        os.utime(folder / f"{name}.so", (0, time.time() - days * 24 * 3600))
    native.library()
    assert not (folder / "old.so").exists() and (folder / "recent.so").exists()
    (own,) = (path for path in kept(tmp_path) if path.name != "recent.so")
    os.utime(own, (0, 0))
    native.library.cache_clear()
    native.library()
    assert time.time() - own.stat().st_mtime < 3600


@needs_compiler
@pytest.mark.parametrize("mode", [0o777, 0o500])
def test_a_folder_that_others_can_write_to_or_nobody_can_is_not_used(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "seq2seq"
    folder.mkdir()
    folder.chmod(mode)
    if mode == 0o500 and os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert isinstance(native.library(), ctypes.CDLL)
    assert not kept(tmp_path)


def test_without_a_compiler_one_line_says_so_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    assert native.library() is None
    assert native.library() is None, "and it is told once"
    [line] = capsys.readouterr().err.splitlines()
    assert "no-such-compiler" in line and "install g++" in line and "-O1" not in line
    assert not native.supports_inference(torch.ones(2))


def test_an_order_that_is_none_is_told_of_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", 'g++ "')
    assert native.library() is None
    [line] = capsys.readouterr().err.splitlines()
    assert "No closing quotation" in line


@needs_compiler
def test_blanks_are_no_compiler_and_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.setenv("CXX", " ")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert isinstance(native.library(), ctypes.CDLL)


@pytest.mark.parametrize("script", ["echo 'cannot do that' >&2; exit 1", "exit 0"])
def test_a_compiler_that_fails_is_told_of_in_one_line_and_leaves_nothing(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    assert native.library() is None
    [_, line] = capsys.readouterr().err.splitlines()
    assert str(compiler) in line and ("cannot do that" in line or "exit 0" in script)
    assert not kept(tmp_path)


@needs_compiler
def test_tensors_with_strides_are_a_defect_and_not_misread() -> None:
    x = torch.ones(4, 6)[:, :3]
    with pytest.raises(AssertionError):
        native.call("add_norm", x, x, torch.ones(3), torch.ones(3), torch.empty(4, 3), 4, 3)


@needs_compiler
def test_what_they_cannot_compute_is_known_beforehand() -> None:
    x = torch.ones(2)
    assert native.supports_inference(x, x) and native.supports_inference(x.bfloat16())
    assert not native.supports_inference(x, x.bfloat16())
    assert not native.supports_inference(x.double())
    assert not native.supports_inference(x.to("meta"))
    weight = torch.nn.Parameter(x)
    assert not native.supports_inference(weight)
    with torch.no_grad():
        assert native.supports_inference(weight)


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are instructions of x86")
@pytest.mark.parametrize(
    ("without", "levels"),
    [([], None), (["avx512bf16"], None), (["avx512vnni", "avxvnni"], 63), (["avx512f", "avxvnni"], 63)],
)
def test_processors_without_these_instructions_compute_the_same(
    without: list[str], levels: int | None, tmp_path: Path
) -> None:
    flags = " ".join(f"-mno-{name}" for name in ("amx-tile", "amx-bf16", "amx-int8", *without))
    root = Path(__file__).parents[2]
    environment = {**os.environ, "CXX": f"c++ {flags}", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not processors_without"]
    names = ("ops/test_panel_linear", "ops/test_product", "ops/test_sentence_attention", "model/test_native_layers")
    tests = [root / "tests" / f"{name}.py" for name in names]
    done = subprocess.run([*command, *tests], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
    [path] = kept(tmp_path)
    loads_layout_of_tiles = b"\xc4\xe2\x78\x49"
    assert loads_layout_of_tiles not in path.read_bytes()
    assert levels is None or ctypes.CDLL(str(path)).levels_of_rows() == levels
