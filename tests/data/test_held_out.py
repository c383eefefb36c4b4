"""Pairs held out of training for validation."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest

from seq2seq.data import prepare as preparing
from seq2seq.data.clean import text_hash
from seq2seq.data.prepare import prepare
from seq2seq.support.errors import UserError
from tests.data.test_prepare import config, decoded


def test_pairs_held_out_share_no_source_with_training(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    # Every source three times, with three targets.
    sources = list(dict.fromkeys(source for source, _ in toy_pairs))
    pairs = [(source, f"{n} {source}") for n in range(3) for source in sources]
    data = prepare(config(tmp_path, pairs))
    count = len(sources) // 10
    assert len(data.valid) == len(data.valid_text) == count
    held = [pair.source for pair in data.valid_text]
    assert held == sorted(sources, key=text_hash)[:count], "by hash, each source once"
    assert {source for source, _ in decoded(data, "train")} == set(sources) - set(held)
    assert len(data.train) == len(pairs) - 3 * count


def test_what_is_held_out_does_not_depend_on_order_or_seed(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    held = []
    for seed, pairs in ((1, toy_pairs), (2, toy_pairs[::-1])):
        settings = config(tmp_path, pairs)
        settings.seed = seed
        held.append({pair.source for pair in prepare(settings).valid_text})
    assert held[0] == held[1] and len(held[0]) == 38


@pytest.mark.parametrize(
    ("pairs", "held"), [(2, 1), (99, 9), (250, 25), (4_000, 200), (20_000, 200), (99_999, 999), (500_000, 1000)]
)
def test_one_percent_at_most_a_thousand_at_least_two_hundred_of_enough(pairs: int, held: int) -> None:
    table = datasets.Dataset.from_dict({"hash": np.arange(pairs)[::-1]})
    valid, train = preparing._hold_out(table)
    assert (len(valid), len(train)) == (held, pairs - held)


def test_sources_of_many_pairs_take_no_more_than_their_share_out_of_training() -> None:
    table = datasets.Dataset.from_dict({"hash": np.repeat(np.arange(201), 10)})
    valid, train = preparing._hold_out(table)
    assert (len(valid), len(train)) == (20, 1_810)


def test_too_few_sources_to_hold_any_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 different sources: too few .*data\.valid\.source"):
        prepare(config(tmp_path, [("a", "b"), ("a", "c")]))
