"""The public API: text in, text out; a result depends on its own text alone."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import seq2seq
from seq2seq.config.compose import load
from seq2seq.config.search import SearchConfig
from seq2seq.data.tokenizer import BOS, EOS
from seq2seq.model import directory
from seq2seq.model.translation import build_model
from seq2seq.ops import native
from seq2seq.ops.packing import Layout
from seq2seq.search.interfaces import Hypothesis
from seq2seq.support.errors import UserError
from seq2seq.support.files import read_json
from seq2seq.translate.scoring import Scorer
from seq2seq.translate.tasks import Task, parts_of, tasks_of
from seq2seq.translate.translator import Translator

STRANGE = [
    *("", " ", "\t \u2028", "\u2028", "the\u2028dog", "the\x85dog", "the\rdog", "the\0dog", "\0", "\ufeffthe dog"),
    *("\ufeff", "\ufffd", "the  old   dog", " the dog ", "🦊" * 30, "\u0301", "a\nb", "</s><pad>", "\u200b"),
]


@pytest.fixture(scope="module")
def translator(tiny_model: Path) -> Translator:
    return Translator.load(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def sentences(toy_pairs: list[tuple[str, str]]) -> list[str]:
    return [source for source, _ in toy_pairs[:40]]


def test_the_package_offers_it_without_loading_torch_at_once() -> None:
    assert seq2seq.Translator is Translator and seq2seq.Scorer is Scorer and seq2seq.UserError is UserError
    assert all(hasattr(seq2seq, name) for name in seq2seq.__all__)
    assert not hasattr(seq2seq, "Translater")


def test_sentences_are_translated_each_for_itself(translator: Translator, sentences: list[str]) -> None:
    found = translator.translate(sentences)
    assert len(found) == len(sentences)
    assert len(set(found)) > 3, "the tests below could not tell one from another"
    assert translator.translate(sentences[3:4]) == found[3:4]
    order = list(range(len(sentences)))
    random.Random(1).shuffle(order)
    assert translator.translate([sentences[index] for index in order]) == [found[index] for index in order]


@pytest.mark.parametrize("batch_tokens", [1, 50, 100_000])
def test_scores_do_not_depend_on_the_batch(translator: Translator, sentences: list[str], batch_tokens: int) -> None:
    whole = translator.translate_n_best(sentences)
    parted = Translator(translator.model, translator.tokenizer, translator.search, batch_tokens=batch_tokens)
    for one, other in zip(whole, parted.translate_n_best(sentences), strict=True):
        assert one.texts == other.texts
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("in_batches", [True, False])
def test_deterministic_scores_are_the_same_to_the_last_bit(
    tiny_model: Path, sentences: list[str], dtype: torch.dtype, in_batches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_batches:
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C++ compiler here")
    batches = []
    search = Translator._search_batch

    def counted(self: Translator, tasks: list[Task]) -> list[list[Hypothesis]]:
        batches.append(len(tasks))
        return search(self, tasks)

    monkeypatch.setattr(Translator, "_search_batch", counted)
    translator = Translator.load(tiny_model, device="cpu", dtype=dtype)
    translator.deterministic = True
    together = translator.translate_n_best(sentences)
    assert translator.translate_n_best(sentences[::-1]) == together[::-1]
    assert [translator.translate_n_best([text])[0] for text in sentences[:10]] == together[:10]
    assert (max(batches) > 1) == in_batches
    translator.batch_tokens = 50
    assert translator.translate_n_best(sentences) == together


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("options", [{"max_length_ratio": 0.7, "max_length_offset": 1}, {"min_length_ratio": 1.2}])
def test_nor_do_they_depend_on_when_others_must_and_must_not_end(
    tiny_model: Path, sentences: list[str], dtype: torch.dtype, options: dict[str, Any]
) -> None:
    translator = Translator.load(tiny_model, device="cpu", dtype=dtype, **options)
    translator.deterministic = True
    texts, prefixes = sentences[:20], ["das", "", ""] * 7
    together = translator.translate_n_best(texts, prefixes[:20])
    for text, prefix, found in zip(texts, prefixes, together, strict=False):
        assert translator.translate_n_best([text], [prefix])[0] == found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_otherwise_they_are_nearly_the_same(tiny_model: Path, sentences: list[str], dtype: torch.dtype) -> None:
    translator = Translator.load(tiny_model, device="cpu", dtype=dtype)
    together = translator.translate_n_best(sentences)
    translator.deterministic = True
    for one, other in zip(translator.translate_n_best(sentences), together, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-4 if dtype == torch.float32 else 0.2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_other_formats_find_what_float32_finds(
    tiny_model: Path, translator: Translator, sentences: list[str], dtype: torch.dtype
) -> None:
    rounded = Translator.load(tiny_model, device="cpu", dtype=dtype)
    same = sum(map(str.__eq__, translator.translate(sentences), rounded.translate(sentences)))
    assert same > len(sentences) // 2


def test_strange_lines_come_out_one_for_one(translator: Translator) -> None:
    found = translator.translate_n_best(STRANGE)
    assert len(found) == len(STRANGE)
    for text, translation in zip(STRANGE, found, strict=True):
        assert (translation.status == "empty") == (not text.strip())
        assert "\n" not in translation.texts[0]
    alone = [translator.translate([text])[0] for text in STRANGE]
    assert [translation.texts[0] for translation in found] == alone
    assert translator.translate([]) == []


@settings(max_examples=15)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=6))
def test_any_texts_come_out_one_for_one(translator: Translator, texts: list[str]) -> None:
    found = translator.translate(texts)
    assert len(found) == len(texts)
    assert not any("\n" in text for text in found)


@pytest.mark.parametrize("unit", ["x", "the old dog sees the red apple. ", "the old dog "])
def test_a_hundred_thousand_characters_in_one_line(translator: Translator, unit: str) -> None:
    long = (unit * 100_000)[:100_000]
    # One piece out for each part in: the search is tested elsewhere.
    short = Translator(translator.model, translator.tokenizer, SearchConfig(1, max_length_ratio=0, max_length_offset=2))
    before, found, after = short.translate_n_best(["the dog", long, "the apple"])
    assert found.flags == ["split", "length_limit"]
    assert found.texts[0]
    assert (before.status, after.status) == ("length_limit", "length_limit")
    assert [before.texts, after.texts] == [short.translate_n_best([text])[0].texts for text in ("the dog", "the apple")]


def test_a_long_text_is_its_parts(translator: Translator, sentences: list[str]) -> None:
    limited = Translator(translator.model, translator.tokenizer, translator.search, longest=60)
    sentences = [text for text in sentences if len(limited.tokenizer.encode([text])[0]) > 30][:3]
    joined, *parts = limited.translate_n_best([" ".join(sentences), *sentences])
    limited_too = ["length_limit"] * any(part.flags == ["length_limit"] for part in parts)
    assert joined.flags == ["split", *limited_too] and all("split" not in part.flags for part in parts)
    assert joined.texts == [" ".join(part.texts[0] for part in parts)]
    assert joined.scores[0] == pytest.approx(sum(part.scores[0] for part in parts), abs=1e-4)


@pytest.mark.parametrize("limit", [16, 40, 300])
def test_learned_positions_limit_parts_and_outputs(
    tiny_model: Path, translator: Translator, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    config = load(tiny_model / "config.yaml")
    config.data.cleaning.max_pieces = min(250, limit - 1)
    config.search = SearchConfig(beam_size=1, max_length_offset=100)
    for side in ("encoder", "decoder"):
        setattr(config.model, side, replace(getattr(config.model, side), positions="learned", max_positions=limit))
    model = build_model(config.model, translator.tokenizer.vocab_size, seed=3).eval()
    limited = Translator.of(model, translator.tokenizer, config)
    assert (limited.longest, limited.longest_output) == (min(250, limit // 2), limit)
    searched: list[str] = []
    found: list[int] = []

    def search(tasks: list[Task]) -> list[list[Hypothesis]]:
        searched.extend(limited.tokenizer.decode([task.source[:-1] for task in tasks]))
        results = Translator._search(limited, tasks)
        found.extend(len(hypotheses[0].tokens) + 1 for hypotheses in results)
        return results

    monkeypatch.setattr(limited, "_search", search)
    for text in (("the old dog sees the red apple. " * 160)[:5000], "x" * 5000, "🦊" * 300):
        searched.clear()
        assert limited.translate_n_best([text])[0].flags[0] == "split"
        assert "".join(searched).replace(" ", "") == text.replace(" ", ""), "no character is lost"
        assert max(limited.tokenizer.count(searched)) <= limited.longest
    assert max(found) <= limit
    assert limit > 100 or max(found) == limit, "the limit was reached"


def test_n_best_are_different_and_best_first(tiny_model: Path, translator: Translator, sentences: list[str]) -> None:
    several = Translator.load(tiny_model, device="cpu", n_best=4)
    for best, found in zip(translator.translate(sentences[:8]), several.translate_n_best(sentences[:8]), strict=True):
        assert found.texts[0] == best
        assert len(found.texts) == len(found.scores) == 4
        assert found.scores == sorted(found.scores, reverse=True)
    searched = several._search(
        tasks_of(parts_of(sentences[:1], several.tokenizer, 250)[0], [""], several.tokenizer, None)
    )[0]
    assert len({tuple(hypothesis.tokens) for hypothesis in searched}) == 4


def test_a_score_is_the_log_probability_over_the_penalty(translator: Translator, sentences: list[str]) -> None:
    ((hypothesis, *_),) = translator._search(
        tasks_of(parts_of(sentences[:1], translator.tokenizer, 250)[0], [""], translator.tokenizer, None)
    )
    source = torch.tensor([*translator.tokenizer.encode([sentences[0]])[0], EOS])
    target = [BOS, *hypothesis.tokens, EOS]
    model = translator.model
    with torch.inference_mode():
        state = model.start(model.encode(source, Layout.of([len(source)])))
        total = 0.0
        for fed, chosen in itertools.pairwise(target):
            logits = model.logits(model.step(state, torch.tensor([[fed]]), torch.tensor([[0]])))
            total += float(logits[0, 0].log_softmax(-1)[chosen])
    penalty = ((5 + len(target) - 1) / 6) ** translator.search.length_penalty
    assert hypothesis.score == pytest.approx(total / penalty, abs=1e-4)


def test_settings_of_search_can_be_given(tiny_model: Path, sentences: list[str]) -> None:
    config = Translator.load(tiny_model, device="cpu").search
    greedy = Translator.load(tiny_model, device="cpu", beam_size=1, length_penalty=0.0)
    assert (config.beam_size, greedy.search.beam_size, greedy.search.length_penalty) == (4, 1, 0.0)
    assert greedy.search.max_length_offset == config.max_length_offset == 5
    assert len(greedy.translate(sentences[:2])) == 2
    with pytest.raises(UserError, match=r"search\.beam_size=0"):
        Translator.load(tiny_model, device="cpu", beam_size=0)
    with pytest.raises(UserError, match=r"search\.n_best=5"):
        Translator.load(tiny_model, device="cpu", n_best=5)
    with pytest.raises(UserError, match=r"beam_sise: no such setting of search; did you mean beam_size\?"):
        Translator.load(tiny_model, device="cpu", beam_sise=4)
    with pytest.raises(UserError, match="no such device"):
        Translator.load(tiny_model, device="gpu")


def test_nothing_can_begin_with_a_prefix_where_there_is_nothing_to_translate(translator: Translator) -> None:
    blank, free, usual = translator.translate_n_best([" ", "", "the dog"], ["das", " ", "das"])
    assert (blank.texts, blank.status) == ([""], "empty,unmet") and "cannot begin with a prefix" in blank.unmet
    assert (free.status, free.unmet, usual.unmet) == ("empty", "", "")
    greedy = replace(translator, search=SearchConfig(beam_size=1))
    with pytest.raises(UserError, match="cannot begin with a prefix"):
        list(greedy.stream(" ", "das"))
    assert list(greedy.stream(" ", " ")) == []


@pytest.mark.parametrize("name", ["transformer", "recurrent"])
def test_deterministic_token_scores_are_the_same_to_the_last_bit(name: str) -> None:
    model = Path(__file__).parents[1] / "fixtures" / "models" / "format-1" / name
    translator = replace(Translator.load(model, device="cpu"), deterministic=True)
    texts = [" ".join(["the old dog"] * count) for count in range(1, 12)]
    together = translator.explain(translator.translate_n_best(texts))
    for text, ((score,),) in zip(texts, together, strict=True):
        (((alone,),),) = translator.explain(translator.translate_n_best([text]))
        assert alone.token_log_probs == score.token_log_probs


def test_prefixes_are_as_many_as_texts(translator: Translator) -> None:
    with pytest.raises(UserError, match="1 prefixes for 2 texts: give one for each"):
        translator.translate(["the dog", "a cat"], ["der"])


def test_one_text_is_not_taken_for_a_list_of_its_letters(translator: Translator) -> None:
    with pytest.raises(UserError, match="texts: str given, where a list of strings is needed"):
        translator.translate("the dog")
    with pytest.raises(UserError, match="prefixes: str given, where a list of strings is needed"):
        translator.translate(["the dog"], "der")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "texts: NoneType given, where a list of strings is needed"),
        (b"the dog", "texts: bytes given"),
        (["the dog", None], r"texts\[1\] is NoneType, must be str: None"),
        ([b"the dog"], r"texts\[0\] is bytes, must be str: b'the dog'"),
    ],
)
def test_what_is_no_text_is_refused(texts: Any, message: str, translator: Translator) -> None:
    with pytest.raises(UserError, match=message):
        translator.translate(texts)
    for of_one in texts if isinstance(texts, list) else [texts]:
        if of_one != "the dog":
            with pytest.raises(UserError, match="must be str"):
                list(replace(translator, search=SearchConfig(beam_size=1)).stream(of_one))


def test_texts_may_come_one_by_one(translator: Translator, sentences: list[str]) -> None:
    assert translator.translate(iter(sentences[:3]), iter(["", "", ""])) == translator.translate(sentences[:3])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("search.beam_size", 0, "search.beam_size=0: must be at least 1"),
        ("search.beam_size", "4", "search.beam_size='4': must be a whole number"),
        ("search.beam_size", 2.5, "search.beam_size=2.5: must be a whole number"),
        ("search.beam_size", True, "search.beam_size=True: must be a whole number"),
        ("search.length_penalty", None, "search.length_penalty=None: must be a number"),
        ("search.sampling", "yes", "search.sampling='yes': must be true or false"),
        ("search.max_length", 2.0, "search.max_length=2.0: must be a whole number or null"),
        ("search.n_best", 5, "search.n_best=5: must not be above search.beam_size=4"),
        ("search", {"beam_size": 2}, "change its settings one by one"),
        ("workers", True, "workers=True: must be a whole number, at least 1"),
        ("workers", 0, "workers=0: must be a whole number, at least 1"),
        ("batch_tokens", "x", "batch_tokens='x': must be a whole number, at least 1"),
        ("glossary", {"dog": "Hund"}, "must be a Glossary, as in Glossary"),
        ("forbidden", "Hund", "forbidden: str given, where a list of strings is needed"),
    ],
)
def test_a_setting_changed_to_what_it_may_not_be(name: str, value: Any, message: str, tiny_model: Path) -> None:
    translator = Translator.load(tiny_model, device="cpu")
    owner, _, own = name.rpartition(".")
    setattr(translator.search if owner else translator, own, value)
    with pytest.raises(UserError, match=message):
        translator.translate(["the dog"])
    with pytest.raises(UserError, match=message):
        list(translator.stream("the dog"))


def test_numbers_may_be_those_of_numpy(tiny_model: Path) -> None:
    translator = Translator.load(tiny_model, device="cpu", beam_size=np.int64(2), length_penalty=np.float32(0.5))
    translator.batch_tokens = cast(int, np.int64(100))
    assert len(translator.translate(["the dog"])) == 1


def test_a_misspelt_setting_cannot_be_set(tiny_model: Path) -> None:
    with pytest.raises(AttributeError, match="beamsize"):
        Translator.load(tiny_model, device="cpu").search.beamsize = 6  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [1, 20])
def test_half_a_character_is_refused(translator: Translator, count: int) -> None:
    with pytest.raises(UserError, match=r"'the \\ud800': '\\ud800' is half a character"):
        translator.translate(["a cat"] * (count - 1) + ["the \ud800 dog"])


def test_bfloat16_gives_scores_near_those_of_float32(
    tiny_model: Path, translator: Translator, sentences: list[str]
) -> None:
    halved = Translator.load(tiny_model, device="cpu", dtype=torch.bfloat16)
    assert halved.model.output_weight.dtype == torch.bfloat16
    for one, other in zip(
        translator.translate_n_best(sentences[:5]), halved.translate_n_best(sentences[:5]), strict=True
    ):
        assert one.scores == pytest.approx(other.scores, abs=0.2)


def test_what_was_verified_is_what_is_used(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = shutil.copytree(tiny_model, tmp_path / "model") / "manifest.json"
    written = json.dumps({**read_json(manifest), "longest_source": 17})

    def read_and_exchanged(path: Path) -> Any:
        path.write_text(written)
        found = read_json(path)
        path.write_text("{}")
        return found

    monkeypatch.setattr(directory, "read_json", read_and_exchanged)
    assert Translator.load(manifest.parent, device="cpu").longest == 17
    assert Scorer.load(manifest.parent, device="cpu").longest_source == 17


def test_a_missing_model_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model there .*seq2seq-train \+recipe=quickstart"):
        Translator.load(tmp_path)


def test_the_end_of_a_windows_line_changes_nothing(translator: Translator, sentences: list[str]) -> None:
    assert translator.translate([f" {line}\t\r" for line in sentences[:5]]) == (translator.translate(sentences[:5]))
