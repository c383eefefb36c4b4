"""seq2seq-prepare: the data stages alone, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seq2seq.cli.prepare import main


@pytest.fixture
def overrides(toy_corpus: tuple[Path, Path], tmp_path: Path) -> list[str]:
    files = [f"data.train.{side}={path}" for side, path in zip(("source", "target"), toy_corpus, strict=True)]
    return ["+recipe=files", f"run_dir={tmp_path / 'run'}", *files, "tokenizer.vocab_size=310", "data.workers=1"]


def test_it_prepares_once(run: Any, overrides: list[str], tmp_path: Path) -> None:
    code, out, err = run(main, *overrides)
    assert (code, out) == (0, "")
    assert "no validation corpus given: 38 pairs of the training corpus are held out" in err
    last = err.rstrip("\n").rpartition("\n")[2]
    assert last.startswith(f"{tmp_path / 'run' / 'data'}: 3") and "38 validation pairs, 310 pieces" in last
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert run(main, *overrides) == (0, "", f"{last}\n")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == stamps


def test_bad_input_ends_with_one_line(run: Any, overrides: list[str], tmp_path: Path) -> None:
    source = Path(overrides[2].partition("=")[2])
    lines = source.read_bytes().split(b"\n")
    (tmp_path / "short").write_bytes(b"\n".join([*lines[:200], *lines[201:]]))
    (tmp_path / "latin").write_bytes(b"\n".join([*lines[:200], b"caf\xe9", *lines[201:]]))
    run(main, *overrides, f"data.train.source={tmp_path / 'short'}").refused(
        "seq2seq-prepare", "short has 399 lines but"
    )
    run(main, *overrides, f"data.train.source={tmp_path / 'latin'}").refused(
        "seq2seq-prepare", "latin:201: byte 4 of the line (0xe9) is not UTF-8"
    )
    run(main, *overrides, f"data.train.source={source}x").refused("seq2seq-prepare", "did you mean toy.en?")
    run(main, "+recipe=files", f"run_dir={tmp_path / 'run'}").refused("seq2seq-prepare", "data.train.source=FILE")
    run(main, "+recipe=multi30k_en_de", f"run_dir={tmp_path / 'run'}", "data.train.dataset=no/such").refused(
        "seq2seq-prepare", "data set no/such (subset None, split train) cannot be loaded"
    )
    run(main, *overrides, "run_dir=/proc/no").refused("seq2seq-prepare", "/proc/no")
    left = {path.name for path in (tmp_path / "run" / "data").iterdir()}
    assert left == {".preparing"}, "nothing half-made is left, but for the lock"
