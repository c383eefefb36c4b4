"""Checkpoints made to do harm: going on from one is refused in one line, and runs nothing.

Whoever makes one can compute hashes, so the manifest fits the files unless it is the payload itself.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from seq2seq.support.errors import UserError
from seq2seq.support.files import sha256_of_json
from seq2seq.support.manifest import MANIFEST, write_manifest
from seq2seq.train.checkpoint import Checkpoints, Progress, Snapshot
from tests.security.canary import Touch
from tests.train.test_checkpoint import advance, keeping, training

WEIGHTS, OPTIMIZER, CONFIG, PROGRESS = "model.safetensors", "optimizer.safetensors", "config.yaml", "progress.json"
DEEP = "[" * 100_000


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        found = safetensors.torch.load_file(folder / name)
        change(found)
        safetensors.torch.save_file(found, folder / name)

    return changed


def progress(**values: object) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        found = json.loads((folder / PROGRESS).read_text())
        (folder / PROGRESS).write_text(json.dumps({**found, **values}))

    return changed


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text.replace("CANARY", str(folder.parents[2] / "canary")))


def linked(name: str) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        (folder / name).rename(folder.parents[2] / name)
        (folder / name).symlink_to(folder.parents[2] / name)

    return changed


def named(name: str) -> Callable[[Path], object]:
    """A manifest, its own hash right, that knows one file by another name."""

    def changed(folder: Path) -> None:
        found = json.loads((folder / MANIFEST).read_text())
        hashes = {name if key == WEIGHTS else key: value for key, value in found["sha256"].items()}
        manifest = {"format_version": 1, "sha256": hashes, "own_sha256": sha256_of_json(hashes)}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")

    return changed


def pickled(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Touch(folder.parents[2] / "canary")))


PAYLOADS: dict[str, Callable[[Path], object]] = {
    **{f"a pickle as {name}": pickled(name) for name in (WEIGHTS, OPTIMIZER, CONFIG, PROGRESS)},
    "a file saved by torch": lambda folder: torch.save(Touch(folder.parents[2] / "canary"), folder / WEIGHTS),
    "a Python tag": written(CONFIG, "seed: !!python/object/apply:os.mkdir [CANARY]\n"),
    "a target": written(CONFIG, "model: {encoder: {_target_: os.mkdir, path: CANARY}}\n"),
    "a resolver": written(CONFIG, "run_dir: ${oc.env:HOME}\n"),
    "deep YAML": written(CONFIG, DEEP),
    "deep JSON": written(PROGRESS, DEEP),
    "another kind of JSON": written(PROGRESS, "[1, 2]"),
    "an unknown key": progress(command="touch CANARY"),
    "a step that is no number": progress(step="1; touch CANARY"),
    "a loss that is no number": progress(losses=["1; touch CANARY"]),
    "a weight of another shape": tensors(WEIGHTS, lambda found: found.update({"0.bias": torch.zeros(7)})),
    "a weight that is not finite": tensors(WEIGHTS, lambda found: found["0.bias"].fill_(torch.nan)),
    "a moment of another shape": tensors(OPTIMIZER, lambda found: found.update({"0.bias.exp_avg": torch.zeros(7)})),
    "a moment of complex numbers": tensors(
        OPTIMIZER, lambda found: found.update({"0.bias.exp_avg": found["0.bias.exp_avg"].to(torch.complex64)})
    ),
    "a moment of no parameter": tensors(OPTIMIZER, lambda found: found.update({"9.bias.exp_avg": torch.zeros(5)})),
    "a moment that is not finite": tensors(OPTIMIZER, lambda found: found["0.bias.exp_avg"].fill_(torch.inf)),
    "a header of an exabyte": lambda folder: (folder / WEIGHTS).write_bytes((1 << 60).to_bytes(8, "little") + b"{}"),
    **{f"a link as {name}": linked(name) for name in (WEIGHTS, CONFIG)},
    "a missing file": lambda folder: (folder / OPTIMIZER).unlink(),
}
MANIFESTS: dict[str, Callable[[Path], object]] = {
    "a pickle as the manifest": pickled(MANIFEST),
    "a deep manifest": written(MANIFEST, DEEP),
    "a path upwards": named(f"../step-2/{WEIGHTS}"),
    "a path from the root": named("/etc/hostname"),
    "hashes of other files": lambda folder: (folder / WEIGHTS).write_bytes(b"other"),
}


@pytest.mark.parametrize("name", [*PAYLOADS, *MANIFESTS])
def test_it_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    config, run_dir = keeping(5), tmp_path / "run"
    trained = training(1)
    advance(trained, 2)
    Checkpoints(run_dir).save(Snapshot.of(*trained, Progress(step=2), None), config)
    folder = run_dir / "checkpoints" / "step-2"
    assert Checkpoints(run_dir).resume(*training(2), config, None), "it is sound before"
    change = PAYLOADS.get(name) or MANIFESTS[name]
    change(folder)
    if name in PAYLOADS:
        (folder / MANIFEST).unlink()
        write_manifest(folder)
    with pytest.raises(UserError) as refused:
        Checkpoints(run_dir).resume(*training(3), config, None)
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)
    assert not (tmp_path / "canary").exists()
