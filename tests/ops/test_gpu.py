"""Attention on a GPU, by the kernel for packed rows, against the textbook formula."""

from __future__ import annotations

import random

import pytest
import torch

from seq2seq.ops.attention import attention, attention_reference, supports_packed_rows
from seq2seq.ops.packing import Layout
from seq2seq.support.devices import capability

CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the contract is tested on the processor"),
]


def test_a_gpu_that_should_have_the_packed_kernel_has_it() -> None:
    if capability(CUDA) < (8, 0):
        pytest.skip("a GPU without it")
    assert supports_packed_rows(CUDA, torch.bfloat16, 64, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [8, 64, 128])
@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
def test_forward_and_backward_are_the_reference(kind: str, width: int, dtype: torch.dtype) -> None:
    rng = random.Random(width)
    queries = [1, 300, *(rng.randint(1, 300) for _ in range(11))]
    keys = [rng.randint(1, 300) for _ in queries] if kind == "cross" else queries
    layouts = Layout.of(queries, CUDA), Layout.of(keys, CUDA)
    generator = torch.Generator(CUDA).manual_seed(1)
    q, k, v, upstream = (
        torch.randn(rows, 4, width, generator=generator, device=CUDA).to(dtype)
        for rows in (sum(queries), sum(keys), sum(keys), sum(queries))
    )
    # What a joint projection gives are views of its rows.
    q, k, v = (torch.cat((side, side), -1)[..., :width] for side in (q, k, v))
    inputs = [side.detach().requires_grad_() for side in (q, k, v)]
    exact = [side.detach().double().requires_grad_() for side in (q, k, v)]
    causal = kind == "causal"
    own = attention(inputs[0], inputs[1], inputs[2], *layouts, causal=causal)
    expected, _ = attention_reference(exact[0], exact[1], exact[2], *layouts, causal=causal)
    pairs = zip(
        (own, *torch.autograd.grad(own, inputs, upstream)),
        (expected, *torch.autograd.grad(expected, exact, upstream.double())),
        strict=True,
    )
    limit = 0.02 if dtype == torch.bfloat16 else 1e-3
    for ours, textbook in pairs:
        assert ours.dtype == dtype
        assert (ours.double() - textbook).norm() <= limit * textbook.norm()
