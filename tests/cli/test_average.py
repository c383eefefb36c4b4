"""seq2seq-average: a model directory that holds the mean of some checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from seq2seq.cli.average import main
from seq2seq.config.compose import load, to_yaml
from seq2seq.model.weights import load_weights
from seq2seq.support.files import read_json
from seq2seq.support.manifest import write_manifest
from seq2seq.translate.translator import Translator


@pytest.fixture
def run_dir(tiny_model: Path, tmp_path: Path) -> Path:
    """A run with the tiny model and checkpoints whose weights are its own plus 0, 1, 2, 6 and 9 (irregular)."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tiny_model)
    weights = load_weights(tiny_model / "model.safetensors")
    config = load(tiny_model / "config.yaml")
    config.trainer.save_every = 20
    for step, shift in ((20, 0.0), (100, 1.0), (1000, 2.0), (3000, 6.0), (3007, 9.0)):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        shifted = {name: tensor + shift for name, tensor in weights.items()}
        safetensors.torch.save_file(shifted, folder / "model.safetensors")
        (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8", newline="\n")
        write_manifest(folder)
    (tmp_path / "run" / "checkpoints" / ".step-4000.x.tmp").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("arguments", "steps", "shift"),
    [
        (["--last", "2"], [1000, 3000], 4.0),
        (["--last", "4"], [20, 100, 1000, 3000], 2.25),
        (["--steps", "20,1000"], [20, 1000], 1.0),
        (["--steps", "3000,100,1000"], [100, 1000, 3000], 3.0),
        (["--steps", "1000,3007"], [1000, 3007], 5.5),
    ],
)
def test_the_mean_of_checkpoints(
    arguments: list[str], steps: list[int], shift: float, run: Any, run_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "averaged"
    code, out, err = run(main, run_dir, *arguments, "--output", output)
    assert (code, out) == (0, "")
    assert err == f"{output}: the mean of {', '.join(f'step-{step}' for step in steps)}\n"
    one, mean = (load_weights(place / "model.safetensors") for place in (run_dir / "model", output))
    assert one.keys() == mean.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(mean[name], tensor + shift)
    manifest = read_json(output / "manifest.json")
    assert manifest["steps"] == steps
    assert manifest["data_sha256"] == "none"
    assert len(Translator.load(output, device="cpu").translate(["the dog"])) == 1


def test_mistakes(run: Any, run_dir: Path, tmp_path: Path) -> None:
    output = ["--output", tmp_path / "averaged"]
    there = "(steps there: 20, 100, 1000, 3000, 3007)"
    for arguments, message in (
        ([], f"4 of 5 checkpoints at multiples of trainer.save_every=20 found {there}"),
        (["--last", "0"], "--last 0: must be at least 1"),
        (["--last", "2", "--steps", "100,20"], "--last 2 with --steps 100,20: leave out either"),
        (["--steps", "100,200,7"], f"--steps 100,200,7: {run_dir} has no checkpoint of step 200, 7 {there}"),
        (["--steps", "x"], f"--steps x: {run_dir} has no checkpoint of step x {there}"),
        (["--steps", ""], f"--steps : {run_dir} has no checkpoint of step  {there}"),
    ):
        run(main, run_dir, *arguments, *output).refused("seq2seq-average", message)
    nowhere = tmp_path / "no" / "checkpoints"
    run(main, tmp_path / "no", *output).refused("seq2seq-average", f"{nowhere}: no checkpoints there; give the dir")
    run(main, run_dir, "--last", "1", "--output", tmp_path).refused("seq2seq-average", "already there; give another")
    assert not (tmp_path / "averaged").exists()
    manifest = run_dir / "model" / "manifest.json"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text("{", encoding="utf-8")
    run(main, run_dir, "--last", "1", *output).refused("seq2seq-average", f"{manifest}: broken")
    manifest.write_text(text, encoding="utf-8")
    code, out, err = run(main, run_dir)
    assert (code, out) == (2, "") and "--output" in err


def test_checkpoints_of_another_model_are_refused(run: Any, run_dir: Path, tmp_path: Path) -> None:
    other = run_dir / "checkpoints" / "step-100" / "model.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2)}, other)
    (other.parent / "manifest.json").unlink()
    write_manifest(other.parent)
    run(main, run_dir, "--last", "4", "--output", tmp_path / "averaged").refused(
        "seq2seq-average", f"{other}: not the same model as"
    )
    other.write_bytes(b"broken")
    run(main, run_dir, "--last", "4", "--output", tmp_path / "averaged").refused(
        "seq2seq-average", f"{other}: damaged, its SHA-256 is not that of the manifest; choose others"
    )
    assert not (tmp_path / "averaged").exists()
