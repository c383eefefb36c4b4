"""seq2seq-score: one line a pair, in order; what cannot be scored is refused with file and line."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from seq2seq.cli.score import main
from seq2seq.translate.lines import WINDOW
from seq2seq.translate.scoring import Scorer, perplexity

Pairs = list[tuple[str, str]]


@pytest.fixture(scope="module")
def pairs(toy_pairs: Pairs) -> Pairs:
    return [*toy_pairs[:12], ("the fox 🦊", "das  Füchslein")]


@pytest.fixture
def files(tmp_path: Path, pairs: Pairs) -> list[str | Path]:
    """The options that name the pairs as two files."""
    return write(tmp_path, pairs)


def write(folder: Path, pairs: Pairs) -> list[str | Path]:
    named: list[str | Path] = []
    for side, name in enumerate(("source", "target")):
        path = folder / f"some.{name}"
        path.write_bytes("".join(f"{pair[side]}\n" for pair in pairs).encode())
        named += [f"--{name}", path]
    return named


def test_python_files_and_standard_input_agree(run: Any, tiny_model: Path, pairs: Pairs, files: list[str]) -> None:
    expected = Scorer.load(tiny_model, device="cpu").score(pairs)
    code, out, err = run(main, "--model", tiny_model, "--device", "cpu", *files)
    assert code == 0
    assert out == "".join(f"{own.score:.4f}\t{own.per_token:.4f}\n" for own in expected)
    score, tokens = sum(own.score for own in expected), sum(len(own.token_log_probs) for own in expected)
    assert err == (
        f"{len(pairs)} pairs, {tokens} target tokens with eos, log-probability {score:.4f}, "
        f"perplexity {perplexity(score, tokens):.4f}\n"
    )
    assert perplexity(score, tokens) == pytest.approx(math.exp(-score / tokens))
    pasted = "".join(f"{source}\t{target}\n" for source, target in pairs).encode()
    assert run(main, "--model", tiny_model, "--device", "cpu", stdin=pasted) == (code, out, err)
    assert run(main, "--model", tiny_model, "--device", "cpu", stdin=pasted.removesuffix(b"\n")) == (code, out, err)
    packed = Path(f"{files[1]}.gz")
    packed.write_bytes(gzip.compress(Path(files[1]).read_bytes()))
    more = ("--threads", "1", "--batch-tokens", "90")
    assert run(main, "--model", tiny_model, "--device", "cpu", "--source", packed, *files[2:], *more).code == 0


def test_columns(run: Any, tiny_model: Path, pairs: Pairs, files: list[str]) -> None:
    scorer = Scorer.load(tiny_model, device="cpu")
    out = run(main, "--model", tiny_model, "--device", "cpu", *files, "--tokens", "--align", "pharaoh").out
    for line, own, (source, target) in zip(out.split("\n")[:-1], scorer.score(pairs), pairs, strict=True):
        score, _, tokens, alignment = line.split("\t")
        log_probs = [float(value) for value in tokens.split(" ")]
        assert log_probs == pytest.approx(own.token_log_probs, abs=2e-4)
        assert float(score) == pytest.approx(sum(log_probs), abs=1e-2)
        links = [tuple(map(int, link.split("-"))) for link in alignment.split(" ")]
        assert [place for _, place in links] == list(range(len(target.split())))
        assert {word for word, _ in links} <= set(range(len(source.split())))


def test_jsonl(run: Any, tiny_model: Path, pairs: Pairs, tmp_path: Path) -> None:
    files = write(tmp_path, [*pairs, ("", "das"), ("das", ""), ("the dog " * 80, "das")])
    scorer = Scorer.load(tiny_model, device="cpu")
    plain, full = (
        [json.loads(line) for line in run(main, "--model", tiny_model, *files, "--jsonl", *more).out.split("\n")[:-1]]
        for more in ([], ["--tokens", "--align", "matrix"])
    )
    assert plain[0].keys() == {"text", "score", "per_token", "status"}
    for own, (source, target) in zip(full, pairs, strict=False):
        ids = scorer.tokenizer.encode([source, target])
        assert own["text"] == target and own["status"] == "ok"
        assert own["source_tokens"] == [*scorer.tokenizer.pieces(ids[0]), "</s>"]
        assert own["tokens"] == [*scorer.tokenizer.pieces(ids[1]), "</s>"]
        assert math.fsum(own["token_log_probs"]) == pytest.approx(own["score"], abs=1e-4)
        assert [len(row) for row in own["attention"]] == [len(own["source_tokens"])] * len(own["tokens"])
        assert all(sum(row) == pytest.approx(1, abs=0.01) for row in own["attention"])
    assert [row["status"] for row in full[len(pairs) :]] == ["empty", "empty", "ok"]
    assert full[-3]["alignment"] == full[-2]["alignment"] == ""
    assert [row["score"] for row in plain] == pytest.approx([row["score"] for row in full], abs=1e-4)


def test_pairs_with_an_empty_side_are_scored_and_told(run: Any, tiny_model: Path) -> None:
    code, out, err = run(main, "--model", tiny_model, stdin=b"the\tdas\n\t\nthe\t\n")
    assert code == 0
    assert all(float(line.split("\t")[0]) < 0 for line in out.split("\n")[:-1]) and out.count("\n") == 3
    assert err.startswith("2 pairs have an empty side; ") and "(first: line 2)\n3 pairs, " in err


def test_no_pairs(run: Any, tiny_model: Path, tmp_path: Path) -> None:
    expected = (0, "", "no pairs: the input is empty\n")
    assert run(main, "--model", tiny_model) == expected
    assert run(main, "--model", tiny_model, *write(tmp_path, [])) == expected


def test_more_than_one_window(run: Any, tiny_model: Path, tmp_path: Path) -> None:
    files = write(tmp_path, [("the", "das")] * (WINDOW + 1) + [("the dog", "x" * 5000)])
    code, out, err = run(main, "--model", tiny_model, *files)
    assert (code, out.count("\n")) == (2, WINDOW), "what was done stays"
    assert err.startswith(f"seq2seq-score: {files[3]}:{WINDOW + 2}: 5,0")
    assert err.endswith("or leave the line out\n") and " type --batch-tokens 50" in err


def test_outer_blanks_are_no_part_of_a_text(run: Any, tiny_model: Path) -> None:
    _, out, _ = run(main, "--model", tiny_model, "--jsonl", stdin=b"the dog\tdas\r\n the dog\t das\n")
    one, other = map(json.loads, out.splitlines())
    assert one == other and one["text"] == "das"


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"the\tdas\nthe das\n", "standard input:2: 0 tabs; a line is source, tab, target"),
        (b"the\tdas\tdas\n", "standard input:1: 2 tabs; a line is source, tab, target"),
        (b"the\tdas\n\n", "standard input:2: 0 tabs"),
        (b"the\tdas\nthe\td\xe4s\n", "standard input:2: not UTF-8; convert it: iconv -f latin1 -t utf-8"),
    ],
)
def test_input_that_is_no_pairs(stdin: bytes, message: str, run: Any, tiny_model: Path) -> None:
    run(main, "--model", tiny_model, stdin=stdin).refused("seq2seq-score", message)


def test_files_that_do_not_fit(run: Any, tiny_model: Path, files: list[Path]) -> None:
    source, target = files[1], files[3]
    whole = target.read_bytes()
    target.write_bytes(whole + b"das\n")
    refusal = f"{source} has 13 lines, {target} has 14: line n of the one must be the translation"
    run(main, "--model", tiny_model, *files).refused("seq2seq-score", refusal)
    # Before anything is scored: the broken line is the last.
    target.write_bytes(whole.replace("Füchslein".encode(), b"F\xfcchslein"))
    run(main, "--model", tiny_model, *files).refused("seq2seq-score", f"{target}:13: byte 7 of the line (0xfc)")
    target.unlink()
    run(main, "--model", tiny_model, *files).refused("seq2seq-score", f"{target}: no such file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "a"], "--target is missing: give both files"),
        (["--target", "a"], "--source is missing: give both files"),
        (["--align", "matrix"], "--align matrix is for JSON; add --jsonl"),
        (["--align-layer", "1"], "--align-layer 1 without --align"),
        (["--align", "pharaoh", "--align-layer", "2"], "attention of layer 2: the decoder has layers 1 to 1"),
        (["--batch-tokens", "0"], "--batch-tokens 0: must be at least 1"),
        (["--threads", "0"], "--threads 0: must be at least 1"),
        (["--batch-tokens", "2"], "standard input:1: "),
    ],
)
def test_options_that_do_not_fit(arguments: list[str], message: str, run: Any, tiny_model: Path) -> None:
    run(main, "--model", tiny_model, *arguments, stdin=b"the dog\tdas Hund\n").refused("seq2seq-score", message)
