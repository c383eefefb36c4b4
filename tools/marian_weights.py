"""Our Transformer's weights in Hugging Face's Marian, so that both can be timed with the same ones."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from seq2seq.config.schema import ModelConfig
from seq2seq.model.positions import sinusoids
from seq2seq.model.translation import TranslationModel
from seq2seq.support.errors import UserError
from tools.contestants import LONGEST, marian_model


@torch.no_grad()
def as_marian(model: TranslationModel, config: ModelConfig) -> Any:
    """A model of ours (Transformer on both sides, post-norm, sinusoids, all embeddings tied, float32) as Marian."""
    if "pre" in (config.encoder.norm, config.decoder.norm):
        raise UserError("Marian normalises after each sublayer; take a model of model.norm=post")
    theirs = marian_model(config, model.vocab_size, "sdpa").eval()
    theirs.model.shared.weight.copy_(model.output_weight)
    for side, own in (("encoder", model.encoder), ("decoder", model.decoder)):
        stack = getattr(theirs.model, side)
        stack.embed_positions.weight.copy_(sinusoids(LONGEST, config.d_model))
        for layer, into in zip(cast(Any, own).layers, stack.layers, strict=True):
            _attention(layer.self_attention, into.self_attn)
            _copy(layer.feed_forward.inner, into.fc1)
            _copy(layer.feed_forward.outer, into.fc2)
            _copy(layer.feed_forward_residual.norm, into.final_layer_norm)
            if side == "encoder":
                _copy(layer.attention_residual.norm, into.self_attn_layer_norm)
                continue
            _copy(layer.self_residual.norm, into.self_attn_layer_norm)
            _attention(layer.cross_attention, into.encoder_attn)
            _copy(layer.cross_residual.norm, into.encoder_attn_layer_norm)
    return theirs


def _attention(ours: Any, theirs: Any) -> None:
    _copy(ours.query, theirs.q_proj)
    _copy(ours.output, theirs.out_proj)
    weights, biases = ours.key_value.weight.split(ours.widths), ours.key_value.bias.split(ours.widths)
    for linear, weight, bias in zip((theirs.k_proj, theirs.v_proj), weights, biases, strict=True):
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)


def _copy(ours: nn.Module, theirs: nn.Module) -> None:
    for name, value in ours.named_parameters():
        cast(Any, getattr(theirs, name)).copy_(value)
