"""seq2seq-evaluate: scores as JSON on stdout, and an exit code for a bar that is not reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seq2seq.cli.evaluate import main
from seq2seq.evaluate.scores import compare, scores, tokenised_bleu
from seq2seq.translate.translator import Translator

Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, toy_pairs: list[tuple[str, str]]) -> Files:
    """Test files of twenty lines: source, reference, a good and a bad output, and one that is a line short."""
    folder = tmp_path_factory.mktemp("test set")
    pairs = toy_pairs[:20]
    good = [target if n % 5 else target.replace("das", "die") for n, (_, target) in enumerate(pairs)]
    lines = {
        "source": [source for source, _ in pairs],
        "reference": [target for _, target in pairs],
        "good": good,
        "bad": [" ".join(reversed(target.split())) for _, target in pairs],
        "short": good[:-1],
    }
    for name, content in lines.items():
        (folder / name).write_bytes("".join(f"{line}\n" for line in content).encode())
    return {name: folder / name for name in lines}


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_hypotheses_are_scored(run: Any, files: Files) -> None:
    code, out, err = run(main, "--hypotheses", files["good"], "--reference", files["reference"])
    assert (code, err) == (0, "")
    assert json.loads(out) == scores(lines_of(files["good"]), lines_of(files["reference"]))
    assert json.loads(out)["exact"] == 80.0
    out = run(
        main,
        *("--hypotheses", files["bad"], "--reference", files["reference"], "--lowercase"),
        *("--paper-bleu", "--target-language", "de"),
    ).out
    bad, references = lines_of(files["bad"]), lines_of(files["reference"])
    assert json.loads(out) == {
        **scores(bad, references, lowercase=True),
        "tokenised_bleu": tokenised_bleu(bad, references, "de", lowercase=True),
        "paper_bleu": tokenised_bleu(bad, references, "de", lowercase=True, split_compounds=True),
    }


def test_two_systems_are_compared(run: Any, files: Files) -> None:
    code, out, err = run(main, "--compare", files["bad"], files["good"], "--reference", files["reference"])
    assert (code, err) == (0, "")
    systems = [(str(files[name]), lines_of(files[name])) for name in ("bad", "good")]
    assert json.loads(out) == compare(systems, lines_of(files["reference"]))
    assert json.loads(out)["systems"][1]["p_value"] < 0.05


def test_a_test_set_is_translated_and_scored(run: Any, files: Files, tiny_model: Path, tmp_path: Path) -> None:
    code, out, err = run(
        main,
        *("--model", tiny_model, "--device", "cpu", "--source", files["source"], "--reference", files["reference"]),
        *("--output", tmp_path / "output"),
    )
    assert (code, err) == (0, "")
    expected = Translator.load(tiny_model, device="cpu").translate(lines_of(files["source"]))
    assert (tmp_path / "output").read_bytes() == "".join(f"{line}\n" for line in expected).encode()
    assert json.loads(out) == scores(expected, lines_of(files["reference"]))


def test_a_model_that_learnt_nothing_fails_the_bars(run: Any, tiny_model: Path) -> None:
    # This is the gate of CI; here it is shut.
    pytest.importorskip("babel")
    pytest.importorskip("num2words")
    arguments = ["--model", tiny_model, "--device", "cpu"]
    code, out, err = run(main, *arguments)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["sentences"] == 30, "the test set is the one that the model's configuration names"
    assert found["exact_each"].keys() == {"date", "duration", "number", "price", "quantity", "time"}
    for flag, words in (("--min-bleu", "BLEU"), ("--min-exact", "exact"), ("--min-exact-each", "exact (date)")):
        code, out, err = run(main, *arguments, flag, "50")
        assert code == 3
        assert json.loads(out) == found, "the scores are printed all the same"
        assert err.startswith(f"seq2seq-evaluate: {words} ") and f"is below {flag} 50.0" in err
        assert run(main, *arguments, flag, "0").code == 0


def test_a_bar_is_the_lowest_score_that_passes(run: Any, files: Files) -> None:
    arguments = ["--hypotheses", files["good"], "--reference", files["reference"]]
    assert run(main, *arguments, "--min-exact", "80").code == 0
    assert run(main, *arguments, "--min-exact", "80.01").code == 3
    code, _, err = run(main, *arguments, "--min-exact", "81", "--min-bleu", "99.9")
    assert code == 3
    assert "; exact 80.0 is below --min-exact 81.0" in err and err.count("\n") == 1


def test_mistakes(run: Any, files: Files, tmp_path: Path, tiny_model: Path) -> None:
    name, reference = "seq2seq-evaluate", ["--reference", files["reference"]]
    misaligned = f"{files['short']} has 19 lines; the reference has 20"
    run(main, "--hypotheses", files["short"], *reference).refused(name, misaligned)
    run(main, "--compare", files["good"], files["short"], *reference).refused(name, misaligned)
    run(main, "--source", files["short"], *reference).refused(name, misaligned)
    run(main, *reference).refused(name, "add --source FILE or --hypotheses FILE")
    run(main, "--source", files["source"]).refused(name, "add --reference FILE")
    typo = files["good"].with_name("godo")
    run(main, "--hypotheses", typo, *reference).refused(name, f"{typo}: no such file; did you mean good?")
    (tmp_path / "latin").write_bytes(b"a\ncaf\xe9\n")
    run(main, "--hypotheses", tmp_path / "latin", *reference).refused(name, "latin:2: byte 4 of the line (0xe9)")
    output = tmp_path / "no" / "output"
    run(main, "--hypotheses", files["good"], *reference, "--output", output).refused(
        name, f"{output}: no such folder; type: mkdir -p"
    )
    run(main, "--model", tiny_model, "--hypotheses", files["good"]).refused(name, "has 20 lines; the reference has 30")
