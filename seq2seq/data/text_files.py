"""Text files as bytes, decompressed by their suffix and split on `\n` only."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from seq2seq.support.errors import UserError, nearest
from seq2seq.support.progress import bar

SUFFIXES = (".gz", ".xz", ".bz2", ".zst")
BLANKS = " \t\r\n"
MAX_LINE_BYTES = 1 << 24
"""Bytes of the longest line accepted: a longer one is no sentence, and one of 1 GB would take several GB of memory."""
ZSTD_INPUT = 1 << 11
"""Bytes decompressed at once: four of them may become 128 KiB, so 2 KiB no more than 64 MiB."""


def require(path: Path) -> None:
    """Raise UserError, with the closest existing name, unless `path` is a file."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: a folder, pipe or device; give the name of a file")
    if not path.is_file():
        siblings = [item.name for item in path.parent.glob("[!.]*") if item.is_file()]
        raise UserError(f"{path}: no such file{nearest(path.name, siblings) if siblings else ''}")


def decompressed(file: IO[bytes], suffix: str) -> IO[bytes]:
    """The content of an open file, decompressed by its suffix (.gz, .xz, .bz2, .zst)."""
    match suffix:
        case ".gz":
            return cast(IO[bytes], gzip.open(file))
        case ".xz":
            return lzma.open(file)
        case ".bz2":
            return bz2.open(file)
        case ".zst":
            return io.BufferedReader(_Zstd(file), 1 << 20)
        case _:
            return file


class _Zstd(io.RawIOBase):
    """The bytes of all frames of a .zst file; zstandard's own reader reports no error for a truncated file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._inside = False
        self._rest = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._ready:
            block = self._rest or self._file.read(ZSTD_INPUT)
            if not block:
                if self._inside:
                    raise EOFError("it ends inside a frame")
                return 0
            self._ready, self._inside = self._frame.decompress(block), True
            self._rest = self._frame.unused_data
            if self._frame.eof:
                self._frame, self._inside = zstandard.ZstdDecompressor().decompressobj(), False
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def read_lines(path: Path, *, is_table: bool = False) -> Iterator[str]:
    """The lines of a UTF-8 file, split on `\n` only, without byte-order mark and outer blanks; a table keeps its tabs.

    Raises UserError with file, line and byte for invalid UTF-8, and for a damaged compressed file or a line too long.
    """
    require(path)
    number = 0
    try:
        with path.open("rb") as file, bar(f"reading {path.name}", path.stat().st_size, unit="bytes") as progress:
            stream = decompressed(file, path.suffix)
            for number, line in enumerate(iter(partial(stream.readline, MAX_LINE_BYTES + 1), b""), 1):
                if len(line) > MAX_LINE_BYTES:
                    raise UserError(
                        f"{path}:{number}: the line has more than {MAX_LINE_BYTES:,} bytes: no sentence is that long; "
                        "are its lines separated by something other than newlines, or is it no text file?"
                    )
                if number % 1000 == 0:
                    progress.update(file.tell() - progress.n)
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                yield text.decode("utf-8").strip(" \r\n" if is_table else BLANKS)
    except UnicodeDecodeError as error:
        encoding = "utf-16" if number == 1 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        raise UserError(
            f"{path}:{number}: byte {error.start + 1} of the line (0x{error.object[error.start]:02x}) is not UTF-8; "
            f"convert the file, for example: iconv -f {encoding} -t utf-8 {path.name}"
        ) from None
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{path}:{number + 1}: the compressed file is damaged: {error}") from None
