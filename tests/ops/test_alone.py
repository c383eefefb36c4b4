"""Whether rows are computed alone is known to the thread that wants it, and to no other."""

from __future__ import annotations

import threading

import torch

from seq2seq.ops.alone import computing_rows_alone, rows_are_alone


def test_it_holds_in_the_block_on_one_thread_and_ends_with_it() -> None:
    threads = torch.get_num_threads()
    assert not rows_are_alone()
    with computing_rows_alone(True):
        assert rows_are_alone() and torch.get_num_threads() == 1
        with computing_rows_alone(False):
            assert rows_are_alone()
    assert not rows_are_alone() and torch.get_num_threads() == threads
    with computing_rows_alone(False):
        assert not rows_are_alone()


def test_other_threads_do_not_see_it() -> None:
    entered, seen = threading.Event(), threading.Event()
    found: list[bool] = []

    def one() -> None:
        with computing_rows_alone(True):
            entered.set()
            seen.wait(10)

    def other() -> None:
        entered.wait(10)
        found.append(rows_are_alone())
        seen.set()

    threads = [threading.Thread(target=work) for work in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [False] and not rows_are_alone()
