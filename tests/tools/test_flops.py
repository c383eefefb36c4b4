"""Counted FLOPs are those that PyTorch's own counter sees, and grow with the pairs alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from seq2seq.config.compose import compose
from seq2seq.data.batches import Batch
from seq2seq.ops import native
from seq2seq.ops.packing import Layout
from tools.contestants import CONTESTANTS
from tools.flops import update_flops


@pytest.fixture(autouse=True)
def _by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its counter does not see what functions in C++ compute."""
    monkeypatch.setattr(native, "supports", lambda _: False)


def batch_of(source_length: int, target_length: int, sentences: int) -> Batch:
    """Equally long sentences: no pads that a counter would see and we would not."""
    layouts = [Layout.of([length] * sentences) for length in (source_length, target_length)]
    source, target = (torch.randint(4, 50, (layout.total,)) for layout in layouts)
    return Batch(source, layouts[0], target, target, layouts[1])


@pytest.mark.parametrize("name", ["ours", "Marian, eager"])
@pytest.mark.parametrize("settings", [[], ["model.encoder.num_layers=2", "model.decoder.d_ff=48"]])
def test_as_pytorch_counts(name: str, settings: list[str], tiny: list[str]) -> None:
    if name != "ours":
        pytest.importorskip("transformers")
    config = compose(["run_dir=run", *tiny, *(settings if name == "ours" else [])]).model
    batch = batch_of(7, 5, 3)
    contestant = CONTESTANTS[name](config, 50)
    with FlopCounterMode(display=False) as counter:
        contestant.loss(batch).backward()
    assert counter.get_total_flops() == update_flops(config, 50, [7] * 3, [5] * 3)


def test_narrow_keys_cost_less(tiny: list[str]) -> None:
    config = compose(["run_dir=run", *tiny, "model.encoder.d_k=2", "model.decoder.d_k=3"]).model
    with FlopCounterMode(display=False) as counter:
        CONTESTANTS["ours"](config, 50).loss(batch_of(7, 5, 3)).backward()
    assert counter.get_total_flops() == update_flops(config, 50, [7] * 3, [5] * 3)


def test_pairs_add_up(tiny: list[str]) -> None:
    config = compose(["run_dir=run", *tiny]).model
    pairs = np.array([[3, 9], [8, 2], [5, 5]])
    alone = sum(update_flops(config, 50, [source], [target]) for source, target in pairs)
    assert update_flops(config, 50, pairs[:, 0], pairs[:, 1]) == alone


def test_the_papers_base_model() -> None:
    config = compose(["run_dir=run", "model=base"]).model
    # 6 FLOPs for each weight that a token meets: 18.9 M in the encoder, 25.2 M in the decoder, 18.9 M in the output.
    assert update_flops(config, 37_000, [1] * 1000, [1] * 1000) / 1000 == pytest.approx(0.378e9, rel=0.01)
