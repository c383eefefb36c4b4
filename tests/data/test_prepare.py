"""What preparing makes: cleaned, held out, encoded."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seq2seq.config.schema import CleaningConfig, Config, CorpusConfig, DataConfig, TokenizerConfig, TransformerConfig
from seq2seq.data import corpus
from seq2seq.data import prepare as preparing
from seq2seq.data.clean import LENGTH_RULES
from seq2seq.data.corpus import Pair
from seq2seq.data.prepare import Prepared, prepare
from seq2seq.data.store import SIDES
from seq2seq.data.tokenizer import EOS, Tokenizer, train_tokenizer
from seq2seq.support.errors import UserError
from seq2seq.support.files import read_json, sha256_of, write_json

MAPS = Path("/proc/self/maps")
TABLE = ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"]


def config(root: Path, train: list[tuple[str, str]], valid: list[tuple[str, str]] | None = None, **data: Any) -> Config:
    def files(name: str, pairs: list[tuple[str, str]]) -> CorpusConfig:
        for side in (0, 1):
            (root / f"{name}.{side}").write_bytes("".join(f"{pair[side]}\n" for pair in pairs).encode())
        return CorpusConfig(source=str(root / f"{name}.0"), target=str(root / f"{name}.1"))

    made = DataConfig(prepared_dir=str(root / "data"), workers=1, **data)
    made.train = files("train", train)
    if valid:
        made.valid = files("valid", valid)
    return Config(run_dir=str(root), data=made, tokenizer=TokenizerConfig(vocab_size=310))


def stamps(root: Path) -> dict[str, int]:
    """All files under the prepared folder, with their times of change and inode numbers."""
    files = [path for path in (root / "data").rglob("*") if path.is_file()]
    return {path.relative_to(root / "data").as_posix(): path.stat().st_mtime_ns + path.stat().st_ino for path in files}


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """The stages that were made again; none may be half changed."""
    assert before.keys() == after.keys()
    again = {name.partition("/")[0] for name in after if after[name] != before[name]}
    assert all(after[name] != before[name] for name in after if name.partition("/")[0] in again)
    return again


def decoded(data: Prepared, split: str) -> list[tuple[str, str]]:
    store = getattr(data, split)
    sides = [[store.gather(side, np.array([pair]))[:-1].tolist() for pair in range(len(store))] for side in (0, 1)]
    return list(zip(*map(data.tokenizer.decode, sides), strict=True))


def test_what_is_prepared(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    train, valid = list(dict.fromkeys(toy_pairs[:150])), toy_pairs[150:170]
    data = prepare(config(tmp_path, train, valid))
    assert decoded(data, "train") == train
    assert decoded(data, "valid") == valid
    assert [pair[:2] for pair in data.valid_text] == valid
    assert data.train.gather(0, np.arange(len(train))).tolist().count(EOS) == len(train)
    assert 273 < data.tokenizer.vocab_size <= 310
    expected = {"clean/report.json", "train/report.json", "train/rows.npy"}
    expected |= {"tokenizer/tokenizer.model", "valid/text.json", ".preparing"}
    expected |= {f"{stage}/stage.json" for stage in ("clean", "tokenizer", "train", "valid")}
    for split in ("train", "valid"):
        expected |= {f"{split}/{side}.{kind}.npy" for side in SIDES for kind in ("tokens", "offsets", "lengths")}
        expected.add(f"{split}/checksums.json")
        expected |= {
            f"clean/{split}/{name}" for name in ("dataset_info.json", "state.json", "data-00000-of-00001.arrow")
        }
    assert set(stamps(tmp_path)) == expected


@pytest.mark.skipif(not MAPS.exists(), reason="does not tell what is mapped")
def test_nothing_that_is_removed_is_still_mapped(
    tmp_path: Path, toy_pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped: dict[str, list[str]] = {}

    class Cache(tempfile.TemporaryDirectory[str]):
        def cleanup(self) -> None:
            mapped[self.name] = [line for line in MAPS.read_text().split("\n") if self.name in line]
            super().cleanup()

        def __exit__(self, *_: object) -> None:
            self.cleanup()

    monkeypatch.setattr("seq2seq.data.prepare.tempfile.TemporaryDirectory", Cache)
    prepare(config(tmp_path, toy_pairs[:150]))
    assert any(str(tmp_path) in name for name in mapped)
    assert not any(mapped.values())


def sha256_of_pairs(pairs: list[tuple[str, str]]) -> str:
    return hashlib.sha256("".join(f"{source}\t{target}\n" for source, target in pairs).encode()).hexdigest()


def test_the_sha256_of_what_was_read_is_recorded(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    train, valid = [*toy_pairs[:150], ("", "dropped")], toy_pairs[150:170]
    settings = config(tmp_path, train, valid)
    settings.data.train.sha256, settings.data.valid.sha256 = sha256_of_pairs(train), sha256_of_pairs(valid)
    prepare(settings)
    recorded = {"train": sha256_of_pairs(train), "valid": sha256_of_pairs(valid)}
    assert read_json(tmp_path / "data" / "clean" / "report.json")["sha256"] == recorded
    # Pairs held out are training pairs.
    settings = config(tmp_path, train)
    settings.data.train.sha256 = sha256_of_pairs(train)
    prepare(settings)
    assert read_json(tmp_path / "data" / "clean" / "report.json")["sha256"] == {"train": sha256_of_pairs(train)}


@pytest.mark.parametrize("split", ["train", "valid"])
def test_another_sha256_is_refused_before_anything_is_written(
    split: str, tmp_path: Path, toy_pairs: list[tuple[str, str]]
) -> None:
    settings = config(tmp_path, toy_pairs[:150], toy_pairs[150:170])
    chosen, other = getattr(settings.data, split), "0" * 64
    chosen.sha256 = other
    found = sha256_of_pairs(toy_pairs[:150] if split == "train" else toy_pairs[150:170])
    expected = f"data.{split}.sha256={other}, but the pairs read have {found}; type data.{split}.sha256=null to"
    with pytest.raises(UserError, match=re.escape(expected)):
        prepare(settings)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".preparing"]
    chosen.sha256 = None
    prepare(settings)
    # Neither giving it later nor taking it away makes a stage again, and another one is still refused.
    before = stamps(tmp_path)
    for given in (found, None):
        chosen.sha256 = given
        prepare(settings)
    chosen.sha256 = other
    clean = tmp_path / "data" / "clean"
    with pytest.raises(UserError) as caught:
        prepare(settings)
    assert str(caught.value) == (
        f"data.{split}.sha256={other}, but the pairs in {clean} were read with {found}; "
        f"type data.{split}.sha256=null to take them as they are, or rm -r {clean} to read the corpus again"
    )
    assert changed(before, stamps(tmp_path)) == set()


def test_a_stage_that_recorded_no_sha256_is_not_trusted(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    settings = config(tmp_path, toy_pairs[:150], toy_pairs[150:170])
    prepare(settings)
    report = tmp_path / "data" / "clean" / "report.json"
    write_json(report, {key: value for key, value in read_json(report).items() if key != "sha256"})
    record = read_json(report.with_name("stage.json"))
    record["sha256"][report.name] = sha256_of(report)
    write_json(report.with_name("stage.json"), record)
    prepare(settings)
    settings.data.train.sha256 = sha256_of_pairs(toy_pairs[:150])
    with pytest.raises(
        UserError, match=r"were read with an unknown one; .* or rm -r .*/clean to read the corpus again"
    ):
        prepare(settings)


# Cleaning.

BAD = {
    "empty": [("", "leer"), ("empty", ""), ("", "")],
    "same": [("the same", "the same")],
    "duplicate": [("the dog.", "das Hund."), ("the dog.", "das Hund.")],
    "max_length_ratio": [("the dog", "das Hund sieht das alte Baum, das kleine Tisch, das Fluss.")],
    "max_pieces": [("the old dog " * 100, "das alte Hund " * 100)],
}
DROPPED = {"empty": 3, "same": 1, "duplicate": 1, "max_length_ratio": 1, "max_pieces": 1}
OFF: dict[str, Any] = {"empty": False, "same": False, "duplicate": False, "max_length_ratio": None, "max_pieces": None}


def cleaned(tmp_path: Path, good: list[tuple[str, str]], rules: CleaningConfig) -> tuple[dict[str, int], Prepared]:
    bad = [pair for pairs in BAD.values() for pair in pairs]
    data = prepare(config(tmp_path, good + bad, [("a", "b"), ("", "leer"), ("x", "x"), ("x", "x")], cleaning=rules))
    reports = [read_json(tmp_path / "data" / stage / "report.json") for stage in ("clean", "train")]
    assert reports[1]["kept"] == len(data.train)
    assert reports[0]["kept"] == len(data.train) + sum(reports[1]["dropped"].values())
    for report in reports:
        for reason, examples in report["examples"].items():
            assert 0 < len(examples) <= 3
            assert all(any(pair[0].startswith(text.strip()) for pair in bad) for text, *_ in examples), reason
    assert len(data.valid) == 4, "the validation split is as it was given"
    return {**reports[0]["dropped"], **reports[1]["dropped"]}, data


@pytest.mark.parametrize("rule", ["none", "all", *OFF])
def test_each_rule_can_be_switched_off(
    rule: str, tmp_path: Path, toy_pairs: list[tuple[str, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    good = list(dict.fromkeys(toy_pairs))[:120]
    rules = CleaningConfig()
    for off in OFF if rule == "all" else [rule] if rule != "none" else []:
        setattr(rules, off, OFF[off])
    dropped, data = cleaned(tmp_path, good, rules)
    expected = {} if rule == "all" else {reason: count for reason, count in DROPPED.items() if reason != rule}
    if rule == "empty":
        expected |= {"same": 2, "max_length_ratio": 3}  # The rules that come after it see those pairs.
    assert dropped == expected
    total = len(good) + sum(map(len, BAD.values()))
    assert len(data.train) == total - sum(expected.values())
    out, err = capfd.readouterr()
    assert out == ""
    kept = total - sum(count for reason, count in expected.items() if reason not in LENGTH_RULES)
    assert f"kept {kept:,} of {total}" in err
    assert all(f"for {reason}, such as: " in err for reason in expected)


def test_where_a_pair_was_read_is_known_after_both_rounds_of_cleaning(
    tmp_path: Path, toy_pairs: list[tuple[str, str]]
) -> None:
    first, second = toy_pairs[:40], toy_pairs[40:80]
    long = ("the old dog " * 100, "das alte Hund " * 100)
    settings = config(tmp_path, [], [("a", "b")], cleaning=CleaningConfig(duplicate=False))
    files: list[list[str]] = [[], []]
    for name, pairs in (("first", [*first, ("", "empty"), long, *first]), ("second", [long, *second])):
        for side in (0, 1):
            files[side].append(str(tmp_path / f"{name}.{side}"))
            Path(files[side][-1]).write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")
    settings.data.train = CorpusConfig(source=files[0], target=files[1])
    data = prepare(settings)
    texts = decoded(data, "train")
    places = data.places([*range(len(texts))])
    assert len(places) == 120
    for (source, _), place in zip(texts, places, strict=True):
        path, _, number = place.rpartition(":")
        assert Path(path).read_text(encoding="utf-8").split("\n")[int(number) - 1] == source
    assert data.places([80, 39, 40]) == [f"{files[0][1]}:2", f"{files[0][0]}:40", f"{files[0][0]}:43"]
    (dropped,) = read_json(tmp_path / "data" / "train" / "report.json")["examples"].values()
    assert [place for _, _, place in dropped] == [f"{files[0][0]}:42", f"{files[0][1]}:1"]


def test_a_data_set_that_is_read_again_may_hold_other_pairs(
    tmp_path: Path, toy_pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = toy_pairs[:150], toy_pairs[150:300]
    own = config(tmp_path, first, toy_pairs[300:320])
    own.data.train = CorpusConfig(dataset="owner/set", split="train")
    monkeypatch.setattr(corpus, "_from_datasets", lambda *_: (Pair(*pair) for pair in first))
    assert decoded(prepare(own), "train") == list(dict.fromkeys(first))
    monkeypatch.setattr(corpus, "_from_datasets", lambda *_: (Pair(*pair) for pair in second))
    assert decoded(prepare(own), "train") == list(dict.fromkeys(first)), "nothing is read again by itself"
    shutil.rmtree(tmp_path / "data" / "clean")
    data = prepare(own)
    assert decoded(data, "train") == list(dict.fromkeys(second))
    assert len(data.places([0, 1])) == 2


def test_what_another_run_prepared_anew_names_no_lines(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    own = config(tmp_path, toy_pairs[:150], toy_pairs[150:170])
    data = prepare(own)
    own.data.cleaning.max_pieces = 40
    prepare(own)
    with pytest.raises(UserError, match=r"/data: prepared anew since, from other data or with other settings"):
        data.places([1])


def test_a_validation_corpus_of_the_recipe_beside_own_files_is_told(
    tmp_path: Path, toy_pairs: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("babel", reason="needs extra quickstart")
    own = config(tmp_path, toy_pairs[:150])
    own.data.valid = CorpusConfig(phrases=10)
    prepare(own)
    told = "the recipe's own validation corpus is taken (the phrasebook); for yours type data.valid.source=FILE"
    assert told in capsys.readouterr().err


def test_a_full_disk_is_named(
    tmp_path: Path, toy_pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(preparing, "write_store", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/data/train'"):
        prepare(config(tmp_path, toy_pairs[:150], toy_pairs[150:170]))


def test_a_damaged_table_names_no_lines(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    data = prepare(config(tmp_path, toy_pairs[:150], toy_pairs[150:170]))
    for path in (tmp_path / "data" / "train" / "rows.npy", tmp_path / "data" / "clean" / "train" / TABLE[0]):
        assert data.places([3, 1])[1].endswith("train.0:2")
        sound = path.read_bytes()
        path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"{path.name} is not as it was written"):
            data.places([1])
        path.write_bytes(sound)


def test_without_a_limit_pairs_must_still_fit_in_a_batch(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    rules = CleaningConfig(max_pieces=None)
    settings = config(tmp_path, toy_pairs, toy_pairs[:5], cleaning=rules, batch_tokens=30)
    few = prepare(settings)
    assert max(int(lengths.max()) for lengths in few.train.lengths) <= 30
    assert read_json(tmp_path / "data" / "train" / "report.json")["dropped"]["batch_tokens"] > 0
    settings.data.batch_tokens = 1000
    assert len(prepare(settings).train) > len(few.train)


@pytest.mark.parametrize(("side", "long"), [("encoder", 0), ("decoder", 1)])
def test_validation_pairs_must_have_learned_positions(
    tmp_path: Path, toy_pairs: list[tuple[str, str]], side: str, long: int
) -> None:
    pair = ["the dog", "das Hund"]
    pair[long] = "x" * 150
    settings = config(tmp_path, toy_pairs[:150], [(pair[0], pair[1])], cleaning=CleaningConfig(max_pieces=99))
    setattr(settings.model, side, TransformerConfig(positions="learned", max_positions=100))
    with pytest.raises(UserError, match=rf"valid .* of 15\d pieces, .*model\.{side}\.max_positions=100; set model"):
        prepare(settings)
    getattr(settings.model, side).max_positions = 160
    assert len(prepare(settings).valid) == 1


def test_a_corpus_with_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"the train corpus \(.*train\.0, .*train\.1\) is empty after cleaning: 1 pairs are empty, .*0:1;",
    ):
        prepare(config(tmp_path, [("", "a")], [("a", "b")]))
    with pytest.raises(UserError, match=r"the train corpus \(.*train\.0, .*train\.1\) is empty$"):
        prepare(config(tmp_path, [], [("a", "b")]))
    with pytest.raises(UserError, match=r"no training pairs are left: .*/train/report\.json says why"):
        prepare(config(tmp_path, [("a b c d e", "f")] * 2, [("a", "b")], cleaning=CleaningConfig(max_length_ratio=1.5)))
    with pytest.raises(UserError, match=r"train\.0 has 1 lines but .*train\.1 has 2"):
        settings = config(tmp_path, [("a", "b")], [("a", "b")])
        (tmp_path / "train.1").write_bytes(b"a\nb\n")
        prepare(settings)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_only_phrases_are_drawn_anew_for_another_seed(
    tmp_path: Path, toy_pairs: list[tuple[str, str]], split: str
) -> None:
    settings = config(tmp_path, toy_pairs, toy_pairs[:9])
    # So few lines that some are chosen for the vocabulary.
    settings.tokenizer.max_lines, settings.tokenizer.vocab_size = len(toy_pairs), 400
    before = (prepare(settings), stamps(tmp_path))[1]
    settings.seed = 2
    prepare(settings)
    assert not changed(before, stamps(tmp_path))
    setattr(settings.data, split, CorpusConfig(phrases=400))
    before = (prepare(settings), stamps(tmp_path))[1]
    settings.seed = 3
    prepare(settings)
    assert "clean" in changed(before, stamps(tmp_path))


def test_the_vocabulary_is_learnt_from_both_sides_of_at_most_max_lines(
    tmp_path: Path, toy_pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, toy_pairs[:150], toy_pairs[150:170])
    seen: list[str] = []

    def noted(lines: Iterable[str], *others: Any) -> Tokenizer:
        seen.extend(lines)
        return train_tokenizer(iter(seen), *others)

    monkeypatch.setattr(preparing, "train_tokenizer", noted)
    settings.tokenizer.max_lines = 100
    prepare(settings)
    sides = [{pair[side] for pair in toy_pairs[:150]} for side in (0, 1)]
    assert [sum(line in side for line in seen) for side in sides] == [50, 50]


def test_another_language_is_read_anew(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    settings = config(tmp_path, toy_pairs[:2], toy_pairs[150:170])
    rows = [{"en": source, "de": target, "fr": f"le {target}"} for source, target in toy_pairs[:100]]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    settings.data.train = CorpusConfig(source=str(tmp_path / "a.jsonl"))
    first = prepare(settings).data_sha256
    settings.data.target_language = "fr"
    assert prepare(settings).data_sha256 != first


def test_kinds_of_phrases_are_kept(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    pytest.importorskip("babel")
    settings = config(tmp_path, toy_pairs[:150])
    settings.data.valid = CorpusConfig(phrases=30)
    kinds = {"date", "duration", "number", "price", "quantity", "time"}
    assert {pair.label for pair in prepare(settings).valid_text} == kinds


def test_the_longest_source_is_counted_without_eos(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    data = prepare(config(tmp_path, toy_pairs[:150], toy_pairs[150:170]))
    assert data.longest_source == max(data.tokenizer.count([source for source, _ in toy_pairs[:150]]))
