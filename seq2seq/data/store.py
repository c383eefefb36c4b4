"""Encoded pairs on disk: flat arrays of token ids with offsets, memory-mapped; no Python object per sentence."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seq2seq.support.errors import UserError

SIDES = ("source", "target")


class Store:
    """The encoded pairs of one split; every sentence ends in eos.

    `lengths` are the token counts of sources and targets, int32, [pairs] each, eos counted.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._tokens = [
                np.load(directory / f"{side}.tokens.npy", mmap_mode="r", allow_pickle=False) for side in SIDES
            ]
            self._offsets = [
                np.load(directory / f"{side}.offsets.npy", mmap_mode="r", allow_pickle=False) for side in SIDES
            ]
        except (OSError, ValueError) as error:
            raise UserError(
                f"{directory}: prepared data missing or damaged ({error}); "
                "delete the directory and type the command again"
            ) from None
        self.lengths = [np.diff(offsets).astype(np.int32) for offsets in self._offsets]

    def __len__(self) -> int:
        return len(self.lengths[0])

    def gather(self, side: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens of these sentences of a side (0 source, 1 target), one after another."""
        lengths = self.lengths[side][pairs].astype(np.int64)
        shift = self._offsets[side][pairs] - (lengths.cumsum() - lengths)
        return self._tokens[side][np.arange(lengths.sum()) + shift.repeat(lengths)].astype(np.int64)


class StoreWriter:
    """Writes a store by blocks of encoded sentences; `finish` makes it complete."""

    def __init__(self, directory: Path, vocab_size: int) -> None:
        self._directory = directory
        self._dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
        self._raw = [(directory / f"{side}.raw").open("wb") for side in SIDES]
        self._lengths: list[list[NDArray[np.int64]]] = [[], []]

    def write(self, side: int, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Append the sentences of a block: their tokens one after another, and the length of each."""
        self._raw[side].write(tokens.astype(self._dtype).tobytes())
        self._lengths[side].append(lengths)

    def finish(self) -> None:
        """Put the arrays under their names."""
        for side, name in enumerate(SIDES):
            self._raw[side].close()
            raw = self._directory / f"{name}.raw"
            offsets = np.concatenate([np.zeros(1, np.int64), *self._lengths[side]]).cumsum()
            header = {"descr": np.dtype(self._dtype).str, "fortran_order": False, "shape": (int(offsets[-1]),)}
            # Written, not mapped: on a full disk a write raises, where a page of a map kills the process.
            with raw.open("rb") as tokens, (self._directory / f"{name}.tokens.npy").open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                shutil.copyfileobj(tokens, file, 1 << 22)
            np.save(self._directory / f"{name}.offsets.npy", offsets, allow_pickle=False)
            raw.unlink()


def write_store(
    directory: Path, blocks: Iterable[tuple[list[list[int]], list[list[int]]]], vocab_size: int, eos: int
) -> None:
    """Write blocks of encoded (sources, targets), eos added to each sentence."""
    writer = StoreWriter(directory, vocab_size)
    for block in blocks:
        for side in (0, 1):
            lengths = np.array([len(sentence) + 1 for sentence in block[side]], np.int64)
            tokens = np.array([token for sentence in block[side] for token in (*sentence, eos)], np.int64)
            writer.write(side, tokens, lengths)
    writer.finish()
