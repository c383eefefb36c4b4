"""What a translator is asked for beyond the best output: terms, prefixes, samples, several models, streaming."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from seq2seq.config.compose import load
from seq2seq.data.tokenizer import Tokenizer, train_tokenizer
from seq2seq.model.directory import load_model_directory, save_model_directory
from seq2seq.model.ensemble import Ensemble
from seq2seq.model.translation import build_model
from seq2seq.model.weights import own_weights
from seq2seq.ops.batch_invariance import is_batch_invariant
from seq2seq.ops.packing import Layout
from seq2seq.search.beam import Beams
from seq2seq.support.errors import OutOfMemory, RunError, UserError
from seq2seq.translate import translator as translator_module
from seq2seq.translate.glossary import Glossary
from seq2seq.translate.scoring import PairScore, described, links
from seq2seq.translate.splitting import join
from seq2seq.translate.translator import Translator


@pytest.fixture(scope="module")
def sentences(toy_pairs: list[tuple[str, str]]) -> list[str]:
    return sorted((source for source, _ in toy_pairs[:60]), key=len)[:16]


def loaded(model: Path, **search: Any) -> Translator:
    return Translator.load(model, device="cpu", **{"max_length_offset": 30, **search})


def test_terms_of_a_glossary_stand_in_the_output(tiny_model: Path, sentences: list[str]) -> None:
    sentences = sentences[:10]
    translator, plain = loaded(tiny_model, n_best=2), loaded(tiny_model, n_best=2)
    translator.glossary = Glossary({"dog": "Wolf", "apple": "Birne", "river": "Strom"})
    found = translator.translate_n_best(sentences)
    for text, translation, without in zip(sentences, found, plain.translate_n_best(sentences), strict=True):
        terms = translator.glossary.targets(text)
        assert all(term in output for term in terms for output in translation.texts)
        if not terms:
            assert translation.texts == without.texts
            assert translation.scores == pytest.approx(without.scores, abs=1e-4)
    assert {len(translator.glossary.targets(text)) for text in sentences} >= {0, 1, 2}
    shuffled = random.Random(2).sample(range(len(sentences)), len(sentences))
    again = translator.translate_n_best([sentences[index] for index in shuffled])
    assert [translation.texts for translation in again] == [found[index].texts for index in shuffled]


def test_what_cannot_be_had_is_left_out_and_told(tiny_model: Path) -> None:
    translator = Translator.load(tiny_model, device="cpu", max_length_ratio=0.0, max_length_offset=6)
    translator.glossary = Glossary({"dog": "x y z u v w x y z"})
    plain = Translator.load(tiny_model, device="cpu", max_length_ratio=0.0, max_length_offset=6).translate(["the dog"])
    (found,) = translator.translate_n_best(["the dog"])
    assert "unmet" in found.flags and found.texts == plain
    assert found.unmet == "no output of at most 5 pieces contains all of 'x y z u v w x y z'"
    (found,) = translator.translate_n_best(["the man"], ["das das das das das das"])
    assert "unmet" in found.flags
    assert "the prefix has 6 pieces, but the output may have only 5" in found.unmet


def test_forbidden_texts_do_not_appear(tiny_model: Path) -> None:
    translator = loaded(tiny_model)
    translator.glossary = Glossary({"dog": "Wolf", "man": "Frau"})
    wolf_text, woman_text = translator.translate(["the dog", "the man"])
    assert "Wolf" in wolf_text and "Frau" in woman_text
    translator.forbidden = ["Wolf"]
    (wolf, woman) = translator.translate_n_best(["the dog", "the man"])
    assert "unmet" in wolf.flags and "Wolf" not in wolf.texts[0]
    assert "unmet" not in woman.flags


@pytest.mark.parametrize("beam_size", [1, 4])
def test_outputs_begin_with_their_prefixes(tiny_model: Path, sentences: list[str], beam_size: int) -> None:
    translator = loaded(tiny_model, beam_size=beam_size)
    prefixes = [("Der kalte Fluss", "", "Zwölf Äpfel 🦊")[place % 3] for place in range(len(sentences))]
    found = translator.translate(sentences, prefixes)
    assert all(text.startswith(prefix) for text, prefix in zip(found, prefixes, strict=True))
    plain = translator.translate(sentences)
    assert found[1::3] == plain[1::3] and found != plain
    assert translator.translate(["", sentences[0]], ["Der", "Der"])[0] == ""


def test_the_prefix_of_a_long_text_is_that_of_its_first_part(tiny_model: Path) -> None:
    translator = loaded(tiny_model)
    translator.longest = 24
    (found,) = translator.translate(["the old dog sees the red apple. the man finds the tree."], ["Zwei"])
    assert found.startswith("Zwei") and found.count("Zwei") == 1


def test_samples_are_the_same_for_the_same_seed(tiny_model: Path, sentences: list[str]) -> None:
    def sampled(**search: Any) -> list[list[str]]:
        found = loaded(tiny_model, sampling=True, n_best=3, **search).translate_n_best(sentences)
        return [translation.texts for translation in found]

    first = sampled()
    assert sampled() == first != sampled(seed=2)
    backwards = loaded(tiny_model, sampling=True, n_best=3).translate_n_best(sentences[::-1])
    assert [translation.texts for translation in backwards[::-1]] == first
    assert any(len(set(texts)) > 1 for texts in first)
    assert [texts[0] for texts in sampled(top_k=1)] == loaded(tiny_model, beam_size=1).translate(sentences)


def test_samples_hold_no_terms(tiny_model: Path) -> None:
    translator = loaded(tiny_model, sampling=True)
    translator.glossary = Glossary({"dog": "Wolf"})
    with pytest.raises(UserError, match="a glossary is for beam search"):
        translator.translate(["the dog"])
    translator.glossary = Glossary({})
    assert len(translator.translate(["the dog"])) == 1


@pytest.fixture(scope="module")
def sister(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the vocabulary of the tiny one and other weights."""
    config, tokenizer, *_ = load_model_directory(tiny_model)
    folder = tmp_path_factory.mktemp("sister") / "model"
    save_model_directory(folder, config, tokenizer, own_weights(build_model(config.model, tokenizer.vocab_size, 99)))
    return folder


def test_an_ensemble_is_the_mean_of_probabilities(tiny_model: Path, sister: Path, sentences: list[str]) -> None:
    one, other = Translator.load(tiny_model, device="cpu"), Translator.load(sister, device="cpu")
    both = Ensemble([one.model, other.model])
    source = torch.tensor([*one.tokenizer.encode(sentences[:1])[0], 3])
    tokens, parents = torch.tensor([[2]]), torch.tensor([[0]])
    layout = Layout.of([len(source)])
    with torch.inference_mode():
        each = []
        for model in (one.model, other.model):
            hidden = model.step(model.start(model.encode(source, layout)), tokens, parents)
            each.append(model.logits(hidden).softmax(-1))
        found = both.logits(both.step(both.start(both.encode(source, layout)), tokens, parents))
    torch.testing.assert_close(found.exp(), (each[0] + each[1]) / 2)


def test_an_ensemble_of_one_model_with_itself_changes_nothing(
    tiny_model: Path, sister: Path, sentences: list[str]
) -> None:
    plain, twice = loaded(tiny_model), Translator.load(tiny_model, tiny_model, device="cpu", max_length_offset=30)
    assert twice.translate(sentences) == plain.translate(sentences)
    different = Translator.load(tiny_model, sister, device="cpu", max_length_offset=30).translate(sentences)
    assert different != plain.translate(sentences)


def test_nor_does_it_in_int8(tiny_model: Path, sentences: list[str]) -> None:
    plain, twice = (Translator.load(*[tiny_model] * count, device="cpu", dtype="int8") for count in (1, 2))
    assert twice.translate(sentences) == plain.translate(sentences)


def test_an_ensemble_has_one_vocabulary(tiny_model: Path, tmp_path: Path) -> None:
    config = load(tiny_model / "config.yaml")
    config.tokenizer.vocab_size = 300
    tokenizer: Tokenizer = train_tokenizer(["the quick brown fox"] * 20, config.tokenizer)
    model = build_model(config.model, tokenizer.vocab_size, 1)
    save_model_directory(tmp_path / "other", config, tokenizer, own_weights(model))
    with pytest.raises(UserError, match=r"other has another vocabulary than .*model: they cannot search together"):
        Translator.load(tiny_model, tmp_path / "other", device="cpu")


def test_streaming_gives_the_same_text_bit_by_bit(tiny_model: Path, sentences: list[str]) -> None:
    translator = loaded(tiny_model, beam_size=1)
    translator.longest = 24
    texts = [*sentences[:6], "", " ", "the old dog sees the red apple. the man finds the tree."]
    for text, prefix in [*((text, "") for text in texts), (texts[0], "🦊 ö")]:
        pieces = list(translator.stream(text, prefix))
        assert "".join(pieces) == translator.translate([text], [prefix])[0]
        assert len(pieces) > 3 or not text.strip()
    alone = Translator.load(tiny_model, device="cpu", dtype="int8", beam_size=1)
    alone.deterministic = True
    assert ["".join(alone.stream(text)) for text in sentences] == alone.translate(sentences)
    assert not is_batch_invariant()
    with pytest.raises(UserError, match=r"the prefix has .* pieces, but the output may have only 3"):
        list(loaded(tiny_model, beam_size=1, max_length=4).stream("the dog", "das das das das das"))
    with pytest.raises(UserError, match="streaming is for a single hypothesis, not 4"):
        list(loaded(tiny_model).stream("the dog"))


def test_devices_share_the_work_in_order(tiny_model: Path, sentences: list[str]) -> None:
    translator = Translator.load(tiny_model, device="cpu,cpu", max_length_offset=30)
    assert translator.devices == [torch.device("cpu")] * 2
    texts = sentences * 3
    assert translator.translate(texts) == loaded(tiny_model).translate(texts)
    assert translator._started is not None and len(translator._started.processes) == 2
    translator._started.close()


def test_devices_explain_in_their_format(tiny_model: Path, sentences: list[str]) -> None:
    one, two = (Translator.load(tiny_model, device=device, dtype="int8") for device in ("cpu", "cpu,cpu"))
    found = one.translate_n_best(sentences[:7])
    scores = [
        [part.token_log_probs for told in translator.explain(found) for parts in told for part in parts]
        for translator in (one, two)
    ]
    assert len(scores[0]) == 7
    for ours, theirs in zip(*scores, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert two._started is not None
    two._started.close()
    two.search.beam_size = 1
    with pytest.raises(UserError, match=r"streaming uses one device: .*--device cuda:0"):
        list(two.stream("the dog"))


@pytest.mark.parametrize("workers", [1, 2])
def test_what_does_not_fit_the_memory_is_told_with_what_would(
    tiny_model: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def full(*_: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Beams, "advance", full)
    monkeypatch.setattr(translator_module, "TOKENS_OF_A_WORKER", 1)
    translator = loaded(tiny_model, beam_size=1)
    translator.workers = workers
    with pytest.raises(OutOfMemory, match=r"\d texts, .* does not fit .* 8192\); type --batch-tokens (32|64|128|256)$"):
        translator.translate(sentences)
    with pytest.raises(OutOfMemory, match=r"of 1 texts, .*; type --device cpu$"):
        list(translator.stream(sentences[0]))


def test_token_scores_add_up_to_the_score(tiny_model: Path, sentences: list[str]) -> None:
    translator = loaded(tiny_model, length_penalty=0.0, n_best=2)
    translator.longest = 24
    found = translator.translate_n_best([*sentences[:4], "", "the old dog sees the red apple. the man finds the tree."])
    for translation, told in zip(found, translator.explain(found, attention=True), strict=True):
        assert len(told) == (0 if translation.flags == ["empty"] else len(translation.texts))
        for score, parts in zip(translation.scores, told, strict=False):
            assert sum(part.score for part in parts) == pytest.approx(score, abs=1e-4)
            assert all(part.attention is not None for part in parts)
    assert len(translator.explain(found)[5][0]) == 2, "in two parts"


def test_a_long_texts_words_are_counted_through(tiny_model: Path) -> None:
    translator = loaded(tiny_model)
    translator.longest = 24
    text = "the old dog sees the red apple. the man finds the tree."
    (found,) = translator.translate_n_best([text])
    (told,) = translator.explain([found], attention=True)
    row = described(translator.tokenizer, told[0], tokens=True, align="pharaoh")
    links = [tuple(map(int, link.split("-"))) for link in row["alignment"].split()]
    assert [place for _, place in links] == list(range(len(found.texts[0].split())))
    assert max(word for word, _ in links) <= 11 and links[-1][0] >= 7, "the last word comes from the second sentence"
    assert len(row["tokens"]) == len(row["token_log_probs"]) and row["tokens"].count("</s>") == 2


def test_parts_in_chinese_are_joined_without_a_space(tiny_model: Path) -> None:
    start = "一只狗。"
    tokenizer = loaded(tiny_model).tokenizer
    # The first part is as long as its beginning may be.
    translator = loaded(tiny_model, beam_size=1, max_length=tokenizer.count([start])[0] + 1)
    translator.longest = 24
    text = "the old dog sees the red apple. the man finds the tree."
    (found,) = translator.translate_n_best([text], [start])
    assert len(found.outputs[0]) == 2 and found.texts[0].startswith(start) and found.texts[0][len(start)] != " "
    assert "".join(translator.stream(text, start)) == found.texts[0]
    (told,) = translator.explain([found], attention=True)
    places = [place for _, place in links(tokenizer, told[0])]
    assert max(places) + 1 == len(found.texts[0].split()), "words are those of the joined text"


def test_an_empty_part_has_no_words(tiny_model: Path) -> None:
    tokenizer = loaded(tiny_model).tokenizer
    dog = tokenizer.encode(["dog"])[0]
    parts = [
        PairScore(dog, target, [], torch.full((len(target) + 1, len(dog) + 1), 0.1))
        for target in (tokenizer.encode(["他"])[0], [], dog)
    ]
    assert join(["他", "", "dog"]) == "他 dog"
    assert links(tokenizer, parts) == [(0, 0), (2, 1)]


def test_a_word_that_is_cut_remains_one(tiny_model: Path) -> None:
    translator = loaded(tiny_model)
    translator.longest = 12
    (found,) = translator.translate_n_best(["dog" * 12 + " sees"])
    (told,) = translator.explain([found], attention=True)
    assert len(told[0]) > 2
    assert [part.within_word for part in told[0]] == [False, *[True] * (len(told[0]) - 1)]
    assert {word for word, _ in links(translator.tokenizer, told[0])} <= {0, 1}


def test_coverage_chooses_among_all_finished_outputs(tiny_model: Path, sentences: list[str]) -> None:
    beta = 3.0
    many = loaded(tiny_model, n_best=4).translate_n_best(sentences)
    told = loaded(tiny_model).explain(many, attention=True)
    found = loaded(tiny_model, coverage_penalty=beta).translate_n_best(sentences)
    changed = 0
    for translation, parts, covered in zip(many, told, found, strict=True):
        totals = []
        for score, (part,) in zip(translation.scores, parts, strict=True):
            assert part.attention is not None
            totals.append(score + beta * float(part.attention[:, :-1].sum(0).clamp(max=1.0).log().sum()))
        assert covered.scores[0] == pytest.approx(max(totals), abs=1e-4)
        assert covered.texts == [translation.texts[totals.index(max(totals))]]
        changed += totals.index(max(totals)) > 0
    assert changed, "it made a difference"


def test_each_text_without_its_terms_is_its_own(tiny_model: Path) -> None:
    translator = Translator.load(tiny_model, device="cpu", max_length_ratio=0.0, max_length_offset=6)
    plain = translator.translate(["the man", "the dog"])
    assert plain[0] != plain[1]
    translator.glossary = Glossary({"dog": "x y z u v w x y z"})
    found = translator.translate_n_best(["the man", "the dog"])
    assert [one.texts[0] for one in found] == plain
    assert [one.status.endswith("unmet") for one in found] == [False, True]


def with_positions(folder: Path, tiny_model: Path, count: int) -> Path:
    """A model of the same vocabulary that has learnt so many positions."""
    config, tokenizer, *_ = load_model_directory(tiny_model)
    for side in ("encoder", "decoder"):
        setattr(config.model, side, replace(getattr(config.model, side), positions="learned", max_positions=count))
    config.data.cleaning.max_pieces = count - 1
    save_model_directory(folder, config, tokenizer, own_weights(build_model(config.model, tokenizer.vocab_size, count)))
    return folder


def test_an_ensemble_has_all_its_models_and_the_least_limits(tiny_model: Path, tmp_path: Path) -> None:
    others = [with_positions(tmp_path / str(count), tiny_model, count) for count in (40, 20)]
    translator = Translator.load(tiny_model, *others, device="cpu")
    assert len(translator.others) == 2
    assert (translator.longest, translator.longest_output) == (10, 20)


def test_other_pieces_in_a_vocabulary_of_the_same_size_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    config, own, *_ = load_model_directory(tiny_model)
    config.tokenizer.vocab_size = own.vocab_size
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(3000)]
    other = train_tokenizer([" ".join(words[start : start + 8]) for start in range(0, 3000, 8)], config.tokenizer)
    assert other.vocab_size == own.vocab_size
    weights = own_weights(build_model(config.model, other.vocab_size, 1))
    save_model_directory(tmp_path / "other", config, other, weights)
    with pytest.raises(UserError, match="another vocabulary"):
        Translator.load(tiny_model, tmp_path / "other", device="cpu")


def test_broken_weights_stream_nothing(tiny_model: Path) -> None:
    translator = Translator.load(tiny_model, device="cpu", beam_size=1)
    with torch.no_grad():
        next(iter(translator.model.parameters())).fill_(float("nan"))
    with pytest.raises(RunError, match="no finite scores"):
        list(translator.stream("the dog"))


def test_blanks_around_a_prefix_are_none_of_it(tiny_model: Path) -> None:
    translator = Translator.load(tiny_model, device="cpu")
    assert translator.translate(["the dog"], [" Der\r"]) == translator.translate(["the dog"], ["Der"])


def test_what_needs_several_hypotheses_is_no_stream(tiny_model: Path) -> None:
    translator = Translator.load(tiny_model, device="cpu", sampling=True, n_best=2)
    with pytest.raises(UserError, match=r"not 2: set n_best=1 \(--n-best 1\)"):
        list(translator.stream("the dog"))
    translator = Translator.load(tiny_model, device="cpu", beam_size=1)
    translator.glossary = Glossary({"dog": "Wolf"})
    with pytest.raises(UserError, match="not with a glossary"):
        list(translator.stream("the dog"))
