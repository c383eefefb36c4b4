"""Tiny trainings on texts to copy, and what they leave behind."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from seq2seq.train.trainer import Trainer

LETTERS = "abcdefghij"


TINY = [
    *("model.d_model=16", "model.encoder.num_layers=1", "model.decoder.num_layers=1"),
    *("model.encoder.num_heads=2", "model.decoder.num_heads=2", "model.encoder.d_ff=32", "model.decoder.d_ff=32"),
    *("search.max_length_ratio=0", "search.max_length_offset=5", "data.batch_tokens=500"),
    *("schedule.warmup_steps=10", "trainer.max_steps=12", "trainer.save_every=100", "trainer.validate_every=100"),
]


def draw(count: int, seed: int) -> list[str]:
    """Texts of one to seven letters with blanks between; some come twice."""
    rng = random.Random(seed)
    return [" ".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 7))) for _ in range(count)]


def write_copies(folder: Path, train: list[str], valid: list[str]) -> list[str]:
    """Files of which source and target are the same; the overrides that name them."""
    for split, texts in (("train", train), ("valid", valid)):
        for side in ("source", "target"):
            (folder / f"{split}.{side}").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    sides = [(split, side) for split in ("train", "valid") for side in ("source", "target")]
    return [
        *("+recipe=files", "model.norm=post", "optimizer=adam"),
        *(f"data.{split}.{side}={folder}/{split}.{side}" for split, side in sides),
        f"data.prepared_dir={folder}/data",
        *("data.cleaning.same=false", "data.cleaning.duplicate=false", "data.cleaning.max_pieces=30"),
        *("tokenizer.vocab_size=300", "trainer.device=cpu", "trainer.precision=float32", "trainer.average_last=0"),
    ]


Make = Callable[..., Trainer]


def tensors(run_dir: Path, step: int) -> dict[str, Tensor]:
    folder = run_dir / "checkpoints" / f"step-{step}"
    return {
        f"{name}/{key}": tensor
        for name in ("model", "optimizer")
        for key, tensor in safetensors.torch.load_file(folder / f"{name}.safetensors").items()
    }


def assert_same_state(one: Path, other: Path, step: int) -> None:
    own, same = tensors(one, step), tensors(other, step)
    assert own.keys() == same.keys()
    assert [name for name, tensor in own.items() if not torch.equal(tensor, same[name])] == []
    counts = [json.loads((path / f"checkpoints/step-{step}/progress.json").read_text()) for path in (one, other)]
    assert len({(count["step"], count["epoch"], count["update"]) for count in counts}) == 1


def steps_saved(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run_dir / "checkpoints").iterdir())


def log(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    return [line for line in lines if line["kind"] == kind]


def manifest(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "model" / "manifest.json").read_text(encoding="utf-8"))
    return found
