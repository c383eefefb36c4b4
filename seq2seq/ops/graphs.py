"""CUDA graphs: work that a GPU repeats without the CPU launching each step."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

import torch

from seq2seq.support.errors import first_line
from seq2seq.support.progress import say

Result = TypeVar("Result")


class Recorded(Generic[Result]):
    """A function over tensors that stay in place, recorded once; `result` is what it fills each time.

    Recording itself computes nothing; with `try_first` the function is called once before, so that kernels are compiled
    and libraries initialised: it must then be safe to run twice. Graphs of one `pool` share memory for intermediate
    results, so they must not run at the same time. Without a GPU, and where recording fails (there may be too little
    memory), which one line reports, the function is simply called each time.
    """

    result: Result

    def __init__(
        self, function: Callable[[], Result], device: torch.device, pool: Any = None, *, try_first: bool = True
    ) -> None:
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None
        self.parts_generator = False
        """Whether recording failed in a way that earlier graphs no longer draw the random numbers given by the seed."""
        if device.type != "cuda":
            return
        try:
            self.graph = self._recorded(device, pool, try_first)
        except RuntimeError as error:
            why = first_line(error)
            say(f"CUDA graph capture failed on {device} ({why}); launching its kernels one by one", of_any_rank=True)

    @property
    def is_recorded(self) -> bool:
        """Whether there is a graph."""
        return self.graph is not None

    def _recorded(self, device: torch.device, pool: Any, try_first: bool) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with _on_stream(device):
            if try_first:
                self.function()
            numbers = torch.cuda.get_rng_state(device)
            # Threads that prepare batches may copy meanwhile.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                self.result = self.function()
            except BaseException:
                # Report the first error, not one that it causes here.
                with contextlib.suppress(RuntimeError):
                    self._end(graph, device, numbers)
                raise
            self._end(graph, device, numbers)
        return graph

    def _end(self, graph: torch.cuda.CUDAGraph, device: torch.device, numbers: torch.Tensor) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            # The generator still belongs to the failed recording: it gets a new state, which no earlier graph reads.
            self.parts_generator = True
            index = torch.cuda.current_device() if device.index is None else device.index
            fresh = torch.Generator(torch.device("cuda", index))
            torch.cuda.default_generators[index].graphsafe_set_state(fresh.graphsafe_get_state())
            torch.cuda.set_rng_state(numbers, index)
            raise

    def __call__(self) -> Result:
        """Run the function on what its tensors hold now."""
        if self.graph is None:
            self.result = self.function()
        else:
            self.graph.replay()
        return self.result


class GraphMemoryPool:
    """GPU memory for graphs that never run at the same time, and for what is computed between them.

    `id` is the `pool` for `Recorded`; where it is None, as on CPUs, nothing is shared.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.id: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        # A pool lives as long as one of its graphs.
        self._first: Any = Recorded(lambda: torch.zeros((), device=device), device, self.id, try_first=False)
        if not self._first.is_recorded:
            self.end()

    def end(self) -> None:
        """Stop sharing. Memory that graphs have taken is freed once they are gone."""
        self.id = self._first = None

    def reserve(self, function: Callable[[], Any]) -> None:
        """Call `function`, and take as much memory as it needed in one piece.

        Graphs that take it bit by bit leave pieces of which others can use only some. Raises torch.OutOfMemoryError.
        """
        if self.id is None:
            return
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        # What libraries keep for this stream must not be in that piece.
        with _on_stream(self.device):
            function()
        size = torch.cuda.max_memory_allocated(self.device) - before
        torch.cuda.empty_cache()
        with self.used():
            torch.empty(size, dtype=torch.uint8, device=self.device)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Allocate from this memory within the block, while none of the graphs runs.

        Nothing allocated here may be read once the next graph runs, as that may overwrite it. Where memory runs out,
        PyTorch does not try to free any elsewhere.
        """
        if self.id is None:
            yield
            return
        pool = cast(torch.cuda.MemPool, self)  # only its id is used
        with (
            _on_stream(self.device),
            torch.cuda.use_mem_pool(pool, self.device.index),
            # Backward passes must run in this thread: another would allocate from elsewhere.
            torch.autograd.set_multithreading_enabled(False),
        ):
            yield


@contextlib.contextmanager
def _on_stream(device: torch.device) -> Iterator[None]:
    """On the stream for recording, after what is queued; what follows the block waits for it."""
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream for all recording: memory that one graph has freed is reused by another only on the same stream."""
    return torch.cuda.Stream(device)
