"""Our weights in CTranslate2: the same function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from seq2seq.config.compose import compose
from seq2seq.data.batches import Batch
from seq2seq.data.tokenizer import BOS, EOS
from seq2seq.model.translation import build_model
from seq2seq.ops.packing import Layout
from seq2seq.support.errors import UserError

ctranslate2 = pytest.importorskip("ctranslate2")


@pytest.mark.parametrize("norm", ["post", "pre"])
@torch.no_grad()
def test_it_gives_our_probabilities(norm: str, tiny: list[str], tmp_path: Path) -> None:
    from tools.ctranslate2_model import piece, write_ctranslate2_model

    config = compose(["run_dir=run", *tiny, "model.encoder.num_layers=2", f"model.norm={norm}"]).model
    model = build_model(config, 50, seed=1).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.3)
    write_ctranslate2_model(model, config, tmp_path / "theirs")
    theirs = ctranslate2.Translator(str(tmp_path / "theirs"), compute_type="float32")
    source, target = [5, 30, 7, EOS], [8, 44, 9]
    (found,) = theirs.score_batch([list(map(piece, source))], [list(map(piece, target))])
    fed, wanted = torch.tensor([BOS, *target]), torch.tensor([*target, EOS])
    batch = Batch(torch.tensor(source), Layout.of([len(source)]), fed, wanted, Layout.of([len(fed)]))
    ours = model.logits(model(batch)).log_softmax(1).gather(1, wanted[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found.log_probs), ours, atol=1e-5, rtol=0)


def test_a_model_of_two_norms_is_refused(tiny: list[str], tmp_path: Path) -> None:
    from tools.ctranslate2_model import write_ctranslate2_model

    config = compose(["run_dir=run", *tiny, "model.decoder.norm=pre"]).model
    with pytest.raises(UserError, match=r"one model\.norm"):
        write_ctranslate2_model(build_model(config, 50, seed=1), config, tmp_path / "theirs")
