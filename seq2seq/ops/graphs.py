"""CUDA graphs: work that a GPU does again and again without the processor telling it each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

Result = TypeVar("Result")


class Recorded(Generic[Result]):
    """A function over tensors that stay where they are, recorded once; `result` is what it fills each time.

    What it does must be safe to do twice. Recorded graphs of one `pool` share the memory of their intermediate results,
    so that they may not run at the same time. Where there is no GPU it is simply called again.
    """

    def __init__(self, function: Callable[[], Result], device: torch.device, pool: Any = None) -> None:
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            self.result = function()
            return
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            # Kernels are compiled and libraries made ready where nothing is recorded.
            function()
            self.graph = torch.cuda.CUDAGraph()
            # Other threads may copy meanwhile: those that make batches ready.
            self.graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                self.result = function()
            finally:
                self.graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)

    def __call__(self) -> Result:
        """Do it again, with what its tensors hold now."""
        if self.graph is None:
            self.result = self.function()
        else:
            self.graph.replay()
        return self.result
