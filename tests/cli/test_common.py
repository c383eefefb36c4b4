"""What the commands share: help, version, finding a model, options out of range."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import seq2seq
from seq2seq.cli import average, evaluate, prepare, score, train, translate
from seq2seq.cli.common import find_model
from seq2seq.support.errors import UserError

COMMANDS: dict[str, Callable[[], None]] = {
    "seq2seq-average": average.main,
    "seq2seq-evaluate": evaluate.main,
    "seq2seq-prepare": prepare.main,
    "seq2seq-score": score.main,
    "seq2seq-train": train.main,
    "seq2seq-translate": translate.main,
}


def test_the_commands_are_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"].keys() == COMMANDS.keys()
    installed = {found.name: found for found in entry_points(group="console_scripts") if found.name in COMMANDS}
    assert {name: found.load() for name, found in installed.items()} == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version(command: str, run: Any) -> None:
    for flag in ("--help", "-h"):
        code, out, err = run(COMMANDS[command], flag)
        assert (code, err) == (0, "")
        assert f"usage: {command} " in out
        assert out.count("\n") > 10 and max(map(len, out.split("\n"))) <= 120
    code, out, err = run(COMMANDS[command], "--version")
    assert (code, out, err) == (0, f"{command} {seq2seq.__version__}\n", "")


def test_threads_wait_as_long_as_suits_the_command(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for main, turns in ((train.main, "2000"), (translate.main, "10000")):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        assert run(main, "--help").code == 0
        assert os.environ["GOMP_SPINCOUNT"] == turns
        monkeypatch.setenv("GOMP_SPINCOUNT", "7")
        assert run(main, "--help").code == 0
        assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_that_is_said_before_torch_is_imported() -> None:
    names = ", ".join(f"seq2seq.cli.{command.removeprefix('seq2seq-')}" for command in COMMANDS)
    subprocess.run([sys.executable, "-c", f"import sys, {names}; sys.exit('torch' in sys.modules)"], check=True)


@pytest.mark.parametrize("command", ["seq2seq-train", "seq2seq-prepare", "seq2seq-average"])
def test_a_command_that_needs_something_shows_how_to_use_it(command: str, run: Any) -> None:
    code, out, err = run(COMMANDS[command])
    assert code == 2
    assert f"usage: {command} " in out + err


def made(directory: Path, age: int) -> Path:
    directory.mkdir(parents=True)
    (directory / "manifest.json").touch()
    os.utime(directory / "manifest.json", (10_000 - age, 10_000 - age))
    return directory


def test_the_model_is_the_one_named_else_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEQ2SEQ_MODEL", raising=False)
    with pytest.raises(UserError, match=r"train one: seq2seq-train \+recipe=quickstart, or give one: --model DIR"):
        find_model(None)
    made(Path("runs/old/model"), 9)
    newest = made(Path("runs/sweep/3/model"), 1)
    made(Path("runs/older/model"), 99)
    assert find_model(None) == newest
    assert capsys.readouterr() == ("", f"model: {newest}\n")
    monkeypatch.setenv("SEQ2SEQ_MODEL", "from/environment")
    assert find_model(None) == Path("from/environment")
    assert find_model("given") == Path("given")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beam-size", "0"], "--beam-size 0: must be at least 1"),
        (["--length-penalty", "-1"], "--length-penalty -1.0: must be at least 0"),
        (["--length-penalty", "nan"], "--length-penalty nan: must be at least 0"),
        (["--stop", "soon"], "--stop soon: must be one of exact, beam"),
        (["--sampling", "--stop", "beam"], "--stop beam: not with --sampling; type --stop exact or --no-sampling\n"),
        (
            ["--diversity-groups", "4", "--beam-size", "1"],
            "--beam-size 1: must be a multiple of --diversity-groups 4; --diversity-groups 1 is plain beam search\n",
        ),
        (["--top-p", "0.5"], "--top-p 0.5: for sampling alone; add --sampling"),
        (["--threads", "0"], "--threads 0: must be at least 1"),
        (["--threads", "100000000"], "--threads 100000000: there are "),
        (["--batch-tokens", "-5"], "--batch-tokens -5: must be at least 1"),
        (["--batch-tokens", "9" * 20], f"--batch-tokens {'9' * 20}: must be at most 1073741824"),
        (["--sampling", "--temperature", "1e-309"], "--temperature 1e-309: must be at least 0.001"),
        (["--repetition-penalty", "1e300"], "--repetition-penalty 1e+300: must be at most 1000"),
        (["--device", "gpu"], "device=gpu: no such device; type auto, cpu"),
        (["--n-best", "0"], "--n-best 0: must be at least 1"),
        (["--n-best", "5"], "--n-best 5: must not be above --beam-size 4"),
    ],
)
def test_an_option_out_of_range(arguments: list[str], message: str, run: Any, tiny_model: Path) -> None:
    run(translate.main, "--model", tiny_model, *arguments).refused("seq2seq-translate", message)


@pytest.mark.parametrize(
    "arguments", [["--beam-size", "four"], ["--dtype", "float16"], ["--modle", "x"], ["surplus"], ["--n-best"]]
)
def test_an_option_misused(arguments: list[str], run: Any) -> None:
    run(translate.main, *arguments).refused("seq2seq-translate", "; seq2seq-translate --help lists the options")


@pytest.mark.parametrize("command", [translate, evaluate, score])
def test_no_model(command: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"seq2seq-{command.__name__.rpartition('.')[2]}"
    monkeypatch.chdir(tmp_path)
    run(command.main).refused(name, "train one: seq2seq-train +recipe=quickstart, or give one: --model DIR")
    reference = tmp_path / "reference"
    reference.write_text("a\n")
    more = ["--source", reference, "--reference", reference] if command is evaluate else []
    run(command.main, "--model", "no/where", *more).refused(
        name, "no/where: no model there (no manifest.json); train one"
    )
    if command is evaluate:
        run(evaluate.main, "--model", "no/where").refused(name, "no/where: no model there (no manifest.json)")
    (tmp_path / "checkpoints").mkdir()
    run(command.main, "--model", "model", *more).refused(
        name, "model: no model there yet: training has not validated one; type its command again"
    )


def test_a_file_as_an_argument(run: Any, tmp_path: Path) -> None:
    (text := tmp_path / "my text").touch()
    for command in (translate, score):
        name = f"seq2seq-{command.__name__.rpartition('.')[2]}"
        run(command.main, text).refused(name, f"text is read from standard input: < '{text}'")
    assert "standard input" not in run(evaluate.main, text).err


def test_a_broken_model(run: Any, tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tiny_model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert run(translate.main, "--model", copy, stdin=b"a\n").code == 0
    (copy / "tokenizer.model").unlink()
    run(translate.main, "--model", copy).refused("seq2seq-translate", "tokenizer.model: missing from the model")
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text() + "seed: 2\n")
    run(translate.main, "--model", copy).refused("seq2seq-translate", "config.yaml: changed since it was written")
