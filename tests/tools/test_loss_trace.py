"""Two hundred updates of real training: the fast path and the plain one have the same losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seq2seq.config.compose import compose
from seq2seq.data.prepare import prepare
from tools.loss_trace import compared

SIZES = [
    "model=tiny",
    "data.batch_tokens=300",
    "schedule.warmup_steps=50",
    "schedule.peak=0.003",
    "tokenizer.vocab_size=500",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "near"),
    [pytest.param(torch.float32, 1e-3, id="float32"), pytest.param(torch.bfloat16, 0.03, id="bfloat16")],
)
def test_the_fast_path_has_the_losses_of_the_plain_one(
    tmp_path: Path, toy_corpus: tuple[Path, Path], precision: torch.dtype, near: float
) -> None:
    source, target = toy_corpus
    paths = [f"data.train.source={source}", f"data.train.target={target}", f"run_dir={tmp_path}"]
    config = compose(["+recipe=files", *paths, *SIZES, "trainer.device=cpu"])
    found = compared(config, prepare(config), 200, precision)
    assert len(found["fast"]) == 200
    # It learns: the traces are not those of a model that stands still.
    assert found["plain"][-1] < 0.6 * found["plain"][0]
    assert found["largest"] < near
