"""The line contract: any bytes, as many lines out as in; a pause gets its answer."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from seq2seq.translate import lines
from seq2seq.translate.lines import decode, windows

BYTES = st.binary() | st.lists(st.sampled_from([b"\n", b"\r", b"a", b"\xff", "ü\u2028".encode(), b"\0"])).map(b"".join)


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb", buffering=0) as writer:
        yield reader, writer


def read_file(content: bytes, size: int) -> list[list[bytes]]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        return list(windows(file, size))


def read_pipe(content: bytes, size: int) -> list[list[bytes]]:
    read, write = os.pipe()
    os.write(write, content)
    os.close(write)
    with os.fdopen(read, "rb") as reader:
        return list(windows(reader, size))


@given(content=BYTES, size=st.integers(1, 5), through_pipe=st.booleans())
@example(content=b"", size=3, through_pipe=False)
@example(content=b"\n", size=3, through_pipe=False)
@example(content=b"a\n\nb", size=3, through_pipe=True)
@example(content=b"\n\n\n\n", size=2, through_pipe=True)
def test_joined_windows_are_the_input(content: bytes, size: int, through_pipe: bool) -> None:
    found = (read_pipe if through_pipe else read_file)(content, size)
    flat = list(chain.from_iterable(found))
    ends = content.endswith(b"\n") or not content
    assert len(flat) == content.count(b"\n") + (not ends), "N lines in, N lines out"
    assert b"".join(line + b"\n" for line in flat) == content + (b"" if ends else b"\n")
    assert all(0 < len(window) <= size for window in found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"a\n", mtime=0), "compressed by gzip.* zcat FILE"),
        (lzma.compress(b"a\n"), "compressed by xz.* xzcat FILE"),
        (bz2.compress(b"a\n", 1), "compressed by bzip2.* bzcat FILE"),
        (zstandard.compress(b"a\n"), "compressed by zstd.* zstdcat FILE"),
        ("a\n".encode("utf-16"), "UTF-16.* iconv"),
    ],
    ids=["gzip", "xz", "bzip2", "zstd", "UTF-16"],
)
def test_of_what_looks_like_no_text_a_line_tells(
    content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(chain.from_iterable(read_pipe(content, 5))) == content.removesuffix(b"\n").split(b"\n")
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    read_pipe(b"a\n" + content, 5)
    assert not capsys.readouterr().err


def test_a_file_comes_in_windows_that_double_up_to_full_ones() -> None:
    content = b"".join(b"%d\n" % number for number in range(20_000))
    sizes = [256, 512, 1024, 2048, *[4096] * 3]
    assert [len(window) for window in read_file(content, 4096)] == [*sizes, 20_000 - sum(sizes)]


def test_a_line_longer_than_any_buffer() -> None:
    long = b"x" * 300_000
    assert read_file(long + b"\nb\n" + long, 10) == [[long, b"b", long]]


def test_a_pause_gets_its_answer(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    reader, writer = pipe
    found = windows(reader)
    late = threading.Timer(10, writer.close)  # Without an answer the test shall fail, not wait for ever.
    late.start()
    writer.write(b"a\nb\nhalf")
    assert next(found) == [b"a", b"b"]
    writer.write(b" a line\n")
    assert next(found) == [b"half a line"]
    writer.write(b"last")
    late.cancel()
    writer.close()
    assert list(found) == [[b"last"]]


def test_a_pipe_that_does_not_block_is_waited_for(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    reader, writer = pipe
    os.set_blocking(reader.fileno(), False)
    later = threading.Timer(0.1, lambda: (writer.write(b"a\nb"), writer.close()))
    later.start()
    assert list(chain.from_iterable(windows(reader))) == [b"a", b"b"]
    later.join()


def test_half_a_line_waits_for_the_rest(pipe: tuple[BinaryIO, BinaryIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "PAUSE_SECONDS", 0.001)
    reader, writer = pipe
    found: list[list[bytes]] = []
    thread = threading.Thread(target=lambda: found.extend(windows(reader)))
    thread.start()
    for byte in "grün\nblau".encode():
        writer.write(bytes([byte]))
        time.sleep(0.003)
    writer.close()
    thread.join(10)
    assert list(chain.from_iterable(found)) == ["grün".encode(), b"blau"]


def test_fast_input_is_gathered_into_one_window(
    pipe: tuple[BinaryIO, BinaryIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without it each line of `while read …; do echo …; done | seq2seq-translate` would be a batch of its own.
    monkeypatch.setattr(lines, "PAUSE_SECONDS", 5.0)
    reader, writer = pipe

    def write() -> None:
        for number in range(20):
            writer.write(b"%d\n" % number)
            time.sleep(0.002)
        writer.close()

    thread = threading.Thread(target=write)
    thread.start()
    assert list(windows(reader)) == [[b"%d" % number for number in range(20)]]
    thread.join()


@given(text=st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
def test_text_is_decoded_as_it_is(text: str) -> None:
    assert decode(text.encode()) == (text.removeprefix("\ufeff"), 0)


@given(line=BYTES)
def test_any_bytes_are_decoded(line: bytes) -> None:
    text, replaced = decode(line)
    assert text.encode().decode() == text
    assert (replaced > 0) == (line.decode("utf-8", errors="ignore").encode() != line)


@pytest.mark.parametrize(
    ("line", "text", "replaced"),
    [
        (b"\xef\xbb\xbfBOM", "BOM", 0),
        (b"\xef\xbb\xbfcaf\xe9", "caf\ufffd", 1),
        ("\ufeff\ufeffa".encode(), "\ufeffa", 0),
        (b"caf\xe9 \xe9", "caf\ufffd \ufffd", 2),
        ("a \ufffd".encode(), "a \ufffd", 0),
        ("a \ufffd".encode() + b"\xff", "a \ufffd\ufffd", 1),
        (b"\xe2\x82", "\ufffd", 1),
        (b"a\0b\rc", "a\0b\rc", 0),
        (b"", "", 0),
    ],
)
def test_invalid_bytes_are_replaced_and_counted(line: bytes, text: str, replaced: int) -> None:
    assert decode(line) == (text, replaced)


def test_a_pause_before_the_first_line_makes_no_window() -> None:
    read, write = os.pipe()

    def late() -> None:
        os.write(write, b"a\n")
        os.close(write)

    later = threading.Timer(0.2, late)
    later.start()
    with os.fdopen(read, "rb") as reader:
        assert list(windows(reader)) == [[b"a"]]
    later.join()
