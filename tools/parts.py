"""Where training time goes, part by part: what PyTorch's profiler saw, grouped by the names of operations."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from seq2seq.ops import native

PARTS = {
    "loss": "log_softmax|nll_loss|logits_to_gradients|cross_?entropy",
    "attention": "attention|attend|of_sentences|flash|fmha|softmax|bmm",
    "optimizer": "adam|optimizer|vector_norm|multi_tensor|foreach",
    "products": "::mm$|addmm|product|linearfunction|gemm|nvjet|cutlass|xmma",
    "norms, dropout, sums": (
        "norm|dropout|bernoulli|rand|::(add|sub|mul|div|sum)_?$|threshold|clamp|relu|elementwise|reduce"
    ),
    "embeddings": "embedding|index_?select|gather_kernel|grad_weight|sum_and_scatter",
    "copies": "copy|::cat$|catarray|memcpy|memset|fill|clone",
}
"""Patterns for lower-case names of operations and kernels, by part; a name belongs to the first part that matches."""
OTHER, BETWEEN = "other operations", "between operations"


def part_of(name: str) -> str:
    """The part to which an operation or a kernel of this name belongs."""
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name.lower())), OTHER)


def watched(run: Callable[[], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """The answer of `run`, which holds its `seconds`, with the seconds of each part added as `parts`.

    An operation counts with its self time, in which it calls no other (on a GPU, kernels with theirs). What is left is
    Python, and waiting.
    """
    call, on_gpu = native.call, device.type == "cuda"

    def named(name: str, *arguments: Tensor | float) -> None:
        with record_function(f"native::{name}"):
            call(name, *arguments)

    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with mock.patch.object(native, "call", named), profile(activities=activities) as found:
        answer = run()
    parts = dict.fromkeys([*PARTS, OTHER], 0.0)
    for event in found.key_averages():
        is_kernel = event.device_type.name == "CUDA"
        microseconds = event.self_device_time_total if is_kernel else event.self_cpu_time_total
        if is_kernel == on_gpu:
            parts[part_of(event.key)] += microseconds / 1e6
    return {**answer, "parts": {**parts, BETWEEN: max(0.0, answer["seconds"] - sum(parts.values()))}}
