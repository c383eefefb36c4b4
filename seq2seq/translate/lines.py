"""The line contract: N lines of any bytes in, N lines out, in order. Only `\\n` ends a line."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from typing import BinaryIO

from seq2seq.support.progress import say

WINDOW = 4096
FIRST_WINDOW = 256
"""Windows double from here on, so that the first output of a long input comes soon."""
PAUSE_SECONDS = 0.05
NOT_TEXT = {
    b"\x1f\x8b": ("compressed by gzip", "zcat"),
    b"\xfd7zXZ": ("compressed by xz", "xzcat"),
    **{b"BZh%d1AY&SY" % level: ("compressed by bzip2", "bzcat") for level in range(1, 10)},
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "zstdcat"),
    b"\xff\xfe": ("like UTF-16", "iconv -f utf-16 -t utf-8"),
    b"\xfe\xff": ("like UTF-16", "iconv -f utf-16 -t utf-8"),
}
"""How what is no UTF-8 text begins, what it is, and what makes text of it."""


def windows(stream: BinaryIO, size: int = WINDOW) -> Iterator[list[bytes]]:
    """The lines of a stream without their `\\n`, in lists of up to `size`; fewer at first, and when the input pauses.

    A last line without `\\n` counts; an empty stream has no lines. One line tells of a stream that looks like no text.
    """
    descriptor = stream.fileno()
    lines: list[bytes] = []
    rest: list[bytes] = []
    now = min(FIRST_WINDOW, size)
    begins = True
    while True:
        # Even without lines: a descriptor that does not block would have nothing to read.
        if not select.select([descriptor], [], [], PAUSE_SECONDS if lines else None)[0]:
            yield lines
            lines = []
            continue
        block = os.read(descriptor, 1 << 16)
        if not block:
            break
        if begins:
            _warn_of(block)
        begins = False
        first, *others = block.split(b"\n")
        rest.append(first)
        if others:
            lines += [b"".join(rest), *others[:-1]]
            rest = [others[-1]]
        while len(lines) >= now:
            yield lines[:now]
            lines, now = lines[now:], min(2 * now, size)
    last = b"".join(rest)
    if last:
        lines.append(last)
    if lines:
        yield lines


def _warn_of(block: bytes) -> None:
    for start, (what, command) in NOT_TEXT.items():
        if block.startswith(start):
            say(f"the input looks {what}, not like UTF-8 text; type {command} FILE | in front of this command")


def decode(line: bytes) -> tuple[str, int]:
    """The text of a line, and how many invalid byte sequences were replaced by U+FFFD.

    A byte-order mark is dropped from any line: files that were joined have one in the middle.
    """
    try:
        return line.decode("utf-8").removeprefix("\ufeff"), 0
    except UnicodeDecodeError:
        text = line.decode("utf-8", errors="replace")
        return text.removeprefix("\ufeff"), text.count("\ufffd") - line.count(b"\xef\xbf\xbd")
