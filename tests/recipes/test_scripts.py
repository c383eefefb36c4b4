"""The recipes' scripts: which commands they type, with commands in their place that only write down their arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seq2seq.cli import evaluate
from seq2seq.config.compose import compose

if TYPE_CHECKING:
    from tests.recipes.conftest import Script

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(ROOT.glob("recipes/**/*.sh"))
RECIPES = ["multi30k_en_de", "multi30k_en_de_gpu", "multi30k_de_en"]
PAPERS = {"wmt14_en_de": "27.3", "wmt14_en_de_big": "28.4", "wmt14_en_fr": "38.1", "wmt14_en_fr_big": "41.8"}
SCORE = {"score": 20.0, "signature": "a|b"}
SCORES = {"sentences": 2, "bleu": SCORE, "tokenised_bleu": SCORE, "paper_bleu": SCORE, "exact": 0.0}
WRITE_DOWN = '{ printf %s "${0##*/}"; printf "\\t%s" "$@"; echo; } >>"$TYPED"\n'


@pytest.fixture
def typed(tmp_path: Path, commands: Path, environment: dict[str, str]) -> Path:
    """The file of what was typed, a line for each command; evaluating prints `$SCORES`.

    Python finds nothing but its own library: an installation knows no tools.
    """
    environment |= {"TYPED": str(tmp_path / "typed"), "SCORES": json.dumps(SCORES)}
    stubs = {
        "seq2seq-train": "",
        "torchrun": "",
        "seq2seq-evaluate": 'echo "$SCORES"\n',
        "srun": 'shift; SLURM_NODEID=0 "$@"\n',
        "scontrol": "printf 'first\\nsecond\\n'\n",
    }
    for name, does in stubs.items():
        (commands / name).write_text(f"#!/bin/sh\n{WRITE_DOWN}{does}", encoding="utf-8")
        (commands / name).chmod(0o755)
    (commands / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n', encoding="utf-8")
    (commands / "python3").chmod(0o755)
    return tmp_path / "typed"


def taken_down(typed: Path) -> list[list[str]]:
    """The commands typed since the last call."""
    lines = typed.read_text(encoding="utf-8").split("\n")[:-1] if typed.exists() else []
    typed.unlink(missing_ok=True)
    return [line.split("\t") for line in lines]


def trained(run_dir: Path, time: float = 1e9) -> None:
    """Leave what the scripts look at in a trained model."""
    manifest = run_dir / "model" / "manifest.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.touch()
    os.utime(manifest, (time, time))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_is_valid_bash(path: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("recipe", [*RECIPES, *PAPERS])
def test_a_recipe_trains_scores_and_prints_its_table(recipe: str, script: Script, typed: Path, tmp_path: Path) -> None:
    trained(tmp_path / "runs" / recipe)
    done = script(f"{recipe}/run.sh", "seed=7")
    assert done.returncode == 0, done.stderr
    train, *evaluations = taken_down(typed)
    assert train == ["seq2seq-train", f"+recipe={recipe}", "seed=7"]
    assert compose(train[1:]).seed == 7
    assert evaluations
    for name, *arguments in evaluations:
        assert (name, *arguments[:2]) == ("seq2seq-evaluate", "--model", f"runs/{recipe}/model")
        if "--test-set" in evaluate.options().format_help():
            evaluate.options().parse_args(arguments)
    assert done.stdout.startswith("| test set | score | ") and "BLEU 20.00" in done.stdout
    if recipe in PAPERS:
        assert evaluations[0][3:] == ["--test-set", "wmt14,wmt14/full", "--paper-bleu"]
        assert f"| newstest2014 | the paper's BLEU 20.00 | {PAPERS[recipe]} | `a\\|b` |\n" in done.stdout

    again = script(f"{recipe}/run.sh", "seed=7")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert taken_down(typed) == [train], "nothing is scored twice"
    trained(tmp_path / "runs" / recipe, time=4e9)
    script(f"{recipe}/run.sh", "seed=7")
    assert len(taken_down(typed)) == 1 + len(evaluations), "unless the model is another"


@pytest.mark.usefixtures("typed")
def test_several_test_sets_in_one_file_are_rows_of_their_own(script: Script, tmp_path: Path) -> None:
    trained(tmp_path / "runs" / "wmt14_en_de")
    done = script("wmt14_en_de/run.sh", SCORES=json.dumps({"wmt14": SCORES, "wmt14/full": SCORES}))
    assert [line.split(" | ")[0] for line in done.stdout.split("\n")[2:-1]] == ["| wmt14"] * 3 + ["| wmt14/full"] * 3


def test_local_files_take_the_place_of_the_hub(script: Script, typed: Path, tmp_path: Path) -> None:
    trained(tmp_path / "elsewhere")
    done = script("wmt14_en_fr_big/run.sh", "run_dir=elsewhere", WMT14="/d a/[x],=y")
    assert done.returncode == 0, done.stderr
    train, evaluated = taken_down(typed)
    config = compose(train[1:])
    assert (config.data.train.source, config.data.train.target) == ("/d a/[x],=y/train.en", "/d a/[x],=y/train.fr")
    assert config.data.valid.source == "/d a/[x],=y/newstest2013.en"
    assert config.data.test.target == "/d a/[x],=y/test.fr"
    assert evaluated[2:] == ["elsewhere/model", "--paper-bleu", "--output", "elsewhere/test.hypotheses"]
    assert (tmp_path / "elsewhere" / "scores" / "test.json").is_file()


@pytest.mark.usefixtures("typed")
def test_a_command_that_fails_ends_the_script(script: Script, commands: Path, tmp_path: Path) -> None:
    trained(tmp_path / "runs" / "wmt14_en_de")
    (commands / "seq2seq-evaluate").write_text("#!/bin/sh\necho half\nexit 3\n", encoding="utf-8")
    done = script("wmt14_en_de/run.sh")
    assert (done.returncode, done.stdout) == (3, "")
    assert not (tmp_path / "runs" / "wmt14_en_de" / "scores" / "newstest2014.json").exists()


def test_eight_devices(script: Script, typed: Path, tmp_path: Path) -> None:
    trained(tmp_path / "runs" / "wmt14_en_de")
    assert script("wmt14_en_de/run.sh", DEVICES="8").returncode == 0
    assert taken_down(typed)[0] == ["seq2seq-train", "+recipe=wmt14_en_de", "trainer.devices=8"]


@pytest.mark.parametrize("recipe", ["quickstart", "table3", "files"])
def test_all_recipes_take_devices_and_another_folder(recipe: str, script: Script, typed: Path, tmp_path: Path) -> None:
    trained(tmp_path / "there" / "base" if recipe == "table3" else tmp_path / "there")
    arguments = ["a.en", "a.de", "run_dir=there"] if recipe == "files" else ["run_dir=there"]
    done = script(f"{recipe}/run.sh", *arguments, DEVICES="2")
    assert done.returncode == 0, done.stderr
    train, *evaluations = taken_down(typed)
    assert train[:3] == ["seq2seq-train", f"+recipe={recipe}", train[2]]
    assert {"trainer.devices=2", "run_dir=there"} <= set(train)
    models = {"quickstart": ["there/model"], "table3": ["there/base/model"], "files": []}[recipe]
    assert [evaluation[2] for evaluation in evaluations] == models


def test_the_rows_of_table_3_are_for_one_machine(script: Script, typed: Path) -> None:
    done = script("table3/run.sh", NODES="2", NODE_RANK="0", MASTER_ADDR="first")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert not taken_down(typed)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_several_machines(rank: str, script: Script, typed: Path, tmp_path: Path) -> None:
    trained(tmp_path / "runs" / "wmt14_en_de_big")
    machines = {"NODES": "2", "NODE_RANK": rank, "MASTER_ADDR": "first", "DEVICES": "8"}
    done = script("wmt14_en_de_big/run.sh", "data.micro_batches=16", **machines)
    assert done.returncode == 0, done.stderr
    torchrun, *rest = taken_down(typed)
    assert torchrun == [
        *("torchrun", "--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=8", "--master-addr=first"),
        *("--master-port=29500", "-m", "seq2seq.cli.train", "+recipe=wmt14_en_de_big", "data.micro_batches=16"),
    ]
    assert len(rest) == (1 if rank == "0" else 0), "the first machine scores, alone"
    assert bool(done.stdout) == (rank == "0")


def test_several_machines_that_do_not_know_each_other(script: Script, typed: Path) -> None:
    done = script("wmt14_en_de/run.sh", NODES="2", DEVICES="8")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("NODES=2: set NODE_RANK ")
    assert not taken_down(typed)


def test_any_recipe_on_slurm(script: Script, typed: Path, tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    trained(tmp_path / "runs" / "wmt14_en_fr")
    job = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "70001"}
    done = script("slurm.sh", "wmt14_en_fr", "data.micro_batches=16", SLURM_CPUS_ON_NODE="64", **job)
    assert done.returncode == 0, done.stderr
    scontrol, srun, torchrun, *_ = taken_down(typed)
    assert scontrol == ["scontrol", "show", "hostnames", "n[1-2]"]
    assert srun[1] == "--cpus-per-task=64"
    assert torchrun[1:6] == ["--nnodes=2", "--node-rank=0", "--nproc-per-node=8", "--master-addr=first", torchrun[5]]
    assert torchrun[5:] == [
        "--master-port=30001",
        "-m",
        "seq2seq.cli.train",
        "+recipe=wmt14_en_fr",
        "data.micro_batches=16",
    ]
    assert "the paper's BLEU 20.00 | 38.1" in done.stdout

    unknown = script("slurm.sh", "wmt15_en_de", **job)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert unknown.stderr.startswith("recipes/wmt15_en_de/run.sh: not found")


TAGGED = "<url>http://x</url>\n<keywords>a, b</keywords>\n<talkid>1</talkid>\n<title>T</title>\n"
SEGMENTS = '<doc docid="1">\n<title>t</title>\n<seg id="1"> {name} Ann’s </seg>\n<seg id="2"> b & c </seg>\n</doc>\n'


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "de-en"
    folder.mkdir()
    for side in ("de", "en"):
        lines = "".join(f" {side} {number} \n" for number in range(1, 46))
        (folder / f"train.tags.de-en.{side}").write_text(TAGGED + lines, encoding="utf-8")
        for name in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"):
            text = SEGMENTS.format(name=name)
            (folder / f"IWSLT14.{name}.de-en.{side}.xml").write_text(text, encoding="utf-8")
    return folder


def test_the_iwslt_archive_becomes_text(script: Script, typed: Path, archive: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "iwslt14_de_en"
    trained(run_dir)
    done = script("iwslt14_de_en/run.sh", IWSLT14=str(archive))
    assert done.returncode == 0, done.stderr
    texts: dict[str, Any] = {path.name: path.read_text(encoding="utf-8") for path in (run_dir / "text").iterdir()}
    assert sorted(texts) == ["test.de", "test.en", "train.de", "train.en", "valid.de", "valid.en"]
    assert texts["valid.de"] == " de 22 \n de 45 \n" and texts["train.en"].startswith("T\n en 1 \n")
    assert texts["train.en"].count("\n") == 44
    assert texts["test.en"].startswith("TED.dev2010 Ann's\nb & c\nTEDX.dev2012 Ann's\n")
    assert texts["test.en"].count("\n") == 10
    train, *evaluations = taken_down(typed)
    assert compose(train[1:]).data.train.source == "runs/iwslt14_de_en/text/train.de"
    assert len(evaluations) == 2 and "tokenised BLEU 20.00 | 34.5 |" in done.stdout
    assert script("iwslt14_de_en/run.sh").returncode == 0, "the archive is no longer needed"


def test_without_the_iwslt_archive(script: Script, typed: Path) -> None:
    for given in ({}, {"IWSLT14": "nowhere"}):
        done = script("iwslt14_de_en/run.sh", **given)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"IWSLT14={given.get('IWSLT14', '')}: no train.tags.de-en.de there")
        assert not taken_down(typed)
