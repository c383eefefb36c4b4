"""That batches must not matter is known to the thread that wants it so, and to no other."""

from __future__ import annotations

import threading

from seq2seq.ops.batch_invariance import batch_invariant, is_batch_invariant


def test_it_holds_in_the_block_and_ends_with_it() -> None:
    assert not is_batch_invariant()
    with batch_invariant(True):
        assert is_batch_invariant()
        with batch_invariant(False):
            assert is_batch_invariant()
    assert not is_batch_invariant()
    with batch_invariant(False):
        assert not is_batch_invariant()


def test_other_threads_do_not_see_it() -> None:
    entered, seen = threading.Event(), threading.Event()
    found: list[bool] = []

    def one() -> None:
        with batch_invariant(True):
            entered.set()
            seen.wait(60)

    def other() -> None:
        found.append(entered.wait(60))
        found.append(is_batch_invariant())
        seen.set()

    threads = [threading.Thread(target=work) for work in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True, False] and not is_batch_invariant()
