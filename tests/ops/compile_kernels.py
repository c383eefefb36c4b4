"""Compiles our Triton kernels for a GPU on a machine that need not have one.

python -m tests.ops.compile_kernels CAPABILITY      such as 90 (Hopper)

Each launch becomes a compilation; a line for each gives the kernel's name and its bytes of shared memory.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from seq2seq.model.recorded_cache import grow_on_gpu
from seq2seq.ops import feed_forward, native, residual_norm, short_attention, topk
from seq2seq.ops.linear_cross_entropy import _to_gradients_by_kernel
from seq2seq.ops.residual_norm import add_norm_on_gpu
from seq2seq.ops.row_attention import row_attention_on_gpu

DTYPE = torch.bfloat16
launch: Any = JITFunction.run


class Driver:
    """What Triton asks of a driver in order to compile."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def compiled(kernel: Any, *arguments: Any, warmup: bool, **settings: Any) -> None:  # noqa: ARG001
    found = launch(kernel, *arguments, warmup=True, **settings)
    print(kernel.__name__, found.metadata.shared, flush=True)


def main(*, large: bool) -> None:
    """Launch every kernel with the sizes of the paper's base model, and wider heads on a `large` GPU."""
    rows, d_model, vocabulary = 300, 512, 37_000
    x, lengths = torch.zeros(rows, d_model, dtype=DTYPE), torch.tensor([0, 100, rows], dtype=torch.int32)
    seed, weight = torch.zeros(1, dtype=torch.int64), torch.zeros(d_model)
    longest = (short_attention.LONGEST, short_attention.LONGEST)
    # Heads of 128 columns, too, where a GPU can take them.
    for heads in (8, 4) if large else (8,):
        for joint, most, causal in (([3], (16, 16), True), ([1, 2], (32, 64), False), ([3], longest, False)):
            matrices = [torch.zeros(rows, width * d_model, dtype=DTYPE) for width in joint]
            short_attention._forward(matrices, lengths, lengths, *most, heads, causal)
            short_attention._backward(matrices, x, lengths, lengths, *most, heads, causal)
    residual_norm._forward(x, x, weight, weight, seed, 0.1, 1e-5)
    residual_norm._backward(x, x, weight, seed, 0.1, 1e-5)
    logits = torch.zeros(rows, vocabulary, dtype=DTYPE)
    _to_gradients_by_kernel(logits, torch.zeros(rows, dtype=torch.int64), 0.1)
    feed_forward._rectified_product(
        x, torch.zeros(d_model, 4 * d_model, dtype=DTYPE), torch.zeros(rows, 4 * d_model, dtype=DTYPE)
    )
    # Search with a beam of four.
    scores = torch.zeros(rows // 4, 4)
    topk.negative_log_sum_exp_on_gpu(logits.view(-1, 4, vocabulary), scores)
    topk.best_continuations_on_gpu(logits.view(-1, 4, vocabulary), scores, 8)
    lists = torch.zeros(rows, 64, dtype=torch.int32)
    row_attention_on_gpu(x, torch.zeros(900, 2 * d_model, dtype=DTYPE), lists, lists[:, 0].contiguous(), 8)
    add_norm_on_gpu(x, x, torch.nn.LayerNorm(d_model, dtype=DTYPE))
    arena = SimpleNamespace(
        targets=[torch.zeros(rows, 1)],
        past_RT=lists,
        grown_RT=lists,
        places_R=torch.zeros(rows, dtype=torch.int64),
        sentence_R=lengths,
    )
    grow_on_gpu(cast(Any, arena), torch.zeros(75, 4, dtype=torch.int64), lengths, 4, 0, 1)


if __name__ == "__main__":
    JITFunction.run = compiled
    capability = int(sys.argv[1])
    driver.set_active(Driver(capability))
    with mock.patch.object(native, "supports", lambda _: False):
        main(large=capability in (80, 90))
