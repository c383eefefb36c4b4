"""Packed sequences: the tokens of all sentences as rows, one after another, with no pads between.

Shapes: N packed rows, B sentences, L length of the longest, ... anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each of B sentences lies in N packed rows: `lengths` [B], int64, all at least 1."""

    lengths: Tensor
    max_length: int
    total: int

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
        """Whether all sentences are equally long, so that padded and packed rows are the same."""
        return self.total == self.batch_size * self.max_length

    @cached_property
    def starts(self) -> Tensor:
        """The first row of each sentence, [B]."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def positions(self) -> Tensor:
        """The position of each row in its sentence, from 0, [N]."""
        rows = torch.arange(self.total, device=self.lengths.device)
        return rows - self.starts.repeat_interleave(self.lengths, output_size=self.total)

    @cached_property
    def padded_index(self) -> Tensor:
        """The place of each row in the flattened padded grid, [N] of values below B·L."""
        sentence = torch.arange(self.batch_size, device=self.lengths.device)
        return (sentence * self.max_length).repeat_interleave(self.lengths, output_size=self.total) + self.positions

    @cached_property
    def mask(self) -> Tensor:
        """True where the padded grid holds a token, [B, L]."""
        return torch.arange(self.max_length, device=self.lengths.device) < self.lengths[:, None]

    def unpack(self, rows: Tensor) -> Tensor:
        """Packed rows [N, ...] as a padded grid [B, L, ...], zeros at the pads."""
        shape = (self.batch_size, self.max_length, *rows.shape[1:])
        if self.is_rectangular:
            return rows.view(shape)
        grid = rows.new_zeros((self.batch_size * self.max_length, *rows.shape[1:]))
        return grid.index_copy(0, self.padded_index, rows).view(shape)

    def pack(self, grid: Tensor) -> Tensor:
        """A padded grid [B, L, ...] as packed rows [N, ...]."""
        rows = grid.reshape(-1, *grid.shape[2:])
        return rows if self.is_rectangular else rows.index_select(0, self.padded_index)

    def to(self, device: torch.device) -> Layout:
        """The same layout on another device."""
        return Layout(self.lengths.to(device, non_blocking=True), self.max_length, self.total)

    def pinned(self) -> Layout:
        """The same layout in page-locked memory."""
        return Layout(self.lengths.pin_memory(), self.max_length, self.total)
