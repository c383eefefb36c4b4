"""seq2seq-translate: N lines in, N lines out, whatever they hold; results alone on stdout."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from seq2seq.cli import translate
from seq2seq.cli.translate import main
from seq2seq.model.directory import load_model_directory, save_model_directory
from seq2seq.model.weights import own_weights
from seq2seq.translate.lines import WINDOW
from seq2seq.translate.translator import Translator
from tests.processes import PATIENCE

NASTY = [
    *(b"", b" ", b"\t", "the\u2028dog".encode(), "the\x85dog".encode(), b"the\rdog", b"\r", b"the\0dog", b"\0"),
    *(b"\xef\xbb\xbfthe dog", b"caf\xe9 \xff\xfe", b"\xe2\x80", b"x" * 100_000, b"the dog.\x1c\x1d", b"</s>"),
]


@contextmanager
def started(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes], IO[bytes]]]:
    """The command as a process with its input, output and errors; ended by its id whatever happens."""
    # Python's own switch for unbuffered output would hide a missing flush.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-m", "seq2seq.cli.translate", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin and process.stdout and process.stderr
    try:
        yield process, process.stdin, process.stdout, process.stderr
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def answer(stream: IO[bytes]) -> bytes:
    """The next line."""
    assert select.select([stream], [], [], PATIENCE)[0], "no answer while the input pauses"
    return stream.readline()


def test_nasty_lines_through_a_pipe_that_pauses(tiny_model: Path) -> None:
    with started("--model", tiny_model, "--device", "cpu") as (process, stdin, stdout, _):
        stdin.write(b"the dog\n")
        stdin.flush()
        first = answer(stdout)
        assert first.endswith(b"\n") and process.poll() is None
        out, err = process.communicate(b"\n".join(NASTY), timeout=PATIENCE)
    assert process.returncode == 0
    assert out.count(b"\n") == len(NASTY)
    found = out.decode().split("\n")[:-1]
    assert found[:3] == ["", "", ""], "empty and blank lines stay empty"
    assert err.decode() == "4 invalid UTF-8 sequences in 2 lines were read as U+FFFD; check the encoding of the input\n"
    texts = [line.decode(errors="replace").removeprefix("\ufeff") for line in NASTY]
    assert found == Translator.load(tiny_model, device="cpu").translate(texts), "in order"


def test_a_reader_that_goes_away(tiny_model: Path) -> None:
    with started("--model", tiny_model, "--device", "cpu") as (process, stdin, stdout, stderr):
        stdin.write(b"the dog\n")
        stdin.flush()
        answer(stdout)
        stdout.close()
        stdin.write(b"the dog\n" * 100)
        stdin.close()
        assert process.wait(PATIENCE) == 0
        assert stderr.read() == b""


@pytest.fixture(scope="module")
def sentences(toy_pairs: list[tuple[str, str]]) -> list[str]:
    return [source for source, _ in toy_pairs[:9]]


def test_python_and_command_agree(run: Any, tiny_model: Path, sentences: list[str]) -> None:
    stdin = "".join(f"{line}\n" for line in sentences).encode()
    code, out, err = run(main, "--model", tiny_model, "--device", "cpu", stdin=stdin)
    assert (code, err) == (0, "")
    expected = Translator.load(tiny_model, device="cpu").translate(sentences)
    assert out == "".join(f"{line}\n" for line in expected)
    # The last line need not end in a newline.
    assert run(main, "--model", tiny_model, "--device", "cpu", stdin=stdin.removesuffix(b"\n")).out == out
    small = run(main, "--model", tiny_model, "--device", "cpu", "--batch-tokens", "1", "--threads", "1", stdin=stdin)
    assert small.out == out


def test_no_input_no_output(run: Any, tiny_model: Path) -> None:
    assert run(main, "--model", tiny_model) == (0, "", "")
    assert run(main, "--model", tiny_model, stdin=b"\n\n") == (0, "\n\n", "")


def test_more_than_one_window(run: Any, tiny_model: Path) -> None:
    code, out, _ = run(main, "--model", tiny_model, "--beam-size", "1", stdin=b"\n" * (WINDOW + 5) + b"the dog\n")
    assert code == 0
    assert out.startswith("\n" * (WINDOW + 5)) and out.count("\n") == WINDOW + 6


def test_scores(run: Any, tiny_model: Path, sentences: list[str]) -> None:
    stdin = "\n".join([*sentences, ""]).encode()
    expected = Translator.load(tiny_model, device="cpu").translate_n_best([*sentences, ""][:-1])
    out = run(main, "--model", tiny_model, "--device", "cpu", "--scores", stdin=stdin).out
    for line, translation in zip(out.split("\n")[:-1], expected, strict=True):
        score, text = line.split("\t", 1)
        assert text == translation.texts[0]
        assert float(score) == pytest.approx(translation.scores[0], abs=2e-4)


def test_n_best_prints_n_lines_for_each(run: Any, tiny_model: Path) -> None:
    stdin = b"the dog\n\nthe apple\n" + b"the old dog. " * 80
    for flags in (["--scores"], []):
        out = run(main, "--model", tiny_model, "--device", "cpu", "--n-best", "3", *flags, stdin=stdin).out
        assert out.count("\n") == 4 * 3
        lines = out.split("\n")
        if flags:
            scores = [float(line.split("\t")[0]) for line in lines[:-1]]
            assert scores[:3] == sorted(scores[:3], reverse=True) and scores[0] > -math.inf
            assert scores[4:6] == scores[10:] == [-math.inf] * 2, "one empty line, one that was split"
        else:
            assert lines[3:6] == ["", "", ""]


def test_jsonl(run: Any, tiny_model: Path) -> None:
    stdin = b"the dog\n\n" + b"caf\xe9 \xe9\n" + b"the old dog. " * 80 + "\nü\u2028\n".encode()
    out = run(main, "--model", tiny_model, "--device", "cpu", "--jsonl", stdin=stdin).out
    assert out.count("\n") == 5
    rows = [json.loads(line) for line in out.split("\n")[:-1]]
    # Weights as drawn end a sentence at the limit, or not, by chance.
    flags = [set(row["status"].split(",")) - {"length_limit", "ok"} for row in rows]
    assert flags == [set(), {"empty"}, {"replaced"}, {"split"}, set()]
    assert [row.get("replaced") for row in rows] == [None, None, 2, None, None]
    assert all(isinstance(row["text"], str) and row["score"] <= 0 for row in rows)
    assert rows[1]["text"] == ""
    assert "hypotheses" not in rows[0]
    several = run(main, "--model", tiny_model, "--device", "cpu", "--jsonl", "--n-best", "2", stdin=b"the dog\n").out
    row = json.loads(several)
    assert row["text"] == rows[0]["text"] == row["hypotheses"][0]["text"]
    assert len(row["hypotheses"]) == 2


def test_a_missing_gpu_is_told(run: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    code, out, err = run(main, "--model", tiny_model, "--device", "cuda", stdin=b"the dog\n")
    assert (code, out.count("\n")) == (0, 1)
    assert err == "no device cuda here (GPUs found: 0); falling back to the CPU\n"


def test_terms_prefixes_and_what_is_forbidden(run: Any, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "terms.tsv").write_text("dog\tWolf\n", encoding="utf-8")
    (tmp_path / "prefixes").write_text("Zwei\n\n", encoding="utf-8")
    (tmp_path / "never").write_text("Wolf\n\n", encoding="utf-8")
    model, stdin = ("--model", tiny_model, "--device", "cpu", "--max-length-offset", "20"), b"the dog\nthe man\n"
    assert "Wolf" in run(main, *model, "--glossary", tmp_path / "terms.tsv", stdin=stdin).out.split("\n")[0]
    assert run(main, *model, "--prefix", tmp_path / "prefixes", stdin=stdin).out.startswith("Zwei")
    # Two lines that contradict each other: translated all the same, and told.
    flags = ("--glossary", tmp_path / "terms.tsv", "--forbid", tmp_path / "never")
    code, out, err = run(main, *model, *flags, "--jsonl", stdin=stdin)
    assert (code, out.count("\n"), err.count("\n")) == (2, 2, 1)
    assert "lines translated without the prefix or terms asked for: 1; the first: line 1: no output" in err
    rows = [json.loads(line) for line in out.split("\n")[:-1]]
    assert ["unmet" in row["status"] for row in rows] == [True, False]
    assert "'Wolf'" in rows[0]["unmet"]


@pytest.mark.parametrize(
    ("count", "message"), [(1, "fewer lines than the input (1): give"), (3, "more lines than the input")]
)
def test_a_prefix_for_each_line(run: Any, tiny_model: Path, tmp_path: Path, count: int, message: str) -> None:
    (tmp_path / "prefixes").write_text("Zwei\n" * count, encoding="utf-8")
    flags = ("--model", tiny_model, "--device", "cpu", "--prefix", tmp_path / "prefixes")
    code, out, err = run(main, *flags, stdin=b"the dog\nthe man\n")
    assert code == 2 and message in err
    assert out.count("\n") == (0 if count == 1 else 2), "what was finished is written"


def test_all_settings_of_search_are_options(run: Any, tiny_model: Path) -> None:
    model, stdin = ("--model", tiny_model, "--device", "cpu"), b"the dog\n"
    sampled = ("--sampling", "--n-best", "3", "--temperature", "1.5", "--top-k", "20", "--seed")
    first, again, other = (run(main, *model, *sampled, seed, stdin=stdin).out for seed in ("1", "1", "2"))
    assert first.count("\n") == 3 and first == again != other
    short = run(main, *model, "--max-length", "3", "--jsonl", stdin=stdin).out
    assert json.loads(short)["status"] == "length_limit"
    run(main, *model, "--top-k", "5", stdin=stdin).refused("seq2seq-translate", "add --sampling")
    run(main, *model, "--beam-size", "4", "--diversity-groups", "3", stdin=stdin).refused(
        "seq2seq-translate", "--beam-size 4: must be a multiple of --diversity-groups 3"
    )


def test_a_model_s_own_sampling_can_be_switched_off(run: Any, tiny_model: Path, tmp_path: Path) -> None:
    config, tokenizer, model, _ = load_model_directory(tiny_model)
    sampling = replace(config.search, sampling=True, temperature=1.5, top_k=20, top_p=0.9)
    save_model_directory(tmp_path / "model", replace(config, search=sampling), tokenizer, own_weights(model))
    stdin = b"the dog\nthe man\n"
    searched = run(main, "--model", tiny_model, "--device", "cpu", stdin=stdin)
    sampled = ("--model", tmp_path / "model", "--device", "cpu")
    assert run(main, *sampled, stdin=stdin).out != searched.out
    assert run(main, *sampled, "--no-sampling", stdin=stdin) == searched
    run(main, *sampled, "--no-sampling", "--top-k", "5").refused("seq2seq-translate", "--top-k 5: for sampling")


def test_several_models(run: Any, tiny_model: Path) -> None:
    model, stdin = ("--model", tiny_model, "--device", "cpu"), b"the dog\n"
    assert run(main, *model, "--ensemble", tiny_model, stdin=stdin) == run(main, *model, stdin=stdin)


def test_streaming_prints_as_it_finds(tiny_model: Path) -> None:
    plain = Translator.load(tiny_model, device="cpu", beam_size=1).translate(["the dog"])[0]
    with started("--model", tiny_model, "--device", "cpu", "--beam-size", "1", "--stream") as (_, stdin, stdout, _):
        stdin.write(b"the dog\n")
        stdin.flush()
        assert answer(stdout) == f"{plain}\n".encode()


def test_a_piece_is_printed_before_the_next_is_found(
    run: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    monkeypatch.setattr(translate, "_write", printed.append)

    def stream(_: Translator, text: str, prefix: str) -> Iterator[str]:
        for place, piece in enumerate((text, " sees", f"{prefix} it")):
            assert len(printed) == place
            yield piece

    monkeypatch.setattr(Translator, "stream", stream)
    flags = ("--model", tiny_model, "--device", "cpu", "--stream", "--beam-size", "1")
    assert run(main, *flags, stdin=b"the dog").code == 0
    assert printed == ["the dog", " sees", " it", "\n"]


def test_streaming_is_of_one_hypothesis_and_text_alone(run: Any, tiny_model: Path) -> None:
    model = ("--model", tiny_model, "--device", "cpu", "--stream")
    run(main, *model, stdin=b"the dog\n").refused(
        "seq2seq-translate", "streaming is for a single hypothesis, not 4: set beam_size=1 (--beam-size 1)"
    )
    run(main, *model, "--jsonl", stdin=b"the dog\n").refused("seq2seq-translate", "--stream prints text alone")
    sampled = run(main, *model, "--sampling", "--n-best", "2", stdin=b"the dog\n")
    sampled.refused("seq2seq-translate", "streaming is for a single hypothesis, not 2: set n_best=1 (--n-best 1)")


def test_streaming_goes_on_after_a_prefix_that_cannot_be_had(run: Any, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "prefixes").write_text("das\n" + "das " * 9 + "\n\n", encoding="utf-8")
    stdin = b"the dog\nthe man sees it.\nthe tree\n"
    flags = ("--model", tiny_model, "--device", "cpu", "--beam-size", "1", "--max-length", "6")
    whole = run(main, *flags, "--prefix", tmp_path / "prefixes", stdin=stdin)
    streamed = run(main, *flags, "--prefix", tmp_path / "prefixes", "--stream", stdin=stdin)
    assert whole.code == streamed.code == 2
    assert whole.out == streamed.out and whole.out.count("\n") == 3
    assert whole.err == streamed.err and "asked for: 1; the first: line 2: the prefix has" in whole.err


def test_token_scores_and_alignments(run: Any, tiny_model: Path) -> None:
    model, stdin = ("--model", tiny_model, "--device", "cpu"), b"the dog sees the man.\n\n"
    out = run(main, *model, "--jsonl", "--token-scores", "--align", "matrix", "--n-best", "2", stdin=stdin).out
    row, empty = (json.loads(line) for line in out.split("\n")[:-1])
    assert len(row["tokens"]) == len(row["token_log_probs"]) == len(row["attention"])
    assert len(row["source_tokens"]) == len(row["attention"][0])
    assert [link.split("-")[1] for link in row["alignment"].split()] == [
        str(place) for place in range(len(row["text"].split()))
    ]
    assert row["hypotheses"][0]["tokens"] == row["tokens"] and "alignment" in row["hypotheses"][1]
    assert empty["status"] == "empty" and "tokens" not in empty
    run(main, *model, "--align", "pharaoh", stdin=stdin).refused("seq2seq-translate", "add --jsonl")
    run(main, *model, "--jsonl", "--token-scores", "--ensemble", tiny_model, stdin=stdin).refused(
        "seq2seq-translate", "leave out --ensemble"
    )
