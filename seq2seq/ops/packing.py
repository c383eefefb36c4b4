"""Packed sequences: the tokens of all sentences as rows, one after another, with no padding in between.

Shapes: N packed rows, B sentences, L length of the longest, ... anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Layout:
    """Where each of B sentences lies in N = `total` packed rows: `lengths` [B], int64.

    The last `filler` rows belong to no sentence: nothing attends to them, and no loss counts them.
    """

    lengths: Tensor
    max_length: int
    total: int
    filler: int = 0

    @classmethod
    def of(cls, lengths: list[int], device: torch.device | None = None) -> Layout:
        """The layout of sentences of these lengths."""
        return cls(torch.tensor(lengths, dtype=torch.int64, device=device), max(lengths), sum(lengths))

    @property
    def batch_size(self) -> int:
        """B, the number of sentences."""
        return self.lengths.shape[0]

    @property
    def is_rectangular(self) -> bool:
        """Whether all sentences are equally long, so that padded and packed rows are the same.

        Always False in compiled code, which would need a second version for it.
        """
        if torch.compiler.is_compiling() or self.filler:
            return False
        return self.total == self.batch_size * self.max_length

    @cached_property
    def starts(self) -> Tensor:
        """The first row of each sentence, [B]."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """Where each sentence begins and the last one ends, [B + 1], int32, as kernels for packed rows take it."""
        return F.pad(self.lengths.cumsum(0, dtype=torch.int32), (1, 0))

    @cached_property
    def positions(self) -> Tensor:
        """The position of each row in its sentence, from 0, [N]; 0 for filler."""
        count = self.total - self.filler
        rows = torch.arange(count, device=self.lengths.device)
        return F.pad(rows - self.starts.repeat_interleave(self.lengths, output_size=count), (0, self.filler))

    @cached_property
    def padded_index(self) -> Tensor:
        """The index of each row in the flattened padded grid, [N], below B·L; for filler, the one after the grid."""
        first = torch.arange(self.batch_size, device=self.lengths.device) * self.max_length
        first_of_rows = first.repeat_interleave(self.lengths, output_size=self.total - self.filler)
        return F.pad(first_of_rows, (0, self.filler), value=self.batch_size * self.max_length) + self.positions

    @cached_property
    def mask(self) -> Tensor:
        """True where the padded grid holds a token, [B, L]."""
        return torch.arange(self.max_length, device=self.lengths.device) < self.lengths[:, None]

    @cached_property
    def lists(self) -> Tensor:
        """The rows of each sentence, [B, L], int32; −1 after the last."""
        places_L = torch.arange(self.max_length, dtype=torch.int32, device=self.lengths.device)
        return (self.starts.int()[:, None] + places_L).masked_fill(places_L >= self.lengths[:, None], -1)

    @cached_property
    def sentences(self) -> Tensor:
        """The sentence of each row, [N], int32; there must be no filler."""
        numbers_B = torch.arange(self.batch_size, dtype=torch.int32, device=self.lengths.device)
        return numbers_B.repeat_interleave(self.lengths, output_size=self.total)

    def unpack(self, rows: Tensor) -> Tensor:
        """Packed rows [N, ...] as a padded grid [B, L, ...], with zeros as padding."""
        shape = (self.batch_size, self.max_length, *rows.shape[1:])
        if self.is_rectangular:
            return rows.view(shape)
        size = self.batch_size * self.max_length
        grid = rows.new_zeros((size + 1, *rows.shape[1:]))
        return grid.index_copy(0, self.padded_index, rows)[:size].view(shape)

    def pack(self, grid: Tensor) -> Tensor:
        """A padded grid [B, L, ...] as packed rows [N, ...]; filler is a copy of the last grid position."""
        rows = grid.reshape(-1, *grid.shape[2:])
        return rows if self.is_rectangular else rows.index_select(0, self.padded_index.clamp(max=rows.shape[0] - 1))

    @property
    def missing(self) -> int:
        """Rows up to the next of a few standard totals, at most 1/32 more: there are 32 for each power of two."""
        return -self.total % (1 << max(0, self.total.bit_length() - 6))

    def parts(self, rows: int) -> list[Layout]:
        """The layouts of as few runs of sentences as have about `rows` rows each; there must be no filler."""
        count = -(-self.total // rows)
        sizes = (self.starts * count // self.total).unique_consecutive(return_counts=True)[1]
        return [Layout.of(lengths.tolist()) for lengths in self.lengths.split(sizes.tolist())]

    def rounded(self) -> Layout:
        """This layout with the missing rows as filler.

        oneDNN compiles code for each new matmul shape, which takes longer than the matmul itself.
        """
        return Layout(self.lengths, self.max_length, self.total + self.missing, self.missing)

    def bucketed(self, longest: int, count: int) -> Layout:
        """This layout with the missing rows as sentences of at most `longest` rows, and empty ones up to `count`."""
        whole, rest = divmod(self.missing, longest)
        added = [longest] * whole + [rest] * (rest > 0)
        added += [0] * (count - self.batch_size - len(added))
        lengths = torch.cat((self.lengths, torch.tensor(added, dtype=torch.int64)))
        return Layout(lengths, longest, self.total + self.missing)

    def precompute(self) -> None:
        """Compute everything that attention reads: compiled code cannot compute it lazily."""
        _ = self.cu_seqlens, self.padded_index, self.mask

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Layout:
        """The same layout on another device."""
        return Layout(self.lengths.to(device, non_blocking=non_blocking), self.max_length, self.total, self.filler)

    def pin_memory(self) -> Layout:
        """The same layout in page-locked memory."""
        return Layout(self.lengths.pin_memory(), self.max_length, self.total, self.filler)
