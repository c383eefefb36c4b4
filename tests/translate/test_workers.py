"""Worker processes: order, errors, deaths, and that none is left behind."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from seq2seq.support.errors import ProcessFailed, RunError, UserError
from seq2seq.translate import translator as module
from seq2seq.translate.translator import Translator
from seq2seq.translate.workers import Workers
from tests.processes import PATIENCE, is_running


def test_every_task_comes_back_under_its_number() -> None:
    workers = Workers(3, lambda task: (task * task, os.getpid()))
    for count in (7, 2, 0):
        found = dict(workers.map(range(count)))
        assert {index: square for index, (square, _) in found.items()} == {n: n * n for n in range(count)}
        assert os.getpid() not in {process for _, process in found.values()}
    workers.close()


def test_what_was_there_before_is_not_collected_and_so_not_copied() -> None:
    gc.unfreeze()  # A command that another test ran may have frozen all there is.
    before = gc.get_freeze_count()
    workers = Workers(2, lambda _: (gc.get_freeze_count(), gc.collect()))
    found = [frozen for _, (frozen, _) in workers.map(range(2))]
    workers.close()
    assert min(found) > before + 10_000
    assert gc.get_freeze_count() == before, "here nothing changed"


def test_an_error_with_one_line_is_raised_here_and_ends_the_workers() -> None:
    def refuse(task: int) -> int:
        if task == 2:
            raise UserError("two is too much")
        return task

    workers = Workers(2, refuse)
    with pytest.raises(UserError, match="two is too much"):
        list(workers.map(range(5)))
    assert not workers.processes


def test_a_defect_in_a_worker_comes_with_its_trace() -> None:
    def stumble(_: int) -> NoReturn:
        raise IndexError("list index out of range")

    with pytest.raises(ProcessFailed, match=r"(?s)in stumble.*IndexError: list.* a bug in seq2seq") as held:
        list(Workers(2, stumble).map([1, 2, 3]))
    assert held.value.exit_code == 1


def test_what_happens_while_a_worker_gets_ready_is_told_too() -> None:
    def prepare(number: int) -> None:
        if number == 1:
            raise UserError("no int8 on this device")

    with pytest.raises(UserError, match="no int8 on this device"):
        list(Workers(2, lambda task: task, prepare).map(range(5)))
    prepared: list[int] = []
    workers = Workers(2, lambda _: prepared, prepared.append)
    assert sorted(found for _, found in workers.map(range(2))) == [[0], [1]]
    assert sorted(found for _, found in workers.map(range(2))) == [[0], [1]], "once"
    workers.close()


def test_a_worker_that_dies_is_an_error_and_not_a_silence() -> None:
    def die(_: int) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(RunError, match="worker process died"):
        list(Workers(2, die).map([1, 2, 3]))


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_worker_that_died_between_two_calls_is_an_error_too(tasks: int) -> None:
    """Sending to it raises BrokenPipeError, which a command takes for a reader that went away (`| head`)."""
    workers = Workers(2, lambda task: task)
    processes = workers.processes
    assert len(list(workers.map(range(2)))) == 2
    os.kill(processes[0].pid or 0, signal.SIGKILL)
    processes[0].join()
    with pytest.raises(RunError, match="worker process died"):
        list(workers.map(range(tasks)))
    assert not workers.processes and not any(process.is_alive() for process in processes)


PARENT = """
import os, time
from seq2seq.translate.workers import Workers
workers = Workers(2, time.sleep)
print(*(process.pid for process in workers.processes), flush=True)
list(workers.map([600] * 10_000))
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_made_them(end: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT.replace("time.sleep)", "lambda task: time.sleep(0.2))")]
    # Where SIGINT is ignored, as by nohup, so do all that are started.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heeding)
    assert process.stdout and process.stderr
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2
    process.send_signal(end)
    assert process.wait(PATIENCE) == -end
    for _ in range(200):
        left = [pid for pid in workers if is_running(pid)]
        if not left:
            break
        time.sleep(0.05)
    assert not left
    with process.stdout, process.stderr:
        assert end == signal.SIGINT or process.stderr.read() == b"", "they have nobody to tell their results"


def test_workers_translate_as_one_process_does(tiny_model: Path, toy_pairs: list[tuple[str, str]]) -> None:
    texts = [source for source, _ in toy_pairs[:150]] + ["", "  "]
    translator = Translator.load(tiny_model, device="cpu")
    shared = Translator.load(tiny_model, device="cpu")
    shared.workers = 2
    for lines in (texts, texts[:1], texts[::-1]):
        for one, other in zip(translator.translate_n_best(lines), shared.translate_n_best(lines), strict=True):
            assert one.texts == other.texts
            assert one.scores == pytest.approx(other.scores, abs=1e-4)
    assert shared._started is not None
    shared._started.close()


def test_there_are_more_workers_as_soon_as_texts_are_worth_them(
    tiny_model: Path, toy_pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [source for source, _ in toy_pairs[:60]]
    translator = Translator.load(tiny_model, device="cpu", n_best=2)
    translator.workers = 4
    monkeypatch.setattr(module, "TOKENS_OF_A_WORKER", sum(translator.tokenizer.count(texts[:4])))
    translator.translate(texts[:1])
    assert translator._started is None, "a short text is worth no process"
    counts: list[int] = []
    for lines in (texts[:4], texts, texts[:4]):
        assert all(len(one.texts) == 2 for one in translator.translate_n_best(lines))
        assert translator._started is not None
        counts.append(len(translator._started.processes))
    assert 1 < counts[0] < 4 and counts[1:] == [4, 4]
    assert translator._started is not None
    translator._started.close()


@pytest.mark.parametrize("change", ["search", "forbidden"])
def test_other_settings_hold_for_workers_too(
    tiny_model: Path, toy_pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    texts = [source for source, _ in toy_pairs[:60]]
    monkeypatch.setattr(module, "TOKENS_OF_A_WORKER", 20)
    translator = Translator.load(tiny_model, device="cpu")
    with torch.no_grad():
        # So that words come out, not bytes alone.
        weight = translator.model.target_embedding.weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(11)))
    plain = translator.translate(texts)

    def without(word: str) -> list[str]:
        translator.forbidden = ["", word]
        return translator.translate(texts)

    words = sorted({word for text in plain for word in text.split()})
    word, expected = next((word, found) for word in words if (found := without(word)) != plain)
    translator.workers, translator.forbidden = 2, [""]
    found = translator.translate(texts)
    assert found == plain
    processes = translator._started and translator._started.processes
    assert translator.translate(texts) == found
    assert translator._started and translator._started.processes == processes, "the same settings need no others"
    if change == "search":
        translator.search.n_best = 2
        assert all(len(one.texts) == 2 for one in translator.translate_n_best(texts))
    else:
        translator.forbidden.append(word)
        assert translator.translate(texts) == expected
    assert translator._started.processes != processes
    translator._started.close()


@pytest.mark.parametrize("place", ["a worker", "the bar"])
def test_after_an_error_the_workers_are_started_anew(
    tiny_model: Path, toy_pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    texts = [source for source, _ in toy_pairs[:60]]
    translator = Translator.load(tiny_model, device="cpu")
    expected = translator.translate(texts[::-1])
    monkeypatch.setattr(module, "TOKENS_OF_A_WORKER", 20)
    translator.workers = 2

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt if place == "the bar" else RunError("stop")

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, RunError)) as held:
        if place == "the bar":
            patch.setattr("tqdm.tqdm.update", stop)
        else:
            patch.setattr(Translator, "_beam_search", stop)
        translator.translate(texts)
    # As an interactive Python does, this keeps the frames of what was stopped.
    assert held.tb is not None
    assert translator.translate(texts[::-1]) == expected
    assert translator._started is not None
    translator._started.close()


def test_a_full_disk_in_a_worker_is_no_bug() -> None:
    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    with pytest.raises(RunError, match="the disk is full: x"):
        list(Workers(2, full).map([1]))
