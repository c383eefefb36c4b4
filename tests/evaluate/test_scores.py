"""Scores are sacreBLEU's own numbers, each with the signature that says which."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu
import sacremoses
from hypothesis import given
from hypothesis import strategies as st

from seq2seq.evaluate.scores import (
    below_minimums,
    bleu,
    bleu_tokenizer,
    compare,
    exact,
    language_mismatch,
    paper_bleu,
    scores,
    tokenised_bleu,
)

REFERENCES = [
    "Ein brauner Hund rennt über die grüne Wiese.",
    "Drei Männer stehen auf dem Dach; sie reparieren es.",
    "Eine Frau in einem roten Kleid liest ein Buch.",
    "Zwei Kinder spielen im Schnee, und niemand schaut zu.",
]
HYPOTHESES = [
    "Ein brauner Hund rennt über die grüne Wiese.",
    "Drei Männer stehen auf einem Dach und reparieren es.",
    "eine Frau in einem roten Kleid liest.",
    "Zwei Kinder spielen draußen im Schnee und niemand schaut.",
]


def test_scores_are_those_of_sacrebleu() -> None:
    found = scores(HYPOTHESES, REFERENCES)
    assert found["bleu"]["score"] == round(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score, 2)
    assert found["chrf"]["score"] == round(sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score, 2)
    assert found["ter"]["score"] == round(sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES], case_sensitive=True).score, 2)
    assert 20 < found["bleu"]["score"] < 80
    assert bleu(HYPOTHESES, REFERENCES)[0] == pytest.approx(found["bleu"]["score"], abs=0.005)
    assert found["sentences"] == 4
    assert found["exact"] == 25.0


def lines_like_news(count: int) -> tuple[list[str], list[str]]:
    """References with the punctuation, numbers and line separators of real text, and hypotheses that differ in part."""
    rng = random.Random(5)
    text = (
        "der Ölpreis stieg um 3,5 % auf 1.234,50 US-Dollar „teuer“ sagte O'Neill – (dpa) E-Mail-Adresse v. A-ü-B &amp;"
    )
    words = text.split()
    marks = [".", "?", "!", " ...", " .", "", "\u2028 Ja.", "\x85Nein.", "\rDoch\u00a0!", '"']
    references, hypotheses = [], []
    for _ in range(count):
        line = rng.choices(words, k=rng.randint(1, 30))
        references.append(" ".join(line) + rng.choice(marks))
        changed = [rng.choice(words) if rng.random() < 0.2 else word for word in line]
        changed = changed[: rng.randint(len(changed) // 2, len(changed))] if rng.random() < 0.3 else changed
        hypothesis = " ".join(changed) + rng.choice(marks)
        hypotheses.append(hypothesis.upper() if rng.random() < 0.1 else hypothesis)
    hypotheses[7] = ""
    return hypotheses, references


@pytest.mark.parametrize("lowercase", [False, True])
def test_scores_are_those_that_the_command_sacrebleu_prints(lowercase: bool, tmp_path: Path) -> None:
    lines = lines_like_news(300)
    for name, text in zip(("hypotheses", "references"), lines, strict=True):
        (tmp_path / name).write_bytes("".join(f"{line}\n" for line in text).encode())
    case = ["-lc", "--chrf-lowercase"] if lowercase else ["--ter-case-sensitive"]
    printed = subprocess.run(
        [
            *(sys.executable, "-m", "sacrebleu", "references", "-i", "hypotheses", "--force"),
            *("-m", "bleu", "chrf", "ter", "-w", "2", *case),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    ).stdout
    found = scores(*lines, lowercase=lowercase)
    expected = json.loads(printed)
    assert [metric["name"] for metric in expected] == ["BLEU", "chrF2", "TER"]
    for name, metric in zip(("bleu", "chrf", "ter"), expected, strict=True):
        assert found[name] == {key: metric[key] for key in ("score", "signature")}
    assert 20 < found["bleu"]["score"] < 80


def test_signatures_say_what_was_computed() -> None:
    version = sacrebleu.__version__
    cased, caseless = scores(HYPOTHESES, REFERENCES), scores(HYPOTHESES, REFERENCES, lowercase=True)
    assert cased["bleu"]["signature"] == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert cased["chrf"]["signature"] == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    assert cased["ter"]["signature"] == f"nrefs:1|case:mixed|tok:tercom|norm:no|punct:yes|asian:no|version:{version}"
    for name in ("bleu", "ter"):
        assert caseless[name]["signature"] == cased[name]["signature"].replace("mixed", "lc")


def test_lowercase_ignores_case() -> None:
    shouted = [line.upper() for line in REFERENCES]
    found = scores(shouted, REFERENCES, lowercase=True)
    assert (found["bleu"]["score"], found["ter"]["score"]) == (100.0, 0.0)
    assert found["bleu"]["score"] == round(sacrebleu.corpus_bleu(shouted, [REFERENCES], lowercase=True).score, 2)
    assert scores(shouted, REFERENCES)["bleu"]["score"] < 30
    assert tokenised_bleu(shouted, REFERENCES, "de", lowercase=True, split_compounds=True)["score"] == 100.0


def test_exact_counts_equal_lines() -> None:
    assert exact([("a", "a"), ("b", "B"), ("c", "c")]) == 66.66
    assert exact([("a", "a")] * 29_999 + [("a", "b")]) == 99.99
    assert exact([("a", "a")] * 29_999) == 100.0
    assert exact([]) == 0.0
    assert exact([("a ", "a")]) == 0.0


@given(lines=st.lists(st.text(st.characters(categories=["L", "N", "Z", "P"]), min_size=20), min_size=1, max_size=3))
def test_a_text_scores_itself_best(lines: list[str]) -> None:
    found = scores(lines, lines)
    assert found["exact"] == 100.0
    assert found["ter"]["score"] == 0.0


def test_inputs_are_left_alone() -> None:
    hypotheses, references = list(HYPOTHESES), tuple(REFERENCES)
    scores(hypotheses, references)
    assert (hypotheses, references) == (HYPOTHESES, tuple(REFERENCES))


def test_bars() -> None:
    found = {**scores(HYPOTHESES, REFERENCES, ["a", "a", "b", "b"]), "bleu": {"score": 40.0}}
    assert below_minimums(found, None, None, None) == below_minimums(found, 40.0, 25.0, 0.0) == []
    assert below_minimums(found, 40.1, 26.0, 1.0) == [
        "BLEU 40.0 is below --min-bleu 40.1",
        "exact 25.0 is below --min-exact 26.0",
        "exact (b) 0.0 is below --min-exact-each 1.0",
    ]


# The paper's BLEU.

# Tokenised and split by hand, as the two Perl lines would: `tokenizer.perl -l de`, s{(\S)-(\S)}{$1 ##AT##-##AT## $2}g.
COMPOUND = "der deutsch-französische Vertrag kostet 3-4-5 Mio. „Euro“ - so Merkel."
SPLIT = "der deutsch ##AT##-##AT## französische Vertrag kostet 3 ##AT##-##AT## 4-5 Mio. „ Euro “ - so Merkel ."


def test_paper_bleu_splits_compounds() -> None:
    other, other_split = COMPOUND.replace("Vertrag", "Pakt"), SPLIT.replace("Vertrag", "Pakt")
    by_hand = sacrebleu.corpus_bleu([other_split], [[SPLIT]], tokenize="none", force=True).score
    found = tokenised_bleu([other], [COMPOUND], "de", split_compounds=True)
    assert found["score"] == round(by_hand, 2)
    assert found["score"] > round(sacrebleu.corpus_bleu([other], [[COMPOUND]], tokenize="none", force=True).score, 2)
    assert re.fullmatch(
        r"nrefs:1\|case:mixed\|eff:no\|tok:none\|smooth:none\|version:[\d.]+"
        rf"\|moses:sacremoses-{re.escape(sacremoses.__version__)}\|compounds:split",
        found["signature"],
    )


def test_paper_bleu_counts_each_part_of_a_compound() -> None:
    # Two of the three parts right: with the compound in one piece nothing would match there.
    line = "a b c {} d e f"
    one, other = line.format("state-of-art"), line.format("state-of-arts")
    found = tokenised_bleu([one], [other], "en", split_compounds=True)["score"]
    assert tokenised_bleu([one], [other], "en")["score"] < found
    expected = sacrebleu.corpus_bleu(
        [line.format("state ##AT##-##AT## of ##AT##-##AT## art")],
        [[line.format("state ##AT##-##AT## of ##AT##-##AT## arts")]],
        tokenize="none",
        force=True,
    ).score
    assert found == round(expected, 2)


def test_tokenised_bleu_worked_out_by_hand() -> None:
    # Tokens: Der Hund sieht die Katze , und er rennt . (10) against Der Hund sieht die Katze und rennt . (8).
    # All 8 words are right, 5 of 7 pairs (not "Katze und", "und rennt"), 3 of 6 triples, 2 of 5 quadruples.
    precisions, brevity_penalty = 8 / 8 * 5 / 7 * 3 / 6 * 2 / 5, math.exp(1 - 10 / 8)
    by_hand = 100 * brevity_penalty * precisions**0.25
    found = tokenised_bleu(["Der Hund sieht die Katze und rennt."], ["Der Hund sieht die Katze, und er rennt."], "de")[
        "score"
    ]
    assert found == round(by_hand, 2) == 47.88


def test_splitting_compounds_changes_the_score_as_worked_out_by_hand() -> None:
    one, other = "Der rot-grüne Ball liegt da.", "Der rot-grüne Ball liegt dort."
    # Whole: 5 of 6 tokens, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples ("Der rot-grüne Ball liegt") are right.
    whole = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    # Split into three tokens: 7 of 8, 5 of 7, 4 of 6, 3 of 5.
    split = 100 * (7 / 8 * 5 / 7 * 4 / 6 * 3 / 5) ** 0.25
    assert tokenised_bleu([one], [other], "de")["score"] == round(whole, 2) == 53.73
    assert tokenised_bleu([one], [other], "de", split_compounds=True)["score"] == round(split, 2) == 70.71


def test_without_a_right_quadruple_the_score_is_0_as_with_multi_bleu() -> None:
    line = "Der Hund sieht die Katze."
    assert tokenised_bleu(["Der Hund sieht eine Katze."], [line], "de")["score"] == 0.0
    assert scores(["Der Hund sieht eine Katze."], [line])["bleu"]["score"] > 0


@pytest.mark.skipif(not shutil.which("perl"), reason="no perl here")
def test_compounds_are_split_as_perl_splits_them() -> None:
    hypotheses, references = lines_like_news(300)
    tokenizer = sacremoses.MosesTokenizer("de")

    def prepared(lines: list[str]) -> list[str]:
        tokens = "".join(f"{tokenizer.tokenize(line, return_str=True, escape=False)}\n" for line in lines)
        command = ["perl", "-ple", "s{(\\S)-(\\S)}{$1 ##AT##-##AT## $2}g"]
        done = subprocess.run(command, input=tokens.encode(), check=True, capture_output=True)
        return done.stdout.decode().split("\n")

    split = prepared(hypotheses), prepared(references)
    assert any("A ##AT##-##AT## ü ##AT##-##AT## B" in line for line in split[1]), "as bytes, ü is two characters"
    expected = sacrebleu.corpus_bleu(split[0], [split[1]], tokenize="none", force=True).score
    assert tokenised_bleu(hypotheses, references, "de", split_compounds=True)["score"] == round(expected, 2)


def test_compounds_are_split_in_german_alone() -> None:
    one, other = "Un porte-avions est là, ca. 3.", "Un porte-avions est ici, là, ca. 3. Mai"
    german, french = (paper_bleu([one], [other], language) for language in ("de", "fr"))
    assert paper_bleu([one], [other], "de-AT") == paper_bleu([one], [other], "ger") == german
    assert german["tokenised_bleu"]["signature"].endswith("|compounds:whole")
    assert german["paper_bleu"]["signature"].endswith("|compounds:split")
    assert french["paper_bleu"] == french["tokenised_bleu"]
    assert french["paper_bleu"]["signature"].endswith("|compounds:whole")


# Comparing systems.


@pytest.fixture(scope="module")
def systems(toy_pairs: list[tuple[str, str]]) -> tuple[list[str], list[str], list[str]]:
    """References, a good system that errs in one line of ten, and a bad one that errs in every line."""
    rng = random.Random(3)
    references = [target for _, target in toy_pairs[:80]]

    def wrong(line: str) -> str:
        words = line.split()
        rng.shuffle(words)
        return " ".join(words)

    some_wrong = [wrong(line) if number % 10 == 0 else line for number, line in enumerate(references)]
    return references, some_wrong, [wrong(line) for line in references]


def test_a_better_system_is_significantly_better(systems: tuple[list[str], list[str], list[str]]) -> None:
    references, good, bad = systems
    found = compare([("base", bad), ("new", good)], references)
    base, new = found["systems"]
    assert (base["name"], new["name"]) == ("base", "new")
    assert base["bleu"] == round(bleu(bad, references)[0], 2)
    assert new["bleu"] == round(bleu(good, references)[0], 2)
    assert base["p_value"] is None
    assert new["p_value"] < 0.01
    assert new["mean"] == pytest.approx(new["bleu"], abs=2)
    assert 0 < new["confidence_95"] < 10
    assert found["signature"].startswith("nrefs:1|bs:1000|seed:12345|case:mixed")


def test_equal_systems_are_not_different(systems: tuple[list[str], list[str], list[str]]) -> None:
    references, good, _ = systems
    _, same = compare([("a", good), ("b", list(good))], references)["systems"]
    assert same["p_value"] == 1.0, "sacreBLEU itself says 0.001"
    assert compare([("a", good), ("b", good)], references) == compare([("a", good), ("b", good)], references)


def test_comparing_can_ignore_case(systems: tuple[list[str], list[str], list[str]]) -> None:
    references, _, bad = systems
    shouted = [line.upper() for line in references]
    found = compare([("bad", bad), ("shouted", shouted)], references, lowercase=True)
    assert found["systems"][1]["bleu"] == 100.0
    assert "case:lc" in found["signature"]


CHINESE = ["一只棕色的狗跑过绿色的草地。", "三个男人站在屋顶上。", "一个穿红裙子的女人在看书。"]
NEARLY = ["一只棕色的狗跑过草地。", "三个男人站在屋顶上面。", "一个穿红裙子的女人在看一本书。"]


def test_words_are_split_as_the_language_needs() -> None:
    splitters = {"zh": "zh", "zh-TW": "zh", "zho_Hans": "zh", "th": "char", "de": "13a", "": "13a"}
    for language, tokenizer in splitters.items():
        metric = sacrebleu.BLEU(tokenize=tokenizer)
        score = metric.corpus_score(NEARLY, [CHINESE]).score
        assert bleu(NEARLY, CHINESE, language) == (score, str(metric.get_signature()))
        assert scores(NEARLY, CHINESE, language=language)["bleu"]["signature"] == str(metric.get_signature())
        compared = compare([("a", NEARLY), ("b", CHINESE)], CHINESE, language=language)
        assert f"tok:{tokenizer}" in compared["signature"]
    assert bleu(NEARLY, CHINESE)[0] < 1 < 50 < bleu(NEARLY, CHINESE, "zh")[0]
    # A line without spaces is one word, all or nothing, unless characters are told apart.
    assert scores(NEARLY, CHINESE)["ter"]["score"] == 100
    assert scores(NEARLY, CHINESE, language="zh")["ter"]["score"] < 30
    assert scores(REFERENCES, REFERENCES, language="ja")["bleu"]["score"] == pytest.approx(100)


def test_references_that_are_not_of_their_language() -> None:
    assert "languages without: zh, ja, th, lo, km, my" in language_mismatch(CHINESE, "de")
    assert language_mismatch(["この本は面白いです。", "สวัสดีครับ"], "")
    assert not language_mismatch(CHINESE, "zh") and not language_mismatch(CHINESE, "ja-JP")
    assert not language_mismatch(REFERENCES, "de") and not language_mismatch([], "") and not language_mismatch([""], "")
    assert not language_mismatch(["안녕하세요, 반갑습니다.", "Он сказал 你好 мне."], "en"), "Korean has spaces"


def test_case_is_ignored_everywhere_if_asked_for() -> None:
    assert bleu_tokenizer("ZH-TW") == "zh"
    assert scores(["DER Hund"], ["der hund"], lowercase=True)["exact"] == 100.0
