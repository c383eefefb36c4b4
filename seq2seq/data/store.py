"""Encoded pairs on disk: flat arrays of token ids with offsets, memory-mapped; no Python object per sentence.

Beside the arrays are checksums of their blocks: nothing is used of a block that was not verified against its own.
"""

from __future__ import annotations

import hashlib
import mmap
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seq2seq.data.tokenizer import EOS
from seq2seq.support.errors import UserError
from seq2seq.support.files import read_json, sha256_of_json, write_json

SIDES = ("source", "target")
CHECKSUMS = "checksums.json"
FORMAT = 3
"""Incremented whenever what a store holds changes, so that older stores are rebuilt."""
BLOCK = 1 << 16
"""Bytes per checksum. A first batch touches as many blocks as it has sentences, so small blocks let it start sooner."""


class CheckedArray:
    """A memory-mapped one-dimensional .npy file; call `check` on elements before reading them.

    CRC-32 misses no damage within 32 consecutive bits, and one case in 2^32 of any other. Raises UserError for a
    file whose size is not the recorded one, or whose header is damaged.
    """

    def __init__(self, path: Path, recorded: dict[str, Any]) -> None:
        self._path = path
        with path.open("rb") as file:
            self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if len(self._bytes) != recorded["bytes"]:
            raise damaged(path.parent, f"{path.name} has {len(self._bytes):,} bytes, not {recorded['bytes']:,}")
        self._crc32 = np.frombuffer(bytes.fromhex(recorded["crc32"]), ">u4")
        self._unchecked = np.ones(len(self._crc32), bool)
        self._check_block(0)
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        self._header = mapped.offset
        assert self._header <= BLOCK, "the header must lie in the first block"
        # A plain array: each slice of a memmap costs a microsecond of Python.
        self.array: NDArray[Any] = np.asarray(mapped)

    def check(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Check the blocks that hold elements starts[i] to ends[i] - 1, unless they were checked before.

        Raises UserError with the file and the bytes of a damaged block.
        """
        if not self._unchecked.any():
            return
        count, size = len(self._unchecked) + 1, self.array.itemsize
        first, last = (self._header + starts * size) // BLOCK, (self._header + ends * size - 1) // BLOCK
        depth = (np.bincount(first, minlength=count) - np.bincount(last + 1, minlength=count)).cumsum()
        for block in np.flatnonzero(self._unchecked & (depth[:-1] > 0)):
            self._check_block(int(block))

    def checked(self) -> NDArray[Any]:
        """The array, all of it checked."""
        for block in np.flatnonzero(self._unchecked):
            self._check_block(int(block))
        return self.array

    def _check_block(self, block: int) -> None:
        data = self._bytes[block * BLOCK : (block + 1) * BLOCK]
        if zlib.crc32(data) != self._crc32[block]:
            start, found = block * BLOCK, f"CRC-32 {zlib.crc32(data):08x}, not {self._crc32[block]:08x}"
            what = f"{self._path.name}: block {block}, bytes {start:,} to {start + len(data) - 1:,}, has {found}"
            raise damaged(self._path.parent, what)
        self._unchecked[block] = False


class Store:
    """The encoded pairs of one split; every sentence ends in eos.

    `lengths` are the token counts of sources and targets, [pairs] each, eos counted; uint16 where they fit, else int32,
    and memory-mapped, not copied. `sha256` is the hash of tokens and offsets as they were written.

    Raises UserError when the store is missing or damaged; damaged tokens are found when they are first read.
    """

    def __init__(self, directory: Path) -> None:
        try:
            recorded = read_json(directory / CHECKSUMS)
            files = recorded["files"]
            if recorded["sha256"] != sha256_of_json(files):
                raise ValueError(f"{CHECKSUMS} does not match the hash that it records")
            self._tokens, offsets, lengths = (
                [CheckedArray(directory / name, files[name]) for name in (f"{side}.{kind}.npy" for side in SIDES)]
                for kind in ("tokens", "offsets", "lengths")
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(directory, str(error)) from None
        self._offsets = [side.checked() for side in offsets]
        self.lengths = [side.checked() for side in lengths]
        hashed = sorted(name for name in files if "lengths" not in name)
        self.sha256 = sha256_of_json([files[name]["sha256"] for name in hashed])

    def __len__(self) -> int:
        return len(self.lengths[0])

    def gather(self, side: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens of these sentences of a side (0 source, 1 target), one after another.

        Raises UserError when they are damaged on disk.
        """
        lengths, starts = self.lengths[side][pairs].astype(np.int64), self._offsets[side][pairs]
        self._tokens[side].check(starts, starts + lengths)
        shift = starts - (lengths.cumsum() - lengths)
        return self._tokens[side].array[np.arange(lengths.sum()) + shift.repeat(lengths)].astype(np.int64)


class StoreWriter:
    """Writes a store in blocks of encoded sentences; `finish` completes it."""

    def __init__(self, directory: Path, vocab_size: int) -> None:
        self._directory = directory
        self._dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
        self._tokens = [(directory / f"{side}.tokens.npy").open("wb") for side in SIDES]
        for side in (0, 1):
            self._write_header(side, 0)
        self._lengths: list[list[NDArray[np.int32]]] = [[], []]

    def write(self, side: int, tokens: NDArray[Any], lengths: NDArray[Any]) -> None:
        """Append the sentences of a block: their tokens one after another, and the length of each, at least 1."""
        self._tokens[side].write(tokens.astype(self._dtype).tobytes())
        self._lengths[side].append(lengths.astype(np.int32))

    def finish(self) -> None:
        """Write the arrays under their final names, and their checksums beside them."""
        files = {}
        for side, name in enumerate(SIDES):
            lengths = np.concatenate([np.zeros(0, np.int32), *self._lengths[side]])
            offsets = np.concatenate([np.zeros(1, np.int64), lengths.cumsum(dtype=np.int64)])
            fits = lengths.max(initial=0) < 1 << 16
            # In its place: NumPy leaves room for a longer first axis.
            self._tokens[side].seek(0)
            self._write_header(side, int(offsets[-1]))
            self._tokens[side].close()
            np.save(self._directory / f"{name}.offsets.npy", offsets, allow_pickle=False)
            np.save(self._directory / f"{name}.lengths.npy", lengths.astype(np.uint16) if fits else lengths)
            for kind in ("tokens", "offsets", "lengths"):
                files[f"{name}.{kind}.npy"] = _checksums(self._directory / f"{name}.{kind}.npy")
        write_json(self._directory / CHECKSUMS, {"files": files, "sha256": sha256_of_json(files)})

    def _write_header(self, side: int, count: int) -> None:
        header = {"descr": np.dtype(self._dtype).str, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(self._tokens[side], header)


def write_store(directory: Path, blocks: Iterable[tuple[list[list[int]], list[list[int]]]], vocab_size: int) -> None:
    """Write blocks of encoded (sources, targets), eos added to each sentence."""
    writer = StoreWriter(directory, vocab_size)
    for block in blocks:
        for side in (0, 1):
            tokens: list[int] = []
            for sentence in block[side]:
                tokens += sentence
                tokens.append(EOS)
            lengths = np.fromiter(map(len, block[side]), np.int32, len(block[side])) + 1
            writer.write(side, np.fromiter(tokens, np.uint32, len(tokens)), lengths)
    writer.finish()


def _checksums(path: Path) -> dict[str, Any]:
    """What is recorded about a file: its size, its SHA-256, and the CRC-32 of each block, eight hex digits each."""
    digest, sums = hashlib.sha256(), []
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            sums.append(f"{zlib.crc32(block):08x}")
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest(), "crc32": "".join(sums)}


def damaged(directory: Path, what: str) -> UserError:
    """The error for prepared data that are not as they were written."""
    return UserError(
        f"{directory}: prepared data missing or damaged ({what}); delete the directory and type the command again"
    )
