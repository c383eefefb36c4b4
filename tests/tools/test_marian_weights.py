"""Our weights in Hugging Face's Marian: the same function."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seq2seq.config.compose import compose
from seq2seq.data.batches import Batch
from seq2seq.model.translation import build_model
from seq2seq.ops.packing import Layout
from seq2seq.support.errors import UserError

pytest.importorskip("transformers")


@torch.no_grad()
def test_it_gives_our_logits(tiny: list[str]) -> None:
    from tools.marian_weights import as_marian

    config = compose(["run_dir=run", *tiny, "model.encoder.num_layers=2"]).model
    model = build_model(config, 50, seed=1).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.3)
    generator = torch.Generator().manual_seed(1)
    source, target = Layout.of([6, 2, 4]), Layout.of([3, 5, 1])
    tokens, fed = (torch.randint(4, 50, (layout.total,), generator=generator) for layout in (source, target))
    ours = model.logits(model(Batch(tokens, source, fed, fed, target)))
    theirs = as_marian(model, config)(
        input_ids=source.unpack(tokens), attention_mask=source.mask.long(), decoder_input_ids=target.unpack(fed)
    ).logits
    torch.testing.assert_close(target.pack(theirs), ours, atol=1e-5, rtol=0)


def test_a_model_that_normalises_first_is_refused(tiny: list[str]) -> None:
    from tools.marian_weights import as_marian

    config = compose(["run_dir=run", *tiny, "model.norm=pre"]).model
    with pytest.raises(UserError, match=r"model\.norm=post"):
        as_marian(build_model(config, 50, seed=1), config)
