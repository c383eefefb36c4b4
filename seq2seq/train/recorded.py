"""Passes of training as CUDA graphs: forward and backward in one call, in place of a thousand launches.

A processor can take longer to launch the kernels of an update than a GPU to compute them. Batches come in few shapes
(`data.batches.Batch.regular`); of each, the second one is recorded, and those after it only copy their tokens in.
Gradients are added to tensors that stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from seq2seq.data.batches import Batch
from seq2seq.ops.graphs import Recorded
from seq2seq.ops.short_attention import LONGEST

Pass = Callable[[Batch, Tensor], Tensor]
"""Adds the gradients of a batch's loss times a scale [] to the weights', and returns figures of it."""

SHAPES = 256
"""Of batches that are recorded: each takes some of a GPU's memory."""


class RecordedPasses:
    """What `function` does with a batch, from its second of a shape on as a graph."""

    def __init__(self, function: Pass, model: nn.Module, device: torch.device) -> None:
        self.function, self.device = function, device
        self.scale = torch.zeros((), device=device)
        self.graphs: dict[tuple[int, ...], tuple[Batch, Recorded[Tensor]]] = {}
        self._met: set[tuple[int, ...]] = set()
        self._room = SHAPES
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def __call__(self, batch: Batch, scale: float) -> Tensor:
        """The figures of this batch, which hold until the next call; its gradients are in the weights'."""
        self.scale.fill_(scale)
        shape = batch.shape
        if shape not in self.graphs and not self._is_recorded(batch):
            return self.function(batch.to(self.device), self.scale)
        own, graph = self.graphs[shape]
        for to, given in zip(own.tensors, batch.tensors, strict=True):
            to.copy_(given, non_blocking=True)
        return graph()

    def _is_recorded(self, batch: Batch) -> bool:
        """Record what is to be done for batches of this shape, if it comes again and there is room."""
        shape = batch.shape
        longest = max(batch.source_layout.max_length, batch.target_layout.max_length)
        if shape not in self._met or len(self.graphs) >= self._room or longest > LONGEST:
            self._met.add(shape)
            return False
        own = batch.to(self.device)
        graph = Recorded(lambda: self.function(own, self.scale), self.device, self._pool, try_first=False)
        self.graphs[shape] = own, graph
        if self.device.type == "cuda" and not graph.is_recorded:
            # The next would fail as well.
            self._room = 0
        return True
