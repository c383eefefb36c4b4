"""Scores are sacreBLEU's own numbers, each with the signature that says which."""

from __future__ import annotations

import random
import re

import pytest
import sacrebleu
import sacremoses
from hypothesis import given
from hypothesis import strategies as st

from seq2seq.evaluate.scores import bleu, compare, exact, scores, tokenised_bleu

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
    assert bleu(HYPOTHESES, REFERENCES) == pytest.approx(found["bleu"]["score"], abs=0.005)
    assert found["sentences"] == 4
    assert found["exact"] == 25.0


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
    assert exact([("a", "a"), ("b", "B"), ("c", "c")]) == 66.67
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
        r"nrefs:1\|case:mixed\|eff:no\|tok:none\|smooth:exp\|version:[\d.]+"
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
    assert base["bleu"] == round(bleu(bad, references), 2)
    assert new["bleu"] == round(bleu(good, references), 2)
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
