"""Search steps of a Transformer decoder as CUDA graphs: one call in place of a hundred kernel launches.

The CPU takes longer to launch the kernels of a step than the GPU to run them. Here all that a step reads and writes has
a fixed place in an `Arena`, which is allocated once and serves all batches that fit into it; for each power of two of
rows a graph is recorded when first needed. Keys and values are laid out as in `row_cache.RowCache`.

Shapes: S slots, K hypotheses of each, R rows of a step (S · K, rounded up to a power of two), T steps, L source length;
D d_model, E keys and values of all heads.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from seq2seq.model.decoder_layer import Steps
from seq2seq.ops import gpu
from seq2seq.ops.gpu import next_power_of_2
from seq2seq.ops.graphs import Recorded
from seq2seq.ops.packing import Layout
from seq2seq.ops.row_attention import row_attention

STEPS, ROWS, ALL_ROWS = 32, 128, 1 << 17
"""Initial capacity: steps, target rows of each sentence, and at most so many target rows in all."""


class Arena:
    """The buffers that steps read and write, and the graphs recorded over them; for one search at a time.

    `sizes` are powers of two: sentences, rows of a step, steps, target rows, source rows, pieces of the longest source.
    """

    def __init__(self, sizes: tuple[int, ...], like: Tensor, layers: int) -> None:
        self.sizes = sizes
        sentences, rows, steps, target_rows, source_rows, longest = sizes
        self.past_RT = torch.full((rows, steps), -1, dtype=torch.int32, device=like.device)
        self.grown_RT = torch.full_like(self.past_RT, -1)
        self.own_R = torch.arange(rows, dtype=torch.int32, device=like.device)
        self.sentence_R = torch.zeros_like(self.own_R)
        self.places_R = torch.zeros(rows, dtype=torch.int64, device=like.device)
        self.lists_SL = self.past_RT.new_full((sentences, longest), -1)
        self.targets = [like.new_zeros(target_rows, like.shape[1]) for _ in range(layers)]
        self.sources = [like.new_zeros(source_rows, like.shape[1]) for _ in range(layers)]
        self.graphs: dict[int, tuple[Tensor, Recorded[Tensor]]] = {}
        self.pool = torch.cuda.graph_pool_handle() if like.is_cuda else None


class Holder:
    """A decoder's arena, once it has one, and the cache that uses it."""

    def __init__(self) -> None:
        self.arena: Arena | None = None
        self._user: weakref.ref[RecordedCache] | None = None

    def lend(self, arena: Arena, cache: RecordedCache) -> None:
        """Make this the arena, used by `cache` for as long as that exists."""
        self.arena, self._user = arena, weakref.ref(cache)

    @property
    def is_free(self) -> bool:
        """Whether no search is using the arena."""
        return self._user is None or self._user() is None

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of a decoder has weights of its own, which these graphs do not read.
        return Holder, ()


class RecordedCache:
    """A `row_cache.RowCache` in the arena that `holder` has, or in a larger one where that is too small."""

    def __init__(self, sources: list[Tensor], source: Layout, heads: int, holder: Holder) -> None:
        self.heads = heads
        self.slots, self.width, self.length, self.filled = source.batch_size, 1, 0, 0
        self.sentence_S = torch.arange(self.slots, dtype=torch.int32, device=source.lengths.device)
        slots = next_power_of_2(self.slots)
        # The last target row is where padding rows write.
        rows = min(ROWS * slots, ALL_ROWS)
        needed = slots, slots, STEPS, rows, next_power_of_2(source.total), next_power_of_2(source.max_length)
        known = needed if holder.arena is None else holder.arena.sizes
        if holder.arena is None or any(have < need for have, need in zip(known, needed, strict=True)):
            # Free the one that is too small first: there may not be memory for both.
            holder.arena = None
            holder.arena = Arena(tuple(map(max, known, needed)), sources[0], len(sources))
        self.holder, self.arena = holder, holder.arena
        holder.lend(self.arena, self)
        arena = self.arena
        for own_NE, source_NE in zip(arena.sources, sources, strict=True):
            own_NE[: source.total] = source_NE
        arena.lists_SL.fill_(-1)
        arena.lists_SL[: self.slots, : source.max_length] = source.lists
        arena.past_RT.fill_(-1)

    def advance(self, parents_SK: Tensor) -> None:
        """Make room for the next step, whose hypotheses have these parents."""
        count = parents_SK.numel()
        self._move(count)
        grow = grow_on_gpu if gpu.supports_inference(self.arena.targets[0]) else grow_reference
        grow(self.arena, parents_SK, self.sentence_S, self.width, self.filled, self.length)
        self.width = parents_SK.shape[1]
        self.filled += count
        self.length += 1

    def step(self, decoder: Steps, tokens_SK: Tensor, parents_SK: Tensor) -> Tensor:
        """Hidden rows [S, K, D] of these tokens, each of which extends one of its slot's hypotheses."""
        self.advance(parents_SK)
        x_SKD = decoder.embedded(tokens_SK, self.length - 1)
        arena, count = self.arena, tokens_SK.numel()
        rows = next_power_of_2(count)
        if rows not in arena.graphs:
            places, x_R1D = _Places(arena, rows, self.heads), x_SKD.new_zeros(rows, 1, x_SKD.shape[2])
            arena.graphs[rows] = x_R1D, Recorded(lambda: places.computed(decoder, x_R1D), x_SKD.device, arena.pool)
        x_R1D, graph = arena.graphs[rows]
        x_R1D[:count, 0] = x_SKD.flatten(0, 1)
        return graph()[:count].view(x_SKD.shape)

    def keep(self, slots: Tensor) -> None:
        """Keep only these slots."""
        past_SKT = self._past()[slots]
        self.slots = slots.shape[0]
        self._past().copy_(past_SKT)
        self.sentence_S = self.sentence_S[slots]

    def _past(self) -> Tensor:
        """The row lists of the hypotheses of the last step, [S, K, T]."""
        return self.arena.past_RT[: self.slots * self.width].view(self.slots, self.width, -1)

    def _move(self, count: int) -> None:
        """Move to a larger arena if the next step, of `count` rows, does not fit."""
        old = self.arena
        sentences, rows, steps, target_rows, *others = old.sizes
        sizes = (
            *(sentences, max(rows, next_power_of_2(count))),
            *(2 * steps if self.length == steps else steps, max(target_rows, next_power_of_2(self.filled + count + 1))),
            *others,
        )
        if sizes == old.sizes:
            return
        self.arena = new = Arena(sizes, old.targets[0], len(old.targets))
        self.holder.lend(new, self)
        new.past_RT[:rows, :steps] = old.past_RT
        new.lists_SL.copy_(old.lists_SL)
        for new_NE, old_NE in zip((*new.targets, *new.sources), (*old.targets, *old.sources), strict=True):
            new_NE[: old_NE.shape[0]] = old_NE


def grow_reference(arena: Arena, parents_SK: Tensor, sentence_S: Tensor, before: int, filled: int, length: int) -> None:
    """Write the lists, places and sentences of the hypotheses with these parents, each one of `before` of its slot.

    `filled` is the number of rows so far, `length` that of each hypothesis.
    """
    count, width = parents_SK.numel(), parents_SK.shape[1]
    past_SKT = arena.past_RT[: len(parents_SK) * before].unflatten(0, (-1, before))
    rows_R = filled + arena.own_R[:count]
    arena.grown_RT[:count] = past_SKT.gather(1, parents_SK[:, :, None].expand(-1, -1, past_SKT.shape[2])).flatten(0, 1)
    arena.grown_RT[:count, length] = rows_R
    arena.places_R.fill_(arena.targets[0].shape[0] - 1)
    arena.places_R[:count] = rows_R
    arena.sentence_R[:count] = sentence_S.repeat_interleave(width)


def grow_on_gpu(arena: Arena, parents_SK: Tensor, sentence_S: Tensor, before: int, filled: int, length: int) -> None:
    """The same by our kernel, which also writes lists for padding rows."""
    from seq2seq.ops import gpu_search_kernels

    count, width = parents_SK.numel(), parents_SK.shape[1]
    gpu_search_kernels.grown_lists[(next_power_of_2(count),)](
        arena.past_RT, parents_SK.contiguous(), sentence_S, arena.grown_RT, arena.places_R, arena.sentence_R,
        before, width, count, filled, length, arena.targets[0].shape[0] - 1, T=arena.past_RT.shape[1], num_warps=1,
    )  # fmt: skip


class _Places:
    """The parts of an arena that a graph of `rows` rows uses; nothing that belongs to a particular search."""

    def __init__(self, arena: Arena, rows: int, heads: int) -> None:
        # Tensors, not the arena itself: it holds the graph, which holds this.
        self.targets, self.sources, self.lists_SL = arena.targets, arena.sources, arena.lists_SL
        self.past_RT, self.grown_RT, self.own_R = arena.past_RT[:rows], arena.grown_RT[:rows], arena.own_R[:rows]
        self.places_R, self.sentence_R = arena.places_R[:rows], arena.sentence_R[:rows]
        self.heads = heads

    def computed(self, decoder: Steps, x_R1D: Tensor) -> Tensor:
        """Take over the extended lists; pass these rows through the layers."""
        # Lists are extended in another buffer, since several may extend the same one. Doing this twice is harmless.
        self.past_RT.copy_(self.grown_RT)
        return decoder.through_layers(self, x_R1D)

    def attend_target(self, layer: int, q_R1D: Tensor, keys_values_R1E: Tensor) -> Tensor:
        """Write a layer's keys and values; attend from each row to its past and itself: [R, 1, D]."""
        self.targets[layer].index_copy_(0, self.places_R, keys_values_R1E.flatten(0, 1))
        return self._attend(q_R1D, self.targets[layer], self.past_RT, self.own_R)

    def attend_source(self, layer: int, q_R1D: Tensor) -> Tensor:
        """Attend from each row to the source of its sentence: [R, 1, D]."""
        return self._attend(q_R1D, self.sources[layer], self.lists_SL, self.sentence_R)

    def _attend(self, q_R1D: Tensor, rows_NE: Tensor, lists: Tensor, list_of_R: Tensor) -> Tensor:
        return row_attention(q_R1D.flatten(0, 1), rows_NE, lists, list_of_R, self.heads)[:, None]
