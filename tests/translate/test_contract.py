"""N lines of any bytes in, N lines out, in order: through the whole of seq2seq-translate but the model.

A stand-in takes its place, so that many inputs can be tried: `make soak` tries ten thousand.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from seq2seq.cli import translate as command
from seq2seq.config.search import SearchConfig
from seq2seq.data.text_files import BLANKS
from seq2seq.data.tokenizer import EOS, Tokenizer
from seq2seq.ops.packing import Layout
from seq2seq.translate import lines
from seq2seq.translate.lines import windows
from seq2seq.translate.splitting import split
from seq2seq.translate.translator import Translator
from tests.processes import PATIENCE

LONGEST = 12
BITS = [
    *(b"\n", b"\n", b"\r", b"\r\n", b"\0", b" ", b"\t", b"\xff", b"\xe2\x80", b"\xef\xbb\xbf", b"\xed\xa0\x80"),
    *("ü\u2028\x85\x0b\x0c\x1c".encode(), "中文。".encode(), "🦊".encode(), b"</s>", b"<0x0A>", b"\\n", b'"}\\u000a'),
    *(b"the dog sees. ", b"the old tree. the man finds the river. ", b"x" * 99),
]
INPUTS = st.binary() | st.lists(st.sampled_from(BITS) | st.binary(max_size=5), max_size=40).map(b"".join)
HARD = [
    *(
        b"",
        b"\n",
        b"\r",
        b"\0",
        b"\xef\xbb\xbf",
        "\u2028".encode(),
        b"a\r\nb\r\n",
        b"a\n\nb",
        b"\n\n",
        b"\xff\xfea\0\n\0",
    ),
    *(b"a", b"\r\n", b"\xef\xbb\xbf\n\xef\xbb\xbfa", b"the dog. " * 9 + b"\n" + b"\xff" * 40, "\x85\n\u3000".encode()),
]


class Echo(nn.Module):
    """A stand-in for a model, whose output for a source is the piece `answer_to(source)` and then eos."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.output_weight = nn.Parameter(torch.empty(vocab_size, 1))
        self.device = torch.device("cpu")

    def answer_to(self, source: list[int]) -> int:
        first = self.output_weight.shape[0] - 20
        return first + sum(place * token for place, token in enumerate(source, 1)) % 20

    def encode(self, tokens: Tensor, layout: Layout) -> Tensor:
        parts = tokens.split(layout.lengths.tolist())
        return torch.tensor([self.answer_to(part.tolist()) for part in parts])

    def start(self, memory: Tensor) -> SimpleNamespace:
        return SimpleNamespace(answers=memory, step=0)

    def step(self, state: SimpleNamespace, tokens: Tensor, _: Tensor) -> Tensor:
        state.step += 1
        expected = state.answers[:, None].expand_as(tokens)
        return expected if state.step == 1 else torch.full_like(expected, EOS)

    def logits(self, hidden: Tensor) -> Tensor:
        # A few more pieces have a chance, or n-best lists would be of one.
        likely = nn.functional.one_hot(hidden, self.output_weight.shape[0]).float() * 9
        likely[..., -20:] += 1
        likely[..., EOS] += 2
        return likely

    def best(self, *_: object) -> None:
        """It is searched by its logits alone."""

    def keep(self, state: SimpleNamespace, slots: Tensor) -> None:
        state.answers = state.answers[slots]


@pytest.fixture(scope="module")
def translator(tiny_model: Path) -> Translator:
    tokenizer = Tokenizer.load(tiny_model / "tokenizer.model")
    search = SearchConfig(beam_size=3, max_length_ratio=0, max_length_offset=3, n_best=1)
    model: Any = Echo(tokenizer.vocab_size)
    return Translator(model, tokenizer, search, longest=LONGEST)


@contextmanager
def streams(content: bytes) -> Iterator[io.BytesIO]:
    """Standard input with this content, and what is written to standard output."""
    out = io.BytesIO()
    with tempfile.TemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        os.write(file.fileno(), content)
        file.seek(0)
        patch.setattr("sys.stdin", SimpleNamespace(buffer=file, isatty=lambda: False))
        patch.setattr("sys.stdout", SimpleNamespace(buffer=out))
        yield out


def output_of(translator: Translator, content: bytes, *flags: str) -> list[str]:
    """The lines that the command writes, each of which must end in a newline."""
    arguments: argparse.Namespace = command.options().parse_args(flags)
    translator.search = replace(translator.search, n_best=arguments.n_best or 1)
    with streams(content) as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "load_translator", lambda *_: translator)
        patch.setattr(lines, "windows", partial(windows, size=4))
        command.translate(arguments)
    *found, rest = out.getvalue().decode("utf-8").split("\n")
    assert rest == ""
    return found


def expected_of(translator: Translator, content: bytes) -> list[tuple[str, str | None]]:
    """Status and text of each line, computed line by line; the text of one that is split is not looked at."""
    *given, last = content.split(b"\n")
    found: list[tuple[str, str | None]] = []
    for line in [*given, last] if last else given:
        text = line.decode("utf-8", errors="replace").removeprefix("\ufeff").strip(BLANKS)
        parts = split(text, translator.tokenizer.count, LONGEST) if text.strip() else []
        if len(parts) == 1:
            model: Any = translator.model
            source = [*translator.tokenizer.encode(parts)[0], EOS]
            found.append(("ok", translator.tokenizer.decode([[model.answer_to(source)]])[0]))
        else:
            found.append(("split", None) if parts else ("empty", ""))
    return found


def is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def any_input(test: Any) -> Any:
    for content in HARD:
        test = example(content=content)(test)
    return given(content=INPUTS)(test)


@any_input
def test_text(translator: Translator, content: bytes) -> None:
    expected = expected_of(translator, content)
    found = output_of(translator, content)
    assert len(found) == len(expected), "N lines in, N lines out"
    assert all(text in (line, None) for line, (_, text) in zip(found, expected, strict=True)), "in order"


@any_input
def test_jsonl(translator: Translator, content: bytes) -> None:
    expected = expected_of(translator, content)
    rows = [json.loads(line) for line in output_of(translator, content, "--jsonl")]
    for row, line, (status, text) in zip(rows, content.split(b"\n"), expected, strict=False):
        flags = [*([] if status == "ok" else [status]), *([] if is_utf8(line) else ["replaced"])]
        assert row["status"] == (",".join(flags) or "ok")
        assert text in (row["text"], None)
        assert ("replaced" in row) != is_utf8(line)
    assert len(rows) == len(expected)


@any_input
def test_n_best(translator: Translator, content: bytes) -> None:
    expected = expected_of(translator, content)
    found = output_of(translator, content, "--n-best", "3", "--scores")
    assert len(found) == 3 * len(expected)
    for start, (status, text) in zip(range(0, len(found), 3), expected, strict=True):
        scores, texts = zip(*(line.split("\t", 1) for line in found[start : start + 3]), strict=True)
        assert list(map(float, scores)) == sorted(map(float, scores), reverse=True)
        assert text in (texts[0], None)
        assert (scores[1] == "-inf") == (status != "ok")
    rows = [json.loads(line) for line in output_of(translator, content, "--n-best", "3", "--jsonl")]
    assert [len(row["hypotheses"]) for row in rows] == [3 if status == "ok" else 1 for status, _ in expected]


# As processes, with a real model.


def process(model: Path, *flags: str) -> subprocess.Popen[bytes]:
    asked = [sys.executable, "-m", "seq2seq.cli.translate", "--model", str(model), "--device", "cpu", *flags]
    return subprocess.Popen(
        asked,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background job ignores it, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_it_at_once_with_130_and_no_trace(tiny_model: Path, workers: str) -> None:
    with process(tiny_model, "--workers", workers) as running:
        assert running.stdin and running.stdout and running.stderr
        running.stdin.write(b"the dog\n")
        running.stdin.flush()
        assert running.stdout.readline().endswith(b"\n")
        running.stdin.write(b"the old dog sees the red apple.\n" * 4000)
        running.stdin.flush()
        running.send_signal(signal.SIGINT)
        rest, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, err) == (130, b"")
    assert rest == b"" or rest.endswith(b"\n")


@pytest.mark.slow
def test_a_line_of_a_megabyte_takes_little_memory(tiny_model: Path) -> None:
    peaks = []
    for line in (b"the dog\n", b"the old dog sees the red apple. " * 32_768 + b"\n"):
        with process(tiny_model, "--beam-size", "1", "--workers", "1") as running:
            assert running.stdin and running.stdout and running.stderr
            running.stdin.write(line)
            running.stdin.close()
            out, err = running.stdout.read(), running.stderr.read()
            _, status, used = os.wait4(running.pid, 0)
            running.returncode = os.waitstatus_to_exitcode(status)
        # What takes longer than 15 seconds shows its progress.
        assert (running.returncode, re.sub(rb"\r[^\r\n]*", b"", err)) == (0, b"")
        assert out.count(b"\n") == 1
        peaks.append(used.ru_maxrss << 10)
    assert peaks[1] - peaks[0] < 500 << 20
