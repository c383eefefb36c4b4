"""Training passes as CUDA graphs: forward and backward in one call, instead of a thousand kernel launches.

A CPU can take longer to launch the kernels of an update than a GPU to run them. Batches come in few shapes
(`bucketed`); the second batch of each shape is recorded, and those after it only copy their tokens in. Gradients are
added to, or written over, tensors that stay in place. Graphs, and the passes that are not recorded, take turns in one
memory pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seq2seq.data.batches import Batch
from seq2seq.ops.gpu import next_power_of_2
from seq2seq.ops.graphs import GraphMemoryPool, Recorded
from seq2seq.ops.short_attention import LONGEST
from seq2seq.support.progress import say

Loss = Callable[[Batch], tuple[Tensor, Tensor]]
"""Returns a batch's loss [], and its sums of loss and nll, [2]."""

SHAPES = 256
"""The most passes that are recorded: each graph takes some of a GPU's memory."""
ALIGNED = 64
"""Numbers of 4 bytes: kernels read vectors of them only where the first has such an address."""


def is_short(batch: Batch) -> bool:
    """Whether these sentences are short enough for the attention that a graph can hold (`ops.short_attention`)."""
    return max(batch.source_layout.max_length, batch.target_layout.max_length) <= LONGEST


def bucketed(batch: Batch, limits: tuple[int | None, int | None] = (None, None)) -> Batch:
    """The same pairs in one of few shapes, with sentences of zeros at the end; unchanged if they are not short.

    `limits` are the longest source and target, eos counted, that the model can take (None: any).
    """
    if not is_short(batch):
        return batch
    layouts = batch.source_layout, batch.target_layout
    rounded = [max(16, next_power_of_2(layout.max_length)) for layout in layouts]
    longest = [most if limit is None else min(most, limit) for most, limit in zip(rounded, limits, strict=True)]
    added = max(-(-layout.missing // most) for layout, most in zip(layouts, longest, strict=True))
    count = next_power_of_2(batch.source_layout.batch_size + added)
    source, target = (layout.bucketed(most, count) for layout, most in zip(layouts, longest, strict=True))
    return batch.extended(source, target)


class RecordedPasses:
    """Computes the gradients of a batch's loss, times a scale; records the second batch of each shape.

    `loss` may compute with `working`, a copy of the model; what the two do not share is copied before each pass.
    """

    def __init__(self, loss: Loss, model: nn.Module, device: torch.device, working: nn.Module | None = None) -> None:
        self.loss, self.device = loss, device
        pairs = list(zip((working or model).parameters(), model.parameters(), strict=True))
        self._copied = [pair for pair in pairs if pair[0] is not pair[1]]
        self._computed_with = [copied for copied, _ in pairs if copied.requires_grad]
        self.weights = [weight for _, weight in pairs if weight.requires_grad]
        # One tensor, which ranks send in one piece; each gradient begins where vectors may.
        sizes = [-(-weight.numel() // ALIGNED) * ALIGNED for weight in self.weights]
        self.all_gradients = torch.zeros(sum(sizes), device=device)
        self.gradients = [
            part[: weight.numel()].view_as(weight)
            for part, weight in zip(self.all_gradients.split(sizes), self.weights, strict=True)
        ]
        self.scale = torch.zeros((), device=device)
        self.graphs: dict[tuple[tuple[int, ...], bool], tuple[Batch, Recorded[Tensor]]] = {}
        self._met: set[tuple[tuple[int, ...], bool]] = set()
        self._room = SHAPES
        self._memory = GraphMemoryPool(device)
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            weight.grad = gradient

    def __call__(self, batch: Batch, scale: float, *, adds: bool) -> Tensor:
        """The sums of this batch, valid until the next call.

        With `adds`, its gradients are added to the weights', otherwise written over them. The tensors of the weights'
        gradients must stay the same: never set them to None.
        """
        assert all(weight.grad is own for weight, own in zip(self.weights, self.gradients, strict=True))
        self.scale.fill_(scale)
        kind = batch.shape, adds
        if kind not in self.graphs and not self._record(batch, adds):
            return self._launched(batch, adds)
        own, graph = self.graphs[kind]
        for to, given in zip(own.tensors, batch.tensors, strict=True):
            to.copy_(given, non_blocking=True)
        return graph()

    def _launched(self, batch: Batch, adds: bool) -> Tensor:
        """A pass launched kernel by kernel; if memory runs out, once more with the memory of the graphs freed."""
        try:
            with self._memory.used():
                return self._compute(batch.to(self.device), adds=adds)
        except torch.OutOfMemoryError:
            if self._memory.id is None:
                raise
        # Not while the error is handled, which keeps what the pass computed.
        self.end()
        # The first try has drawn some of the random numbers that follow from the seed.
        torch.manual_seed(torch.initial_seed())
        return self._compute(batch.to(self.device), adds=adds)

    def end(self) -> bool:
        """Free what graphs hold, from now on launching kernels one by one; False if nothing is held."""
        if self._memory.id is None:
            return False
        what = f"too little memory on {self.device} for passes as graphs: their kernels are launched one by one"
        # All ranks wait for the slowest.
        say(what, of_any_rank=True)
        self._room = 0
        self.graphs.clear()
        self._memory.end()
        torch.cuda.empty_cache()
        return True

    def try_out(self, batch: Batch) -> None:
        """Compute a pass that changes nothing but gradients. Raises torch.OutOfMemoryError."""
        self._compute(batch.to(self.device), adds=False)

    def reserve(self, batch: Batch) -> None:
        """Take as much memory for all passes as that of this batch needs. Raises torch.OutOfMemoryError."""
        self._memory.reserve(lambda: self.try_out(batch))

    def _compute(self, batch: Batch, *, adds: bool) -> Tensor:
        with torch.no_grad():
            _all_at_once(torch._foreach_copy_, self._copied)
        loss, sums = self.loss(batch)
        found = torch.autograd.grad(loss * self.scale, self._computed_with)
        keep = torch._foreach_add_ if adds else torch._foreach_copy_
        pairs = list(zip(self.gradients, found, strict=True))
        for dtype in {gradient.dtype for gradient in found}:
            _all_at_once(keep, [pair for pair in pairs if pair[1].dtype is dtype])
        return sums

    def _record(self, batch: Batch, adds: bool) -> bool:
        """Record the pass for batches of this shape, if it was met before and there is room; returns whether it did."""
        kind = batch.shape, adds
        if kind not in self._met or len(self.graphs) >= self._room or not is_short(batch):
            self._met.add(kind)
            return False
        own = batch.to(self.device)
        graph = Recorded(lambda: self._compute(own, adds=adds), self.device, self._memory.id, try_first=False)
        if self.device.type == "cuda" and not graph.is_recorded:
            # The next recording would fail as well.
            self._room = 0
            if graph.parts_generator:
                self.graphs.clear()
                # For the allocator, this recording never ended: it would let nothing else use this memory.
                self._memory.end()
            return False
        self.graphs[kind] = own, graph
        return True


def _all_at_once(function: Callable[..., Any], pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """`function` of two lists, each of one format; if both are of the same, or to copy, few kernels do it."""
    if pairs:
        function(*map(list, zip(*pairs, strict=True)))
