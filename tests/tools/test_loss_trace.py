"""Two hundred updates of real training: the fast path and the plain one have the same losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seq2seq.config.compose import compose
from seq2seq.data.prepare import prepare
from tests.conftest import toy
from tools.loss_trace import compared

SIZES = ["model=tiny", "data.batch_tokens=300", "schedule.warmup_steps=50", "schedule.peak=0.0003"]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(
    ("precision", "at_first"),
    [pytest.param(torch.float32, 1e-5, id="float32"), pytest.param(torch.bfloat16, 1e-3, id="bfloat16")],
)
def test_the_fast_path_has_the_losses_of_the_plain_one(
    tmp_path: Path, precision: torch.dtype, at_first: float, norm: str
) -> None:
    # So many that none is seen twice: a text learnt by heart has next to no loss, and differences of it mean little.
    lines = ["\t".join(pair) + "\n" for pair in toy(6000, seed=5)]
    (tmp_path / "toy.tsv").write_text("".join(lines), encoding="utf-8")
    paths = [f"data.train.source={tmp_path}/toy.tsv", f"run_dir={tmp_path}"]
    config = compose(
        [
            "+recipe=files",
            "optimizer=adam",
            f"model.norm={norm}",
            *paths,
            *SIZES,
            "tokenizer.vocab_size=500",
            "trainer.device=cpu",
        ]
    )
    found = compared(config, prepare(config), 200, precision)
    apart = [abs(fast - plain) / plain for fast, plain in zip(found["fast"], found["plain"], strict=True)]
    assert len(apart) == 200
    # It learns: the traces are not those of a model that stands still.
    assert found["plain"][-1] < 0.8 * found["plain"][0]
    # Rounding grows from update to update, as in any training: Adam makes whole steps of the smallest gradients.
    assert max(apart[:10]) < at_first
    assert found["largest"] == max(apart) < 0.03
