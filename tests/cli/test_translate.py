"""seq2seq-translate: N lines in, N lines out, whatever they hold; results alone on stdout."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from seq2seq.cli.translate import main
from seq2seq.translate.lines import WINDOW
from seq2seq.translate.translator import Translator

NASTY = [
    *(b"", b" ", b"\t", "the\u2028dog".encode(), "the\x85dog".encode(), b"the\rdog", b"\r", b"the\0dog", b"\0"),
    *(b"\xef\xbb\xbfthe dog", b"caf\xe9 \xff\xfe", b"\xe2\x80", b"x" * 100_000, b"the dog.\x1c\x1d", b"</s>"),
]


@contextmanager
def started(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes], IO[bytes]]]:
    """The command as a process with its input, output and errors; ended by its id whatever happens."""
    # Python's own switch for unbuffered output would hide a missing flush.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-m", "seq2seq.cli.translate", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin and process.stdout and process.stderr
    try:
        yield process, process.stdin, process.stdout, process.stderr
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def answer(stream: IO[bytes]) -> bytes:
    """The next line, if it comes within 40 seconds."""
    assert select.select([stream], [], [], 40)[0], "no answer while the input pauses"
    return stream.readline()


def test_nasty_lines_through_a_pipe_that_pauses(tiny_model: Path) -> None:
    with started("--model", tiny_model, "--device", "cpu") as (process, stdin, stdout, _):
        stdin.write(b"the dog\n")
        stdin.flush()
        first = answer(stdout)
        assert first.endswith(b"\n") and process.poll() is None
        out, err = process.communicate(b"\n".join(NASTY), timeout=60)
    assert process.returncode == 0
    assert out.count(b"\n") == len(NASTY)
    found = out.decode().split("\n")[:-1]
    assert found[:3] == ["", "", ""], "empty and blank lines stay empty"
    assert err.decode() == "4 invalid UTF-8 sequences in 2 lines were read as U+FFFD; check the encoding of the input\n"
    texts = [line.decode(errors="replace").removeprefix("\ufeff") for line in NASTY]
    assert found == Translator.load(tiny_model, device="cpu").translate(texts), "in order"


def test_a_reader_that_goes_away(tiny_model: Path) -> None:
    with started("--model", tiny_model, "--device", "cpu") as (process, stdin, stdout, stderr):
        stdin.write(b"the dog\n")
        stdin.flush()
        answer(stdout)
        stdout.close()
        stdin.write(b"the dog\n" * 100)
        stdin.close()
        assert process.wait(60) == 0
        assert stderr.read() == b""


@pytest.fixture(scope="module")
def sentences(toy_pairs: list[tuple[str, str]]) -> list[str]:
    return [source for source, _ in toy_pairs[:9]]


def test_python_and_command_agree(run: Any, tiny_model: Path, sentences: list[str]) -> None:
    stdin = "".join(f"{line}\n" for line in sentences).encode()
    code, out, err = run(main, "--model", tiny_model, "--device", "cpu", stdin=stdin)
    assert (code, err) == (0, "")
    expected = Translator.load(tiny_model, device="cpu").translate(sentences)
    assert out == "".join(f"{line}\n" for line in expected)
    # The last line need not end in a newline.
    assert run(main, "--model", tiny_model, "--device", "cpu", stdin=stdin.removesuffix(b"\n")).out == out
    small = run(main, "--model", tiny_model, "--device", "cpu", "--batch-tokens", "1", "--threads", "1", stdin=stdin)
    assert small.out == out


def test_no_input_no_output(run: Any, tiny_model: Path) -> None:
    assert run(main, "--model", tiny_model) == (0, "", "")
    assert run(main, "--model", tiny_model, stdin=b"\n\n") == (0, "\n\n", "")


def test_more_than_one_window(run: Any, tiny_model: Path) -> None:
    code, out, _ = run(main, "--model", tiny_model, "--beam-size", "1", stdin=b"\n" * (WINDOW + 5) + b"the dog\n")
    assert code == 0
    assert out.startswith("\n" * (WINDOW + 5)) and out.count("\n") == WINDOW + 6


def test_scores(run: Any, tiny_model: Path, sentences: list[str]) -> None:
    stdin = "\n".join([*sentences, ""]).encode()
    expected = Translator.load(tiny_model, device="cpu").translate_n_best([*sentences, ""][:-1])
    out = run(main, "--model", tiny_model, "--device", "cpu", "--scores", stdin=stdin).out
    for line, translation in zip(out.split("\n")[:-1], expected, strict=True):
        score, text = line.split("\t", 1)
        assert text == translation.texts[0]
        assert float(score) == pytest.approx(translation.scores[0], abs=2e-4)


def test_n_best_prints_n_lines_for_each(run: Any, tiny_model: Path) -> None:
    stdin = b"the dog\n\nthe apple\n" + b"the old dog. " * 80
    for flags in (["--scores"], []):
        out = run(main, "--model", tiny_model, "--device", "cpu", "--n-best", "3", *flags, stdin=stdin).out
        assert out.count("\n") == 4 * 3
        lines = out.split("\n")
        if flags:
            scores = [float(line.split("\t")[0]) for line in lines[:-1]]
            assert scores[:3] == sorted(scores[:3], reverse=True) and scores[0] > -math.inf
            assert scores[4:6] == scores[10:] == [-math.inf] * 2, "one empty line, one that was split"
        else:
            assert lines[3:6] == ["", "", ""]


def test_jsonl(run: Any, tiny_model: Path) -> None:
    stdin = b"the dog\n\n" + b"caf\xe9 \xe9\n" + b"the old dog. " * 80 + "\nü\u2028\n".encode()
    out = run(main, "--model", tiny_model, "--device", "cpu", "--jsonl", stdin=stdin).out
    assert out.count("\n") == 5
    rows = [json.loads(line) for line in out.split("\n")[:-1]]
    assert [row["status"] for row in rows] == ["ok", "empty", "ok", "split", "ok"]
    assert [row.get("replaced") for row in rows] == [None, None, 2, None, None]
    assert all(isinstance(row["text"], str) and row["score"] <= 0 for row in rows)
    assert rows[1]["text"] == ""
    assert "hypotheses" not in rows[0]
    several = run(main, "--model", tiny_model, "--device", "cpu", "--jsonl", "--n-best", "2", stdin=b"the dog\n").out
    row = json.loads(several)
    assert row["text"] == rows[0]["text"] == row["hypotheses"][0]["text"]
    assert len(row["hypotheses"]) == 2


def test_a_missing_gpu_is_told(run: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    code, out, err = run(main, "--model", tiny_model, "--device", "cuda", stdin=b"the dog\n")
    assert (code, out.count("\n")) == (0, 1)
    assert err == "no device cuda here (GPUs found: 0); going on with the CPU\n"
