"""What is made ahead comes in order, and not too far ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from seq2seq.data.prefetch import prefetched


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_keep_the_order_and_do_not_run_ahead(threads: int) -> None:
    asked = []

    def items() -> Iterator[int]:
        for item in range(40):
            asked.append(item)
            yield item

    found = []
    for result in prefetched(lambda item: item * item, items(), threads):
        found.append(result)
        assert len(asked) <= len(found) + 2 * threads
    assert found == [item * item for item in range(40)]


def test_what_nobody_asks_for_any_more_is_not_made() -> None:
    made = []

    def square(number: int) -> int:
        made.append(number)
        return number * number

    squares = prefetched(square, range(100))
    next(squares)
    squares.close()
    assert len(made) <= 3


def test_after_an_error_at_its_place_nothing_more_is_made() -> None:
    made = []
    failed = threading.Event()

    def inverse(number: int) -> float:
        made.append(number)
        if number == 1:
            failed.wait(0.5)
        return 1 / number

    inverses = prefetched(inverse, [2, 0, 1, 4, 8])
    assert next(inverses) == 0.5
    with pytest.raises(ZeroDivisionError):
        next(inverses)
    failed.set()
    assert made[:2] == [2, 0] and 4 not in made
