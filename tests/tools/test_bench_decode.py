"""A short run of the benchmark of translation."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import bench_decode


@pytest.mark.slow
def test_a_whole_run(
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Path,
    toy_pairs: list[tuple[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = tmp_path / "test.en", tmp_path / "test.de"
    for side, path in enumerate(files):
        path.write_text("".join(f"{pair[side]}\n" for pair in toy_pairs[:9]), encoding="utf-8")
    has_peer = importlib.util.find_spec("ctranslate2") is not None
    names = ["ours float32", "ours bfloat16", *(["ctranslate2 float32"] if has_peer else [])]
    options = ["--rounds", "1", "--rows", "latency", "--contestants", *names, "ours nonsense"]
    output = tmp_path / "figures.json"
    command = ["bench_decode.py", str(tiny_model), *map(str, files), *options, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    bench_decode.main()
    printed = capsys.readouterr()
    figures: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    assert json.loads(printed.out) == figures
    assert printed.err.count("left out: ours nonsense ended with code 1") == 1
    assert list(figures["rows"]["latency"]) == names
    for name, found in figures["rows"]["latency"].items():
        assert len(found["seconds"]) == 1
        assert found["sentences_per_second"] > 0
        assert f"| latency | {name} | {found['sentences_per_second']} |" in printed.err
        assert 0 < found["p50_milliseconds"] <= found["p99_milliseconds"]
        # A line has its eos and at least one piece before it, and at most five.
        assert (found["decoder_rows"] is None) == name.startswith("ctranslate2")
        assert found["decoder_rows"] is None or 9 * 2 <= found["decoder_rows"] <= 4 * 9 * 5
    assert figures["rows"]["latency"]["ours float32"]["same_lines"] == 1.0
    assert all(seconds > 0 for found in figures["process_seconds"].values() for seconds in found)
