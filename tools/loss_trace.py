"""The losses of the first updates of a training, on the fast path and on the plain one, side by side.

    python tools/loss_trace.py [--steps 200] [--output FILE] +recipe=NAME [key=value ...]

Both train the same model on the same batches with the same dropout masks. The plain path has textbook attention,
sentence by sentence, with a PyTorch matrix product for each projection; PyTorch's cross entropy of all logits at once;
dropout, then the sum; everything in float32. Prints JSON to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn

from seq2seq.config.compose import compose
from seq2seq.config.schema import Config
from seq2seq.data.batches import Batch, Sampler
from seq2seq.data.prepare import Prepared, prepare
from seq2seq.model.attention import MultiHeadAttention
from seq2seq.model.translation import build_model
from seq2seq.ops import dropout, native
from seq2seq.ops.attention import attention_reference
from seq2seq.ops.gpu import supports_triton
from seq2seq.ops.linear_cross_entropy import linear_cross_entropy_reference
from seq2seq.support.devices import autocast, choose_device, choose_precision
from seq2seq.train.loss import batch_loss
from seq2seq.train.optimizer import build_optimizer, optimizer_step
from seq2seq.train.schedule import learning_rate
from tools.origin import give_out, origin


@contextlib.contextmanager
def plain_path() -> Iterator[None]:
    """A context in which training uses the reference implementations of the fast operations."""

    def attention(*arguments: Any, **settings: Any) -> Tensor:
        return attention_reference(*arguments, **settings)[0]

    def residual_norm(x: Tensor, y: Tensor, norm: nn.LayerNorm, p: float) -> Tensor:
        if not (native.supports(x) or supports_triton(x.device)):
            return cast(Tensor, norm(x + dropout.dropout(y, p)))
        # The dropout mask of the fast path: what it makes of ones, added to zeros.
        seed, ones = torch.randint(1 << 31, (1,), device=x.device), torch.ones_like(y)
        with torch.no_grad():
            _, mask = torch.ops.seq2seq.residual_norm(ones - ones, ones, norm.weight, norm.bias, seed, p, norm.eps)
        return cast(Tensor, norm(x + y * mask))

    def projected(self: MultiHeadAttention, x_ND: Tensor, memory_MD: Tensor) -> tuple[Tensor, Tensor]:
        return self.query(x_ND), self.key_value(memory_MD)

    with (
        mock.patch("seq2seq.ops.attention.attention", attention),
        mock.patch("seq2seq.ops.attention.prefers_sentences", lambda *_: False),
        mock.patch("seq2seq.ops.attention.prefers_short", lambda *_: False),
        mock.patch.object(MultiHeadAttention, "_projected", projected),
        mock.patch.object(native, "has_fast_large_matmul", lambda _: False),
        mock.patch("seq2seq.train.loss.linear_cross_entropy", linear_cross_entropy_reference),
        mock.patch("seq2seq.model.layers.residual_norm", residual_norm),
        mock.patch.object(dropout, "add_dropout", lambda x, y, p: x + dropout.dropout(y, p)),
    ):
        yield


def trace(config: Config, data: Prepared, steps: int, precision: torch.dtype) -> list[float]:
    """The mean label-smoothed loss, in nats per token, of each of the first updates."""
    device = choose_device(config.trainer.device)
    model = build_model(config.model, data.tokenizer.vocab_size, config.seed).to(device).train()
    optimizer = build_optimizer(model, config.optimizer, precision)
    sampler = Sampler(data.train, config.data.batch_tokens, config.seed)
    updates = (pairs for epoch in range(steps) for pairs in sampler.epoch(epoch))
    losses = []
    for step, pairs in zip(range(1, steps + 1), updates, strict=False):
        batch = Batch.of(data.train, pairs).to(device)
        torch.manual_seed(step)
        with autocast(device, precision):
            loss, _ = batch_loss(model, batch, config.trainer.label_smoothing)
        mean = loss / batch.target_layout.total
        mean.backward()
        rate = learning_rate(step, config.schedule, config.model.d_model, config.trainer.max_steps)
        optimizer_step(optimizer, rate, skip=~mean.isfinite())
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(mean.detach()))
    return losses


def compared(config: Config, data: Prepared, steps: int, precision: torch.dtype) -> dict[str, Any]:
    """Both traces, and the largest and the last relative difference between them."""
    fast = trace(config, data, steps, precision)
    with plain_path():
        plain = trace(config, data, steps, torch.float32)
    apart = [abs(one - other) / other for one, other in zip(fast, plain, strict=True)]
    return {"largest": max(apart), "last": apart[-1], "fast": fast, "plain": plain}


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--output", type=Path)
    arguments, overrides = options.parse_known_args()
    config = compose(overrides)
    data = prepare(config)
    precision = choose_precision(config.trainer.precision, choose_device(config.trainer.device))
    result = {
        **origin("torch"),
        "precision": str(precision).removeprefix("torch."),
        **compared(config, data, arguments.steps, precision),
    }
    give_out(result, arguments.output)


if __name__ == "__main__":
    main()
