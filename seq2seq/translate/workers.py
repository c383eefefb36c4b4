"""Processes that each compute one task at a time, in one thread: on a CPU two of them beat one with two threads."""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from seq2seq.support.errors import ProcessFailed, ReportedError, RunError, UserError, explain

DIED = "a worker process died (killed, or out of memory?); try fewer: --workers 1, or fewer devices in --device"


class Workers:
    """`count` processes, started immediately, that apply `function` to what they are sent.

    Before its first task each calls `prepare`, if there is one, with its number. They end with the process that started
    them, whatever ends it.
    """

    def __init__(
        self, count: int, function: Callable[[Any], Any], prepare: Callable[[int], None] | None = None
    ) -> None:
        self.function, self.prepare = function, prepare
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []
        self.grow(count)

    def grow(self, count: int) -> None:
        """Start more processes until there are `count`."""
        # A forked process shares the memory of the weights; a spawned one would load them again.
        context = multiprocessing.get_context("fork")
        for number in range(len(self.processes), count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, [*self.pipes, ours], self.function, number, self.prepare), daemon=True
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def map(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """The number of each task and its result, in the order in which tasks finish.

        Raises what the function raised if that is a ReportedError, else what `explain` makes of it, UserError, RunError
        or, for a defect, ProcessFailed; RunError where a process died.
        """
        waiting = iter(enumerate(tasks))
        running: dict[Connection, int] = {}
        try:
            for pipe, (index, task) in zip(self.pipes, waiting, strict=False):
                _send(pipe, task)
                running[pipe] = index
            while running:
                for ready in wait(list(running)):
                    assert isinstance(ready, Connection)
                    done, result = running.pop(ready), _receive(ready)
                    for index, task in waiting:
                        _send(ready, task)
                        running[ready] = index
                        break
                    yield done, result
        except BaseException:
            # Nobody will read the results that are under way.
            self.close()
            raise

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()
        for pipe in self.pipes:
            pipe.close()
        self.processes, self.pipes = [], []


def _send(pipe: Connection, task: Any) -> None:
    try:
        pipe.send(task)
    except (BrokenPipeError, ConnectionResetError):
        raise RunError(DIED) from None


def _receive(pipe: Connection) -> Any:
    try:
        error, result = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise RunError(DIED) from None
    if error is None:
        return result
    if isinstance(error, ReportedError):
        raise error
    exit_code, message = error
    for kind in (UserError, RunError):
        if exit_code == kind.exit_code:
            raise kind(message)
    raise ProcessFailed(message, exit_code)


def _work(
    pipe: Connection,
    others: list[Connection],
    function: Callable[[Any], Any],
    number: int,
    prepare: Callable[[int], None] | None,
) -> None:
    # Garbage collection would copy all that the parent had made: some 50 MB per worker, whenever Python ran it.
    gc.freeze()
    # Ctrl-C reaches all processes of a terminal; the parent ends this one. A pipe held open here would hide from the
    # other workers that the parent is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    torch.set_num_threads(1)
    answer: tuple[Any, Any]
    while True:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            if prepare:
                prepare(number)
                prepare = None
            answer = None, function(task)
        except Exception as error:
            # Not all other errors can be sent, and none would keep its traceback.
            answer = error if isinstance(error, ReportedError) else explain(error), None
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
