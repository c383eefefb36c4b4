"""seq2seq-evaluate: scores as JSON on stdout, and an exit code for a bar that is not reached."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from seq2seq.cli.evaluate import main
from seq2seq.data.corpus import Pair
from seq2seq.evaluate.scores import compare, paper_bleu, scores, tokenised_bleu
from seq2seq.evaluate.test_set import scored
from seq2seq.translate.translation import Translation
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


def test_a_score_that_can_only_be_zero_is_explained(run: Any, tmp_path: Path) -> None:
    (short := tmp_path / "short").write_text("siebenundvierzig\nhalb vier Uhr\n", encoding="utf-8")
    for kind in (["--hypotheses", short], ["--compare", short, short]):
        code, _, err = run(main, *kind, "--reference", short)
        assert code == 0
        assert "BLEU counts runs of four words, of which these references have none: even their equals have" in err
    short.write_text("siebenundvierzig\num halb vier Uhr\n", encoding="utf-8")
    assert run(main, "--hypotheses", short, "--reference", short).err == ""


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


def test_bars_and_outputs_that_would_mean_nothing_are_refused(run: Any, files: Files, tmp_path: Path) -> None:
    reference, name = ("--reference", files["reference"]), "seq2seq-evaluate"
    both = ("--compare", files["bad"], files["good"], *reference)
    run(main, *both, "--min-bleu", "99").refused(name, "--min-bleu with --compare")
    before = files["reference"].read_bytes()
    overwriting = (
        "--hypotheses",
        files["reference"],
        "--reference",
        files["reference"],
        "--output",
        files["reference"],
    )
    run(main, *overwriting).refused(name, "would replace the file given as --reference; give another")
    assert files["reference"].read_bytes() == before
    for value in ("nan", "-5", "101"):
        run(main, *both[-2:], "--min-bleu", value).refused(name, f"--min-bleu {float(value)}: must be from 0 to 100")
    run(main, *both, "--output", tmp_path / "o").refused(name, "--output with --compare")
    good = ("--hypotheses", files["good"], *reference)
    for given in (("--beam-size", "8"), ("--glossary", files["good"]), ("--deterministic",), ("--no-sampling",)):
        told = f"{given[0]} with --hypotheses: nothing is translated; leave out either"
        run(main, *good, *given).refused(name, told)
    run(main, *both, "--ensemble", tmp_path).refused(name, "--ensemble with --compare: nothing is translated")
    run(main, *good, "--min-exact-each", "9").refused(name, "have no labels; take --min-exact")
    run(main, *good, "--output", tmp_path).refused(name, f"--output {tmp_path}: a folder")
    (tmp_path / "empty").touch()
    empty = ("--hypotheses", tmp_path / "empty", "--reference", tmp_path / "empty")
    run(main, *empty).refused(name, f"{tmp_path / 'empty'}: no lines")
    # Python 3.14 finds that there is no such file, earlier ones that the system refuses to look.
    assert run(main, "--hypotheses", "a" * 300, *reference).code == 2


def test_scores_are_printed_though_the_output_cannot_be_written(
    run: Any, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "here").mkdir()
    monkeypatch.setattr("os.fsync", full)
    code, out, err = run(
        main, "--hypotheses", files["good"], "--reference", files["reference"], "--output", tmp_path / "here" / "out"
    )
    assert code == 3 and "the disk is full" in err
    assert json.loads(out)["exact"] == 80.0
    assert list((tmp_path / "here").iterdir()) == []


def test_words_are_split_as_the_target_language_needs(run: Any, files: Files, tmp_path: Path) -> None:
    chinese = tmp_path / "chinese"
    chinese.write_text("一只狗跑过草地。\n三个男人站在屋顶上。\n", encoding="utf-8")
    for kind in (["--hypotheses", chinese], ["--compare", chinese, chinese]):
        given = [*kind, "--reference", chinese]
        code, out, err = run(main, *given)
        assert code == 0 and "|tok:13a|" in out
        assert err.startswith("BLEU counts words between spaces, ") and err.endswith("; type --target-language L\n")
        code, out, err = run(main, *given, "--target-language", "zh")
        assert (code, err) == (0, "") and "|tok:zh|" in out
    assert run(main, "--hypotheses", files["good"], "--reference", files["reference"]).err == ""


def test_the_newest_model_is_found_once(
    run: Any, files: Files, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, "runs/x/model")
    found = run(main, "--device", "cpu", "--source", files["reference"], "--reference", files["reference"])
    assert (found.code, found.err) == (0, "model: runs/x/model\n")


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


def test_terms_that_cannot_be_had_are_told(run: Any, files: Files, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "terms.tsv").write_text("dog\tWolf\n", encoding="utf-8")
    (tmp_path / "never.txt").write_text("Wolf\n", encoding="utf-8")
    code, out, err = run(
        main,
        *("--model", tiny_model, "--device", "cpu", "--source", files["source"], "--reference", files["reference"]),
        *("--glossary", tmp_path / "terms.tsv", "--forbid", tmp_path / "never.txt"),
    )
    assert code == 0 and "bleu" in json.loads(out)
    count = sum("dog" in line.rstrip(".").split() for line in set(lines_of(files["source"])))
    assert count and f"lines translated without the prefix or terms asked for: {count}; the first: " in err
    assert "'Wolf'" in err and err.count("\n") == 1


def test_test_sets_by_name_are_translated_once_and_scored_in_both_columns(
    run: Any, tiny_model: Path, stand_ins: dict[str, list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    whole = Translator.translate_n_best

    def translate(translator: Translator, texts: list[str]) -> list[Translation]:
        asked.append(texts)
        return whole(translator, texts)

    monkeypatch.setattr(Translator, "translate_n_best", translate)
    arguments = ["--model", tiny_model, "--device", "cpu", "--paper-bleu", "--test-set"]
    code, out, err = run(main, *arguments, "wmt14,wmt14/full,wmt14")
    assert (code, err) == (0, "")
    assert [len(texts) for texts in asked] == [len({source for source, _ in stand_ins["wmt14/full"]})]
    found = whole(Translator.load(tiny_model, device="cpu"), asked[0])
    translations = {text: translation.texts[0] for text, translation in zip(asked[0], found, strict=True)}
    expected = {
        name: scored([translations[source] for source, _ in pairs], [Pair(*pair) for pair in pairs], name)
        for name, pairs in stand_ins.items()
    }
    found = json.loads(out)
    assert list(found) == ["wmt14", "wmt14/full"]
    for name, result in found.items():
        assert result["tokenised_bleu"]["signature"].endswith("whole")
        assert result["paper_bleu"]["signature"].endswith("split")
        assert result == {**expected[name], **{key: result[key] for key in ("tokenised_bleu", "paper_bleu")}}
    assert [result["sentences"] for result in found.values()] == [14, 22]
    alone = run(main, *arguments, "wmt14").out
    assert json.loads(alone) == found["wmt14"]


def test_hypotheses_for_a_test_set_by_name(
    run: Any, tiny_model: Path, stand_ins: dict[str, list[tuple[str, str]]], tmp_path: Path
) -> None:
    references = [target for _, target in stand_ins["wmt14"]]
    lines = [target.replace("Hund", "Fluss-Hund") for target in references]
    (tmp_path / "good").write_bytes("".join(f"{line}\n" for line in lines).encode())
    arguments = ["--test-set", "wmt14", "--hypotheses", tmp_path / "good"]
    code, out, err = run(main, *arguments, "--source-language", "en", "--target-language", "de", "--paper-bleu")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"test_set": "wmt14", **scores(lines, references), **paper_bleu(lines, references, "de")}
    assert run(main, *arguments, "--model", tiny_model).code == 0, "or the model's languages"
    out = run(main, *arguments[:2], "--compare", *[tmp_path / "good"] * 2, "--model", tiny_model).out
    assert json.loads(out)["systems"][1]["p_value"] == 1.0
    run(main, *arguments, "--target-language", "de").refused(
        "seq2seq-evaluate", "the source language is not known; add --source-language L, or --model DIR"
    )


def test_bars_are_for_the_first_test_set(run: Any, tiny_model: Path, stand_ins: dict[str, Any]) -> None:
    assert len(stand_ins) == 2
    arguments = ["--model", tiny_model, "--device", "cpu", "--test-set", "wmt14/full,wmt14", "--min-bleu"]
    code, out, err = run(main, *arguments, "50")
    assert code == 3
    first = json.loads(out)["wmt14/full"]["bleu"]["score"]
    assert err == f"seq2seq-evaluate: BLEU {first} is below --min-bleu 50.0\n"
    assert run(main, *arguments, str(first)).code == 0


def test_mistakes_with_test_sets(run: Any, files: Files, tiny_model: Path, tmp_path: Path) -> None:
    name, model = "seq2seq-evaluate", ["--model", tiny_model]
    run(main, *model, "--test-set", "wmt14/ful").refused(name, "no such test set; did you mean wmt14/full?")
    run(main, *model, "--test-set", "wmt14", "--target-language", "it").refused(
        name, "wmt14 has no en-it; it has cs-en"
    )
    for option in ("source", "reference"):
        run(main, *model, "--test-set", "wmt14", f"--{option}", files[option]).refused(
            name, f"--{option} with --test-set wmt14: leave out --{option}"
        )
    for given in (["--hypotheses", files["good"]], ["--compare", *[files["good"]] * 2], ["--output", tmp_path / "o"]):
        run(main, *model, "--test-set", "wmt14,wmt14/full", *given).refused(
            name, f"{given[0]} with --test-set wmt14,wmt14/full: leave out {given[0]}, or name one test set"
        )
    run(main, "--hypotheses", files["good"], "--reference", files["reference"], "--paper-bleu").refused(
        name, "the target language is not known; add --target-language L"
    )


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


def test_a_model_that_is_gone_is_not_missed_where_nothing_is_translated(
    files: Files, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--hypotheses", files["good"], "--reference", files["reference"])
    expected = run(main, *given)
    (files["good"].parent / "manifest.json").touch()
    monkeypatch.chdir(files["good"].parent)
    assert run(main, *given) == expected, "where no model is named, this folder is none"
    monkeypatch.setenv("SEQ2SEQ_MODEL", "/no/such/model")
    assert run(main, *given) == expected and expected.code == 0
    run(main, "--source", files["source"], "--reference", files["reference"]).refused("seq2seq-evaluate", "/no/such")
    run(main, *given, "--source-language", "en").refused(
        "seq2seq-evaluate", "--source-language en: it is for --test-set"
    )
