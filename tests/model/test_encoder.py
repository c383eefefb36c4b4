"""The encoder against PyTorch's nn.TransformerEncoderLayer with the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from seq2seq.config.schema import TransformerConfig
from seq2seq.model.embedding import Embedding
from seq2seq.model.encoder import EncoderLayer, TransformerEncoder
from seq2seq.model.positions import sinusoids
from seq2seq.ops.packing import Layout

WIDTH, HEADS, INNER, VOCABULARY = 24, 4, 40, 31
RAGGED, EVEN = [3, 1, 7, 2], [4, 4, 4]

Copy = Callable[[EncoderLayer, nn.TransformerEncoderLayer], None]
Randomise = Callable[[nn.Module], None]


def build(norm: str, layers: int, randomise: Randomise) -> TransformerEncoder:
    torch.manual_seed(1)
    config = TransformerConfig(num_layers=layers, num_heads=HEADS, d_ff=INNER, norm=norm, dropout=0.0)
    encoder = TransformerEncoder(config, Embedding(VOCABULARY, WIDTH))
    randomise(encoder)
    return encoder


def by_pytorch(ours: TransformerEncoder, norm: str, copy: Copy, tokens: Tensor, layout: Layout) -> Tensor:
    embedding = ours.input.embedding.weight
    x = layout.unpack(embedding[tokens] * math.sqrt(WIDTH)) + sinusoids(layout.max_length, WIDTH)
    for layer in cast("Iterable[EncoderLayer]", ours.layers):
        theirs = nn.TransformerEncoderLayer(
            WIDTH, HEADS, INNER, dropout=0.0, batch_first=True, norm_first=norm == "pre"
        )
        copy(layer, theirs)
        x = theirs(x, src_key_padding_mask=~layout.mask)
    if norm == "pre":
        last = cast(nn.LayerNorm, ours.norm)
        x = nn.functional.layer_norm(x, (WIDTH,), last.weight, last.bias)
    return layout.pack(x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(("layers", "lengths"), [(1, RAGGED), (3, RAGGED), (2, EVEN)])
def test_outputs_are_pytorchs(
    copy_encoder_layer: Copy, randomise: Randomise, layers: int, lengths: list[int], norm: str, training: bool
) -> None:
    ours, layout = build(norm, layers, randomise), Layout.of(lengths)
    tokens = torch.randint(VOCABULARY, (layout.total,), generator=torch.Generator().manual_seed(2))
    with torch.set_grad_enabled(training):
        out = ours(tokens, layout)
    expected = by_pytorch(ours, norm, copy_encoder_layer, tokens, layout)
    torch.testing.assert_close(out.rows, expected, atol=1e-5, rtol=0)
    assert out.layout is layout


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_gradients_are_pytorchs(copy_encoder_layer: Copy, randomise: Randomise, norm: str) -> None:
    ours, layout = build(norm, 2, randomise), Layout.of(RAGGED)
    tokens = torch.randint(VOCABULARY, (layout.total,), generator=torch.Generator().manual_seed(2))
    upstream = torch.randn(layout.total, WIDTH, generator=torch.Generator().manual_seed(3))
    embedding = ours.input.embedding.weight
    (own,) = torch.autograd.grad(ours(tokens, layout).rows, embedding, upstream)
    expected = by_pytorch(ours, norm, copy_encoder_layer, tokens, layout)
    (theirs,) = torch.autograd.grad(expected, embedding, upstream)
    torch.testing.assert_close(own, theirs, atol=1e-4, rtol=1e-4)
