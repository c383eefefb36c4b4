"""Encoded pairs go to disk and come back, in any order; what was damaged there is found before it is used."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2seq.data import store as store_module
from seq2seq.data.store import SIDES, Store, StoreWriter, write_store
from seq2seq.support.errors import UserError
from seq2seq.support.files import sha256_of, sha256_of_json

EOS = 3
ARRAYS = [f"{side}.{kind}.npy" for side in SIDES for kind in ("tokens", "offsets", "lengths")]
SENTENCES = st.lists(st.tuples(*[st.lists(st.integers(4, 999), max_size=6)] * 2), min_size=1, max_size=12)


def stored(folder: Path, pairs: list[tuple[list[int], list[int]]], block: int = 5, vocab_size: int = 1000) -> Store:
    blocks = [pairs[start : start + block] for start in range(0, len(pairs), block)]
    write_store(folder, [([p[0] for p in part], [p[1] for p in part]) for part in blocks], vocab_size)
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
        assert store.lengths[side].dtype == np.uint16
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


@pytest.mark.parametrize(("length", "dtype"), [(65_535, np.uint16), (65_536, np.int32)])
def test_lengths_take_two_bytes_where_they_fit(length: int, dtype: type, tmp_path: Path) -> None:
    store = stored(tmp_path, [([4] * (length - 1), [5])])
    assert store.lengths[0].dtype == dtype
    assert store.lengths[0].tolist() == [length]
    assert store.gather(0, np.array([0])).tolist() == [4] * (length - 1) + [EOS]


def test_nothing_else_is_left_on_disk(tmp_path: Path) -> None:
    stored(tmp_path, [([4], [5])])
    assert {path.name for path in tmp_path.iterdir()} == {*ARRAYS, "checksums.json"}


def test_arrays_are_mapped_not_read(tmp_path: Path) -> None:
    store = stored(tmp_path, [([4], [5])])
    for array in (*(side.array for side in store._tokens), *store._offsets, *store.lengths):
        assert isinstance(array.base, np.memmap)


def test_blocks_do_not_show_in_what_is_written(tmp_path: Path) -> None:
    pairs = [([4 + n % 900] * (n % 7), [5 + n % 800] * (n % 5)) for n in range(40)]
    written = []
    for block in (1, 7, 40):
        folder = tmp_path / str(block)
        folder.mkdir()
        stored(folder, pairs, block)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1] == written[2]


def test_the_hash_is_that_of_the_files_as_before_there_were_checksums(tmp_path: Path) -> None:
    # Runs that were started then go on.
    store = stored(tmp_path, [([4], [5]), ([6, 7], [])])
    files = [f"{side}.{kind}.npy" for side in SIDES for kind in ("offsets", "tokens")]
    assert store.sha256 == sha256_of_json([sha256_of(tmp_path / name) for name in files])
    (tmp_path / "other").mkdir()
    assert stored(tmp_path / "other", [([4], [5]), ([6, 8], [])]).sha256 != store.sha256


# Damage. Blocks are made small, so that there are many: SMALL is the length of a header, the least there may be.

SMALL = 128


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of sixty pairs in blocks of SMALL bytes; read it under that BLOCK only."""
    folder = tmp_path_factory.mktemp("sound")
    rng = np.random.default_rng(3)
    sides = [[rng.integers(4, 999, rng.integers(0, 90)).tolist() for _ in range(60)] for _ in SIDES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "BLOCK", SMALL)
        stored(folder, list(zip(*sides, strict=True)))
    return folder


def everything(store: Store) -> list[list[int]]:
    return [store.gather(side, np.arange(len(store))).tolist() for side in (0, 1)]


@settings(max_examples=300)
@given(name=st.sampled_from(ARRAYS), place=st.integers(0, 1 << 30), change=st.integers(1, 255))
def test_any_changed_byte_is_found_before_use(
    name: str, place: int, change: int, sound: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "train"
    shutil.copytree(sound, folder)
    content = bytearray((folder / name).read_bytes())
    place %= len(content)
    content[place] ^= change
    (folder / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "BLOCK", SMALL)
        block = place // SMALL
        with pytest.raises(
            UserError,
            match=rf"{folder}: .*{re.escape(name)}: block {block}, bytes {block * SMALL:,} to [0-9,]+,"
            r".*; delete the directory and type the command again",
        ):
            everything(Store(folder))


@given(place=st.integers(0, 1 << 30), change=st.integers(1, 255))
def test_a_changed_byte_of_the_checksums_is_found_or_means_nothing(
    place: int, change: int, sound: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "train"
    shutil.copytree(sound, folder)
    path = folder / "checksums.json"
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= change
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "BLOCK", SMALL)
        whole = Store(sound)
        try:
            store = Store(folder)
        except UserError as error:
            assert "delete the directory and type the command again" in str(error)
        else:
            assert (store.sha256, everything(store)) == (whole.sha256, everything(whole))


@given(data=st.data())
def test_damage_is_found_by_the_first_who_needs_the_block_and_by_no_other(
    data: st.DataObject, sound: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "train"
    shutil.copytree(sound, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "BLOCK", SMALL)
        whole = Store(sound)
        header = whole._tokens[0]._header
        lengths = whole.lengths[0].astype(int)
        block = data.draw(st.integers(header // SMALL, len(whole._tokens[0]._unchecked) - 1))
        content = bytearray((folder / "source.tokens.npy").read_bytes())
        content[block * SMALL] ^= 1
        (folder / "source.tokens.npy").write_bytes(content)
        store = Store(folder)
        for pair in data.draw(st.permutations(range(60))):
            begin = header + 2 * int(lengths[:pair].sum())
            touched = begin // SMALL <= block <= (begin + 2 * int(lengths[pair]) - 1) // SMALL
            if touched:
                for _ in range(2):
                    with pytest.raises(UserError, match=rf"source\.tokens\.npy: block {block}, "):
                        store.gather(0, np.array([pair]))
            else:
                assert store.gather(0, np.array([pair])).tolist() == whole.gather(0, np.array([pair])).tolist()


@pytest.mark.parametrize("name", [*(f"{side}.tokens.npy" for side in SIDES), "source.offsets.npy"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size(name: str, change: int, tmp_path: Path) -> None:
    stored(tmp_path, [([4], [5])])
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1] if change < 0 else content + b"x")
    with pytest.raises(UserError, match=rf"{name} has {len(content) + change} bytes, not {len(content)}"):
        Store(tmp_path)


def test_an_empty_store(tmp_path: Path) -> None:
    StoreWriter(tmp_path, 1000).finish()
    assert len(Store(tmp_path)) == 0
    assert Store(tmp_path).gather(1, np.zeros(0, np.int64)).tolist() == []


@pytest.mark.parametrize("name", [*(f"{side}.tokens.npy" for side in SIDES), "checksums.json"])
def test_a_missing_file_says_what_to_do(name: str, tmp_path: Path) -> None:
    stored(tmp_path, [([4], [5])])
    (tmp_path / name).unlink()
    with pytest.raises(
        UserError,
        match=rf"^{tmp_path}: prepared data missing or damaged \(.*{name}.*\); delete the directory",
    ):
        Store(tmp_path)
