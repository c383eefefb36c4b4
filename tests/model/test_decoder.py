"""The decoder against PyTorch's nn.TransformerDecoderLayer with the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from seq2seq.config.schema import TransformerConfig
from seq2seq.model.decoder import TransformerDecoder
from seq2seq.model.decoder_layer import DecoderLayer
from seq2seq.model.embedding import Embedding
from seq2seq.model.interfaces import Memory
from seq2seq.model.positions import sinusoids
from seq2seq.ops.packing import Layout
from seq2seq.support.errors import UserError

WIDTH, HEADS, INNER, VOCABULARY = 24, 4, 40, 31
RAGGED = ([3, 1, 7, 2], [2, 5, 4, 1])
EVEN = ([4, 4, 4], [3, 3, 3])

Copy = Callable[[DecoderLayer, nn.TransformerDecoderLayer], None]
Randomise = Callable[[nn.Module], None]


def build(norm: str, layers: int, randomise: Randomise) -> TransformerDecoder:
    torch.manual_seed(1)
    config = TransformerConfig(num_layers=layers, num_heads=HEADS, d_ff=INNER, norm=norm, dropout=0.0)
    decoder = TransformerDecoder(config, Embedding(VOCABULARY, WIDTH))
    randomise(decoder)
    return decoder


def inputs(lengths: tuple[list[int], list[int]]) -> tuple[Tensor, Layout, Memory]:
    target, source = (Layout.of(side) for side in lengths)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(VOCABULARY, (target.total,), generator=generator)
    return tokens, target, Memory(torch.randn(source.total, WIDTH, generator=generator), source)


def by_pytorch(
    ours: TransformerDecoder, norm: str, copy: Copy, tokens: Tensor, layout: Layout, memory: Memory
) -> Tensor:
    embedding = ours.input.embedding.weight
    x = layout.unpack(embedding[tokens] * math.sqrt(WIDTH)) + sinusoids(layout.max_length, WIDTH)
    future = torch.ones(layout.max_length, layout.max_length, dtype=torch.bool).triu(1)
    for layer in cast("Iterable[DecoderLayer]", ours.layers):
        theirs = nn.TransformerDecoderLayer(
            WIDTH, HEADS, INNER, dropout=0.0, batch_first=True, norm_first=norm == "pre"
        )
        copy(layer, theirs)
        x = theirs(
            x,
            memory.layout.unpack(memory.rows),
            tgt_mask=future,
            tgt_key_padding_mask=~layout.mask,
            memory_key_padding_mask=~memory.layout.mask,
        )
    if norm == "pre":
        last = cast(nn.LayerNorm, ours.norm)
        x = nn.functional.layer_norm(x, (WIDTH,), last.weight, last.bias)
    return layout.pack(x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(("layers", "lengths"), [(1, RAGGED), (3, RAGGED), (2, EVEN)])
def test_outputs_are_pytorchs(
    copy_decoder_layer: Copy,
    randomise: Randomise,
    layers: int,
    lengths: tuple[list[int], list[int]],
    norm: str,
    training: bool,
) -> None:
    ours = build(norm, layers, randomise)
    tokens, layout, memory = inputs(lengths)
    with torch.set_grad_enabled(training):
        out = ours(tokens, layout, memory)
    expected = by_pytorch(ours, norm, copy_decoder_layer, tokens, layout, memory)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_gradients_are_pytorchs(copy_decoder_layer: Copy, randomise: Randomise, norm: str) -> None:
    ours = build(norm, 2, randomise)
    tokens, layout, memory = inputs(RAGGED)
    upstream = torch.randn(layout.total, WIDTH, generator=torch.Generator().manual_seed(3))
    wanted = (ours.input.embedding.weight, memory.rows.requires_grad_())
    own = torch.autograd.grad(ours(tokens, layout, memory), wanted, upstream)
    expected = by_pytorch(ours, norm, copy_decoder_layer, tokens, layout, memory)
    theirs = torch.autograd.grad(expected, wanted, upstream)
    for one, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("layers", "default"), [(1, 1), (3, 3), (5, 5), (6, 5)])
def test_attention_is_that_of_one_layer_and_changes_nothing(randomise: Randomise, layers: int, default: int) -> None:
    ours = build("post", layers, randomise).eval()
    tokens, layout, memory = inputs(RAGGED)
    asked: list[Any] = []
    for layer in cast("Iterable[DecoderLayer]", ours.layers):
        layer.cross_attention.register_forward_pre_hook(lambda _, arguments: asked.append(arguments))
    expected = ours(tokens, layout, memory)
    found = {}
    for number, arguments in enumerate(asked[:layers], 1):
        rows, found[number] = ours.with_attention(tokens, layout, memory, number)
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)
        layer = cast(DecoderLayer, ours.layers[number - 1])
        _, heads = layer.cross_attention.weights(*arguments)
        for own, of_heads, source, target in zip(found[number], heads, *RAGGED[::-1], strict=True):
            assert own.shape == (target, source)
            torch.testing.assert_close(own, sum(of_heads) / HEADS, atol=1e-5, rtol=0)
    assert len(found) == layers
    for own, of_default in zip(ours.with_attention(tokens, layout, memory, None)[1], found[default], strict=True):
        assert torch.equal(own, of_default)
    for layer_number in (0, layers + 1):
        with pytest.raises(UserError, match=f"attention of layer {layer_number}: the decoder has layers 1 to {layers}"):
            ours.with_attention(tokens, layout, memory, layer_number)


def test_attention_is_in_float32_also_where_rows_are_not(randomise: Randomise) -> None:
    ours = build("post", 2, randomise).bfloat16().eval()
    tokens, layout, memory = inputs(RAGGED)
    rows, found = ours.with_attention(tokens, layout, Memory(memory.rows.bfloat16(), memory.layout), None)
    assert rows.dtype == torch.bfloat16
    assert [own.dtype for own in found] == [torch.float32] * layout.batch_size
