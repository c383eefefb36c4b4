"""When stages run again, that a stopped one leaves nothing behind, and that damage is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from seq2seq.config.schema import CleaningConfig
from seq2seq.data import corpus
from seq2seq.data import prepare as preparing
from seq2seq.data.clean import LENGTH_RULES
from seq2seq.data.prepare import prepare
from seq2seq.data.store import FORMAT
from seq2seq.support.errors import UserError
from tests.data.test_prepare import TABLE, changed, config, decoded, stamps


def test_a_stage_runs_again_only_when_its_inputs_changed(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    settings = config(tmp_path, toy_pairs[:150], toy_pairs[150:170])
    first = prepare(settings)
    before = stamps(tmp_path)
    # Where and on how many processes it runs changes nothing.
    settings.data.workers = 2
    settings.data.batch_tokens = 4000
    settings.model.d_model = 64
    assert prepare(settings).data_sha256 == first.data_sha256
    assert changed(before, stamps(tmp_path)) == set()
    everything = {"clean", "tokenizer", "train", "valid"}
    text = tmp_path / "train.1"
    expected: list[tuple[Callable[[], object], set[str]]] = [
        (lambda: setattr(settings.tokenizer, "vocab_size", 305), {"tokenizer", "train", "valid"}),
        (lambda: setattr(settings.data.cleaning, "max_pieces", 30), {"train", "valid"}),
        (lambda: setattr(settings.data.cleaning, "same", False), everything),
        (lambda: setattr(settings, "seed", 2), set()),
        (lambda: text.write_bytes(text.read_bytes().upper()), everything),
    ]
    for change, stages in expected:
        change()
        before = stamps(tmp_path)
        data = prepare(settings)
        assert changed(before, stamps(tmp_path)) == stages
    assert data.data_sha256 != first.data_sha256
    assert all(target.isupper() for _, target in decoded(data, "train"))


@pytest.mark.parametrize("rule", [rule.name for rule in fields(CleaningConfig)])
def test_every_rule_of_cleaning_is_an_input(rule: str, tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    settings = config(tmp_path, toy_pairs[:150], toy_pairs[150:170])
    prepare(settings)
    before = stamps(tmp_path)
    setattr(settings.data.cleaning, rule, False if isinstance(getattr(CleaningConfig(), rule), bool) else 20)
    prepare(settings)
    everything = {"clean", "tokenizer", "train", "valid"}
    assert changed(before, stamps(tmp_path)) == ({"train", "valid"} if rule in LENGTH_RULES else everything)


@pytest.mark.parametrize("name", ["clean", "tokenizer", "train", "valid"])
def test_what_is_no_stage_stays(tmp_path: Path, toy_pairs: list[tuple[str, str]], name: str) -> None:
    settings = config(tmp_path, toy_pairs[:150], toy_pairs[150:170])
    own = Path(settings.data.prepared_dir) / name / "theirs.txt"
    own.parent.mkdir(parents=True)
    own.write_text("years of work", encoding="utf-8")
    with pytest.raises(
        UserError, match=rf"{name}: already exists and was not created by seq2seq; .*data\.prepared_dir=DIR"
    ):
        prepare(settings)
    assert own.read_text(encoding="utf-8") == "years of work"
    assert [path.name for path in own.parent.parent.iterdir() if not path.name.startswith(".")] == [name]
    own.unlink()
    assert len(prepare(settings).train)


@pytest.mark.parametrize(
    ("room", "name", "left"),
    [
        ("corpus", "read_pairs", set()),
        ("preparing", "train_tokenizer", {"clean"}),
        ("preparing", "write_store", {"clean", "tokenizer"}),
    ],
)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_stage_stopped_in_the_middle_leaves_nothing(
    room: str,
    name: str,
    left: set[str],
    error: type[BaseException],
    tmp_path: Path,
    toy_pairs: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config(tmp_path, toy_pairs[:150], toy_pairs[150:170])
    owner = preparing if room == "preparing" else corpus
    whole = getattr(owner, name)

    def stopped(*arguments: Any) -> Any:
        if name == "read_pairs":
            yield from list(whole(*arguments))[:50]
        elif name == "write_store":
            (arguments[0] / "source.tokens.npy").write_bytes(b"half")
        raise error

    monkeypatch.setattr(owner, name, stopped if name == "read_pairs" else lambda *arguments: list(stopped(*arguments)))
    with pytest.raises(error):
        prepare(settings)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {*left, ".preparing"}
    monkeypatch.undo()
    assert len(prepare(settings).train) > 100


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.model", "valid/text.json", "clean/report.json"])
def test_any_changed_byte_of_what_is_read_whole_is_found(
    name: str, tmp_path: Path, toy_pairs: list[tuple[str, str]]
) -> None:
    settings = config(tmp_path, toy_pairs[:150], toy_pairs[150:153])
    prepare(settings)
    path = tmp_path / "data" / name
    sound = path.read_bytes()
    for place in range(0, len(sound), 61):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :])
        with pytest.raises(UserError, match=rf"{path.parent}: .*{path.name} is not as it was written.*; delete"):
            prepare(settings)
    path.write_bytes(sound)
    assert prepare(settings).valid_text[0][:2] == toy_pairs[150]


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_any_changed_byte_of_a_cleaned_table_is_found_when_it_is_read_again(
    split: str, name: str, tmp_path: Path, toy_pairs: list[tuple[str, str]]
) -> None:
    settings = config(tmp_path, toy_pairs[:30], toy_pairs[150:153])
    prepare(settings)
    path = tmp_path / "data" / "clean" / split / name
    sound = path.read_bytes()
    settings.tokenizer.vocab_size = 300
    for place in range(0, len(sound), 499):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :])
        with pytest.raises(UserError, match=rf"data/clean: .*{split}/{name} is not as it was written.*; delete"):
            prepare(settings)
    path.unlink()
    with pytest.raises(UserError, match=rf"data/clean: .*{name}.*; delete"):
        prepare(settings)
    path.write_bytes(sound)
    assert prepare(settings).tokenizer.vocab_size <= 300


@pytest.mark.parametrize("stage", ["clean", "tokenizer", "train", "valid"])
def test_a_changed_byte_of_a_stage_s_record_is_found_or_means_nothing(
    stage: str, tmp_path: Path, toy_pairs: list[tuple[str, str]]
) -> None:
    settings = config(tmp_path, toy_pairs[:150], toy_pairs[150:153])
    whole = prepare(settings)
    path = tmp_path / "data" / stage / "stage.json"
    for place in range(0, path.stat().st_size, 97):
        content = bytearray(path.read_bytes())
        content[place % len(content)] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            found = prepare(settings)
        except UserError as error:
            assert "delete the directory and type the command again" in str(error)
            path.write_bytes(bytes(content[:place]) + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        else:
            assert (found.data_sha256, found.valid_text) == (whole.data_sha256, whole.valid_text)


def test_what_a_killed_process_left_is_swept(tmp_path: Path, toy_pairs: list[tuple[str, str]]) -> None:
    # kill -9 gives no chance to tidy up.
    (tmp_path / "data" / ".train.x1y2.partial").mkdir(parents=True)
    (tmp_path / "data" / ".train.x1y2.partial" / "source.tokens.npy").write_bytes(b"half")
    (tmp_path / "data" / ".clean.x1y2.replaced").mkdir()
    prepare(config(tmp_path, toy_pairs[:150], toy_pairs[150:170]))
    left = {path.name for path in (tmp_path / "data").iterdir()}
    assert left == {"clean", "tokenizer", "train", "valid", ".preparing"}


def test_stores_of_an_older_format_are_made_anew(
    tmp_path: Path, toy_pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, toy_pairs[:150], toy_pairs[150:170])
    monkeypatch.setattr(preparing, "FORMAT", FORMAT - 1)
    prepare(settings)
    before = stamps(tmp_path)
    monkeypatch.undo()
    prepare(settings)
    assert changed(before, stamps(tmp_path)) == {"train", "valid"}
