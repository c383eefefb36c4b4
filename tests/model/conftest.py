"""What several tests of the model need: weights copied into PyTorch's layers, and tiny models of every pairing."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from seq2seq.model.attention import MultiHeadAttention
from seq2seq.model.decoder_layer import DecoderLayer
from seq2seq.model.encoder import EncoderLayer


def _copy(source: Tensor | None, into: Tensor | None) -> None:
    assert source is not None
    assert into is not None
    assert source.shape == into.shape
    with torch.no_grad():
        into.copy_(source)


def _copy_module(source: nn.Module, into: nn.Module) -> None:
    _copy(cast(Tensor, source.weight), cast(Tensor, into.weight))
    _copy(cast(Tensor, source.bias), cast(Tensor, into.bias))


def _copy_attention(source: MultiHeadAttention, into: nn.MultiheadAttention) -> None:
    _copy(torch.cat((source.query.weight, source.key_value.weight)), into.in_proj_weight)
    _copy(torch.cat((source.query.bias, source.key_value.bias)), into.in_proj_bias)
    _copy_module(source.output, into.out_proj)


def _copy_encoder_layer(source: EncoderLayer, into: nn.TransformerEncoderLayer) -> None:
    _copy_attention(source.self_attention, into.self_attn)
    _copy_module(source.feed_forward.inner, into.linear1)
    _copy_module(source.feed_forward.outer, into.linear2)
    _copy_module(source.attention_residual.norm, into.norm1)
    _copy_module(source.feed_forward_residual.norm, into.norm2)


def _copy_decoder_layer(source: DecoderLayer, into: nn.TransformerDecoderLayer) -> None:
    _copy_attention(source.self_attention, into.self_attn)
    _copy_attention(source.cross_attention, into.multihead_attn)
    _copy_module(source.feed_forward.inner, into.linear1)
    _copy_module(source.feed_forward.outer, into.linear2)
    _copy_module(source.self_residual.norm, into.norm1)
    _copy_module(source.cross_residual.norm, into.norm2)
    _copy_module(source.feed_forward_residual.norm, into.norm3)


@pytest.fixture
def copy_attention() -> Callable[[MultiHeadAttention, nn.MultiheadAttention], None]:
    """Copies our weights into PyTorch's multi-head attention."""
    return _copy_attention


@pytest.fixture
def copy_encoder_layer() -> Callable[[EncoderLayer, nn.TransformerEncoderLayer], None]:
    """Copies our weights into PyTorch's encoder layer."""
    return _copy_encoder_layer


@pytest.fixture
def copy_decoder_layer() -> Callable[[DecoderLayer, nn.TransformerDecoderLayer], None]:
    """Copies our weights into PyTorch's decoder layer."""
    return _copy_decoder_layer


@pytest.fixture
def randomise() -> Callable[[nn.Module], None]:
    """Draws all weights anew: biases and norms that are left at 0 and 1 would hide that they are not used."""

    def draw(module: nn.Module) -> None:
        torch.manual_seed(17)
        for name, parameter in module.named_parameters():
            if "embedding" not in name:
                nn.init.normal_(parameter, std=0.3)

    return draw
