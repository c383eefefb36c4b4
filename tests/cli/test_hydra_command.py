"""Hydra applications with our help, messages and exit codes."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from seq2seq.cli.hydra_command import run_hydra_command
from seq2seq.config.compose import compose, options_of
from seq2seq.config.schema import Config
from seq2seq.support.errors import RunError, UserError

GIVEN: list[Config] = []


def command(error: BaseException | None = None) -> Any:
    def task(config: Config) -> None:
        GIVEN.append(config)
        if error:
            raise error

    GIVEN.clear()
    return lambda: sys.exit(run_hydra_command("seq2seq-test", "A summary.", task))


def test_help_names_the_recipes(run: Any) -> None:
    out = run(command(), "--help").out
    assert run(command()) == (2, "", out)
    assert "model=base|big|iwslt|recurrent|small|tiny\n" in out
    assert out.startswith("A summary.\n\nusage: seq2seq-test +recipe=NAME [key=value ...]\n")
    assert all(f"\n  {recipe}\n" in out for recipe in options_of("recipe"))
    assert not GIVEN


def test_the_task_gets_the_checked_configuration(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(command(), "+recipe=quickstart", "seed=7", "search=greedy")
    assert (code, out, err) == (0, "", "")
    assert [(config.seed, config.search.beam_size, config.run_dir) for config in GIVEN] == [(7, 1, "runs/quickstart")]
    assert [path.name for path in tmp_path.iterdir()] == ["stdin"], "Hydra would make folders of its own"


def test_the_composed_configuration_can_be_shown(run: Any) -> None:
    code, out, err = run(command(), "--cfg", "job", "+recipe=wmt14_en_de", "seed=2")
    assert (code, err) == (0, "")
    # Settings may come before flags, after them, or on both sides.
    assert run(command(), "+recipe=wmt14_en_de", "--cfg", "job", "seed=2").out == out
    assert run(command(), "+recipe=wmt14_en_de", "seed=2", "--cfg", "job").out == out
    shown = yaml.safe_load(out)
    assert shown["data"]["train"]["dataset"] == "wmt/wmt14"
    assert shown["tokenizer"]["vocab_size"] == 37000
    assert not GIVEN


def test_a_python_that_checks_help_texts_does_not_mind_hydras(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(_: argparse.ArgumentParser, action: argparse.Action) -> None:
        if action.help and not isinstance(action.help, str):
            raise ValueError("badly formed help string")

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check, raising=False)
    assert run(command(), "+recipe=quickstart").code == 0
    assert argparse.ArgumentParser._check_help is check  # type: ignore[attr-defined]


def test_settings_without_a_value_and_flags_with_one_are_told_apart(run: Any, tmp_path: Path) -> None:
    own = tmp_path / "a=b"
    (own / "recipe").mkdir(parents=True)
    (own / "recipe" / "own.yaml").write_text("# @package _global_\nrun_dir: runs/own\n", encoding="utf-8")
    assert "run_dir: runs/own\n" in run(command(), "--config-dir", own, "+recipe=own", "--cfg", "job").out
    mistyped = ("+recipe=quickstart", "trainer.max_steps", "--cfg", "job")
    run(command(), *mistyped).refused("seq2seq-test", "trainer.max_steps: not a setting; type key=value")
    assert run(command(), "+recipe=quickstart", "--info").code == 0


@pytest.mark.parametrize("arguments", [["--bogus"], ["--recipe", "files"], ["--cfg", "foo"], ["--cfg"]])
def test_a_mistyped_flag_is_told_in_one_line(arguments: list[str], run: Any) -> None:
    told = "; seq2seq-test --help lists the flags, and settings are typed key=value"
    run(command(), "+recipe=files", *arguments).refused("seq2seq-test", told)


def test_a_recipe_that_is_not_yaml_is_told_with_file_and_line(run: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "own.yaml").write_text("# @package _global_\ntrainer: {{max_steps: 5}\n", encoding="utf-8")
    refused = run(command(), "--config-dir", tmp_path, "+recipe=own")
    refused.refused("seq2seq-test", f'{tmp_path}/recipe/own.yaml", line 3')
    assert "not valid YAML" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+recipe=quickstrat"], "recipe=quickstrat: no such recipe; did you mean quickstart?"),
        (["recipe=quickstart"], "type +recipe=quickstart"),
        (["+recipe=quickstart", "model=smal"], "model=smal: no such model; did you mean small?"),
        (["+recipe=quickstart", "model=5"], "model=5: no such model"),
        (["+recipe=quickstart", "trainer.max_stpes=5"], "did you mean max_steps?"),
        (["+recipe=quickstart", "+optimizer.lrr=1"], "optimizer.lrr: no such key in optimizer"),
        (["+recipe=quickstart", "seed=x"], "seed: Value 'x'"),
        (["+recipe=quickstart", "trainer.max_steps=0"], "trainer.max_steps=0: must be at least 1"),
        (["+recipe=quickstart", "seed=["], "seed=[: "),
        (["quickstart"], "quickstart: not a setting; type key=value"),
        (["seed=2"], "run_dir is not set; type +recipe=NAME"),
        (["--multirun", "seed=1,2"], "run_dir is not set; type +recipe=NAME"),
        (["--multirun", "+recipe=quickstart", "seed=1,x"], "seed: Value 'x'"),
        (["-m", "+recipe=quickstart", "+ablation=base,A_head_1"], "no such ablation; did you mean A_heads_1?"),
        (["--multirun", "+recipe=quickstart", "sede=1,2"], "sede: no such key; did you mean seed?"),
    ],
)
def test_a_mistake_ends_with_code_2(arguments: list[str], message: str, run: Any) -> None:
    run(command(), *arguments).refused("seq2seq-test", message)


def test_a_flag_that_hydra_does_not_know(run: Any) -> None:
    code, out, err = run(command(), "+recipe=quickstart", "--modle")
    assert (code, out) == (2, "")
    assert "--modle" in err and "Traceback" not in err


@pytest.mark.parametrize(("error", "code"), [(UserError("yours"), 2), (RunError("the run's"), 3)])
def test_errors_of_the_task_keep_their_codes(error: Exception, code: int, run: Any) -> None:
    run(command(error), "+recipe=quickstart").refused("seq2seq-test", str(error), code)


def test_a_defect_shows_its_trace(run: Any) -> None:
    code, out, err = run(command(ZeroDivisionError()), "+recipe=quickstart")
    assert (code, out) == (1, "")
    assert "Traceback" in err and "in task" in err and "this is a bug in seq2seq" in err


def test_an_interrupt_before_training(run: Any) -> None:
    run(command(KeyboardInterrupt()), "+recipe=quickstart").refused(
        "seq2seq-test", "stopped by SIGINT; rerun the same command to resume", 130
    )


def test_jobs_of_a_multirun_have_folders_of_their_own(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(command(), "--multirun", "+recipe=quickstart", "seed=1,2,3")
    assert (code, out) == (0, "")
    found = [(config.seed, config.run_dir, config.data.prepared_dir) for config in GIVEN]
    assert found == [(seed, f"runs/quickstart/{seed - 1}", f"runs/quickstart/{seed - 1}/data") for seed in (1, 2, 3)]


def test_rows_of_table_3_have_folders_of_their_names_and_share_the_data(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(command(), "+recipe=table3")
    assert (code, out) == (0, "")
    assert sorted(config.run_dir for config in GIVEN) == [f"runs/table3/{row}" for row in options_of("ablation")]
    assert GIVEN[0].run_dir == "runs/table3/base"
    assert {config.data.prepared_dir for config in GIVEN} == {"runs/table3/data"}
    # What a row sets, the recipe leaves.
    for config in GIVEN:
        row = Path(config.run_dir).name
        assert asdict(config) == {**asdict(compose(["+recipe=table3", f"+ablation={row}"])), "run_dir": config.run_dir}

    run(command(), "+recipe=table3", "+ablation=A_heads_1,C_layers_2", "run_dir=elsewhere")
    assert [config.run_dir for config in GIVEN] == ["elsewhere/A_heads_1", "elsewhere/C_layers_2"]
    assert {config.data.prepared_dir for config in GIVEN} == {"elsewhere/data"}
    run(command(), "+recipe=table3", "+ablation=C_layers_2")
    assert [config.run_dir for config in GIVEN] == ["runs/table3/C_layers_2"]
    # A single run is where it is told to be.
    run(command(), "+recipe=quickstart", "+ablation=E_learned_positions")
    assert [(config.run_dir, config.model.encoder.positions) for config in GIVEN] == [("runs/quickstart", "learned")]


def test_a_row_with_several_seeds(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(command(), "--multirun", "+recipe=quickstart", "+ablation=base,A_heads_1", "seed=1,2")
    found = [(config.seed, config.run_dir, config.data.prepared_dir) for config in GIVEN]
    assert found == [
        (1, "runs/quickstart/base", "runs/quickstart/data"),
        (2, "runs/quickstart/base_1", "runs/quickstart/base_1/data"),
        (1, "runs/quickstart/A_heads_1", "runs/quickstart/data"),
        (2, "runs/quickstart/A_heads_1_3", "runs/quickstart/A_heads_1_3/data"),
    ]


def test_a_multirun_stops_at_the_first_error(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(command(RunError("loss")), "-m", "+recipe=quickstart", "seed=1,2,3").code == 3
    assert len(GIVEN) == 1
