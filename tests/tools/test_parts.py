"""Which operations of an update belong to which part of its time. Times are left out: a busy machine makes any long."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from seq2seq.config.compose import compose
from seq2seq.ops import native
from seq2seq.train.distributed import World
from tools import parts
from tools.bench_train import random_corpus
from tools.contestants import OURS
from tools.parts import BETWEEN, OTHER, PARTS, part_of, watched
from tools.training_worker import Job, Stretch, TrainingRun


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("native::product_of_bfloat16", "products"),
        ("aten::addmm", "products"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NTT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "products"),
        ("native::gradients_of_sentences", "attention"),
        ("attention_backward", "attention"),
        ("aten::_softmax_backward_data", "attention"),
        ("aten::_log_softmax_backward_data", "loss"),
        ("logits_to_gradients", "loss"),
        ("residual_norm_forward", "norms, dropout, sums"),
        ("aten::add_", "norms, dropout, sums"),
        ("aten::embedding_dense_backward", "embeddings"),
        ("aten::linalg_vector_norm", "optimizer"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("aten::nonzero", OTHER),
    ],
)
def test_names_tell_parts(name: str, part: str) -> None:
    assert part_of(name) == part


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_that_we_compute_belongs_to_a_part(
    monkeypatch: pytest.MonkeyPatch, tiny: list[str], tmp_path: Path, precision: str
) -> None:
    store = random_corpus(np.full((2, 40), 8), 300, tmp_path / "store")
    job = Job(OURS, precision, "cpu", 1, 300, asdict(compose([*tiny, f"run_dir={tmp_path}"]).model))
    training = TrainingRun(job, torch.device("cpu"), World())
    seen: dict[str, str] = {}
    monkeypatch.setattr(parts, "part_of", lambda name: seen.setdefault(name, part_of(name)))
    answer = watched(lambda: training.run(Stretch(str(store), 512, 0, 1)), torch.device("cpu"))
    assert set(answer["parts"]) == {*PARTS, OTHER, BETWEEN}
    assert set(seen.values()) == {*PARTS, OTHER}
    ours = {name for name in seen if name.startswith(("native::", "seq2seq::"))}
    assert len(ours) > 5
    assert not {name for name in ours if seen[name] == OTHER}
