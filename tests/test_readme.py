"""Every command in the documents parses and composes; the ones that train are run by `make gate`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from seq2seq.cli import average, evaluate, score, translate
from seq2seq.config.compose import compose, options_of
from tools import benchmarks, figures, reliability
from tools.pages import SECTION, filled

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("recipes/*/README.md")), *sorted(ROOT.glob("recipes/*/run.sh"))]
PARSERS = {
    "seq2seq-translate": translate.options,
    "seq2seq-evaluate": evaluate.options,
    "seq2seq-average": average.options,
    "seq2seq-score": score.options,
}


def commands(document: Path) -> list[list[str]]:
    text = document.read_text(encoding="utf-8")
    shell = [text] if document.suffix == ".sh" else re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    found = []
    for line in "\n".join(shell).replace("\\\n", " ").replace("$recipe", document.parent.name).split("\n"):
        for part in re.split(r"[|;]", line):
            if part.strip().startswith("seq2seq-"):
                words = shlex.split(part, comments=True)
                found.append(words[: words.index("<")] if "<" in words else words)
    return found


CASES = [
    pytest.param(words, id=f"{path.parent.name}: {' '.join(words)[:60]}")
    for path in DOCUMENTS
    for words in commands(path)
]


@pytest.mark.parametrize("words", CASES)
def test_a_command_of_the_documents_is_accepted(words: list[str]) -> None:
    command, arguments = words[0], words[1:]
    if command in PARSERS:
        PARSERS[command]().parse_args(arguments)
    else:
        # What the shell fills in (a path, the user's own overrides) is not there to check; of several rows, the first.
        given = [argument for argument in arguments if "$" not in argument and argument != "--multirun"]
        rows = [argument.partition(",")[0] for argument in given if argument.startswith("+ablation=")]
        assert compose([*(argument for argument in given if not argument.startswith("+ablation=")), *rows]).run_dir


def test_every_recipe_has_a_folder_with_a_script_and_a_page() -> None:
    for name in options_of("recipe"):
        assert (ROOT / "recipes" / name / "run.sh").is_file()
        assert (ROOT / "recipes" / name / "README.md").is_file()
        page = (ROOT / "recipes" / name / "README.md").read_text(encoding="utf-8")
        assert "Not measured yet" in page or name == "files" or (ROOT / "recipes" / name / "results.json").is_file()
        assert f"recipes/{name}/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("results", sorted(ROOT.glob("recipes/*/results.json")), ids=lambda path: path.parent.name)
def test_the_figures_of_a_recipe_are_those_of_its_results_file(results: Path, tmp_path: Path) -> None:
    page = (results.parent / "README.md").read_text(encoding="utf-8")
    found = json.loads(results.read_text(encoding="utf-8"))
    assert figures.rendered(found) in page
    if (results.parent / "curve.svg").exists():
        pytest.importorskip("matplotlib", reason="draws the curve again; pip install './[plot]'")
        figures.draw(found, tmp_path / "curve.svg")
        assert (tmp_path / "curve.svg").read_bytes() == (results.parent / "curve.svg").read_bytes()


def test_the_projected_cost_is_that_of_the_measured_rate() -> None:
    bench = json.loads((ROOT / "docs" / "benchmarks" / "train-base.json").read_text(encoding="utf-8"))
    assert bench["formats"]["bfloat16"]["contestants"]["ours"]["parameters"] == 63_082_496
    assert figures.rendered_projection(bench) in (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")


def test_the_figures_of_the_benchmarks_are_those_that_were_measured() -> None:
    text = benchmarks.PAGE.read_text(encoding="utf-8")
    assert filled(benchmarks.PAGE, benchmarks.rendered) == text
    shown = {name for _, name, _ in SECTION.findall(text)}
    assert shown == {path.stem for path in benchmarks.FOLDER.glob("*.json")}
    assert len(shown) >= 4


def test_the_figures_of_reliability_are_those_that_were_measured() -> None:
    text = reliability.PAGE.read_text(encoding="utf-8")
    assert filled(reliability.PAGE, reliability.rendered) == text
    shown = {name for _, name, _ in SECTION.findall(text)}
    assert (
        shown
        == {path.stem for path in reliability.FOLDER.glob("*.json")}
        == {"kills", "stops", "memory", "translating"}
    )


def test_the_proofs_of_a_document_are_tests() -> None:
    for page in [ROOT / "BENCHMARKS.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{page.name}: {path}::{name}"
