"""Encoded pairs go to disk and come back, in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq.data.store import SIDES, Store, StoreWriter, write_store
from seq2seq.support.errors import UserError

EOS = 3
SENTENCES = st.lists(st.tuples(*[st.lists(st.integers(4, 999), max_size=6)] * 2), min_size=1, max_size=12)


def stored(folder: Path, pairs: list[tuple[list[int], list[int]]], block: int = 5, vocab_size: int = 1000) -> Store:
    blocks = [pairs[start : start + block] for start in range(0, len(pairs), block)]
    write_store(folder, [([p[0] for p in part], [p[1] for p in part]) for part in blocks], vocab_size, EOS)
    return Store(folder)


@given(pairs=SENTENCES, block=st.integers(1, 20), data=st.data())
def test_pairs_come_back_in_any_order(
    pairs: list[tuple[list[int], list[int]]],
    block: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = stored(tmp_path_factory.mktemp("store"), pairs, block)
    assert len(store) == len(pairs)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(pairs) - 1), max_size=15)), np.int64)
    for side in (0, 1):
        assert store.lengths[side].tolist() == [len(pair[side]) + 1 for pair in pairs]
        assert store.lengths[side].dtype == np.int32
        tokens = store.gather(side, chosen)
        assert tokens.tolist() == [token for index in chosen for token in (*pairs[index][side], EOS)]
        assert tokens.dtype == np.int64


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_tokens_take_two_bytes_where_they_fit(vocab_size: int, dtype: type, tmp_path: Path) -> None:
    last = vocab_size - 1
    store = stored(tmp_path, [([last], [4, last])], vocab_size=vocab_size)
    assert np.load(tmp_path / "source.tokens.npy", mmap_mode="r").dtype == dtype
    assert store.gather(0, np.array([0])).tolist() == [last, EOS]
    assert store.gather(1, np.array([0])).tolist() == [4, last, EOS]


def test_nothing_else_is_left_on_disk(tmp_path: Path) -> None:
    stored(tmp_path, [([4], [5])])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{side}.{kind}.npy" for side in SIDES for kind in ("tokens", "offsets")
    )


def test_tokens_are_mapped_not_read(tmp_path: Path) -> None:
    store = stored(tmp_path, [([4], [5])])
    assert all(isinstance(array, np.memmap) for array in (*store._tokens, *store._offsets))


def test_an_empty_store(tmp_path: Path) -> None:
    StoreWriter(tmp_path, 1000).finish()
    assert len(Store(tmp_path)) == 0
    assert Store(tmp_path).gather(1, np.zeros(0, np.int64)).tolist() == []


def test_a_missing_or_damaged_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="delete the directory and type the command again"):
        Store(tmp_path)
    stored(tmp_path, [([4], [5])])
    np.save(tmp_path / "target.offsets.npy", np.array([{}], object))
    with pytest.raises(UserError, match=f"{tmp_path}: prepared data missing or damaged"):
        Store(tmp_path)
