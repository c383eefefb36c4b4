"""Loss, perplexity and BLEU on the validation split; each rank takes its share."""

from __future__ import annotations

import copy
import itertools
import math
import time
from typing import Any

import numpy as np
import torch

from seq2seq.config.schema import Config
from seq2seq.data.batches import in_order
from seq2seq.data.prepare import Prepared
from seq2seq.evaluate.scores import bleu
from seq2seq.model.translation import TranslationModel
from seq2seq.support.devices import autocast
from seq2seq.support.progress import bar
from seq2seq.train.distributed import World
from seq2seq.train.loss import batch_loss
from seq2seq.translate.translator import Translator


def validate(
    model: TranslationModel, data: Prepared, config: Config, world: World, precision: torch.dtype, parts: int
) -> dict[str, Any]:
    """Scores of the model, the same on every rank, with some sample translations; leaves the model in training mode.

    For the loss, batches are as large as one of the `parts` of an update. Raises torch.OutOfMemoryError, OutOfMemory,
    before this rank waits for any other: it may validate again.
    """
    started = time.monotonic()
    model.eval()
    nll = 0.0
    batches = in_order(data.valid, max(config.data.batch_tokens // parts, int(np.max(data.valid.lengths))))
    with torch.no_grad(), bar("validating", len(data.valid), unit="pairs") as progress:
        for batch in itertools.islice(batches, world.rank, None, world.size):
            with autocast(model.device, precision):
                nll += float(batch_loss(model, batch.to(model.device), 0.0)[1])
            progress.update(batch.target_layout.batch_size)
    hypotheses = [""] * len(data.valid_text)
    # As it will be when it is loaded: on CPUs search takes two thirds of the time with weights laid out for it.
    ready = copy.deepcopy(model).place(model.device, torch.float32) if model.device.type == "cpu" else model
    mine = Translator.of(ready, data.tokenizer, config, data.longest_source).translate(
        [pair.source for pair in data.valid_text[world.rank :: world.size]]
    )
    # All sums and exchanges come last: a rank that runs out of memory before them can begin again.
    loss = world.sum([nll])[0] / float(data.valid.lengths[1].sum())
    for rank, share in enumerate(world.gather(mine)):
        hypotheses[rank :: world.size] = share
    model.train()
    samples = [
        {"source": pair.source, "hypothesis": hypothesis, "reference": pair.target}
        for pair, hypothesis in list(zip(data.valid_text, hypotheses, strict=True))[: config.trainer.samples]
    ]
    references = [pair.target for pair in data.valid_text]
    score, signature = bleu(hypotheses, references, config.data.target_language)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 50.0)),
        "bleu": score,
        "signature": signature,
        "validation_seconds": time.monotonic() - started,
        "samples": samples,
    }
