"""Our Transformer's weights as a CTranslate2 model, so that both can be timed with the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ctranslate2 import specs
from torch import Tensor, nn

from seq2seq.config.schema import ModelConfig
from seq2seq.data.tokenizer import BOS, EOS, PAD, UNK
from seq2seq.model.positions import sinusoids
from seq2seq.model.translation import TranslationModel
from seq2seq.support.errors import UserError
from tools.contestants import LONGEST

SPECIAL = {PAD: "<pad>", UNK: "<unk>", BOS: "<s>", EOS: "</s>"}
NAMED = {name: token for token, name in SPECIAL.items()}


def piece(token: int) -> str:
    """The name by which CTranslate2 knows a token of ours."""
    return SPECIAL.get(token, str(token))


def token(name: str) -> int:
    """The token that a name stands for."""
    return NAMED[name] if name in NAMED else int(name)


def write_ctranslate2_model(model: TranslationModel, config: ModelConfig, directory: Path) -> None:
    """Write a model of ours (Transformer on both sides, of one norm, sinusoids, float32) as CTranslate2 reads it."""
    if config.encoder.norm != config.decoder.norm:
        raise UserError("CTranslate2 takes one norm for both sides; take a model of one model.norm")
    sides, first = (config.encoder.num_layers, config.decoder.num_layers), config.encoder.norm == "pre"
    spec = specs.TransformerSpec.from_config(
        sides, config.encoder.num_heads, pre_norm=first, activation=specs.Activation.RELU
    )
    encoder, decoder = cast(Any, model.encoder), cast(Any, model.decoder)
    table = sinusoids(LONGEST, config.d_model).numpy()
    spec.encoder.embeddings[0].weight = _array(encoder.input.embedding.weight)
    spec.decoder.embeddings.weight = _array(decoder.input.embedding.weight)
    spec.encoder.position_encodings.encodings = spec.decoder.position_encodings.encodings = table
    spec.decoder.projection.weight = _array(model.output_weight)
    for ours, theirs in zip(encoder.layers, spec.encoder.layer, strict=True):
        _self_attention(ours.self_attention, ours.attention_residual.norm, theirs.self_attention)
        _feed_forward(ours, theirs.ffn)
    for ours, theirs in zip(decoder.layers, spec.decoder.layer, strict=True):
        _self_attention(ours.self_attention, ours.self_residual.norm, theirs.self_attention)
        cross = ours.cross_attention
        for linear, into in zip((cross.query, cross.key_value, cross.output), theirs.attention.linear, strict=True):
            _linear(linear, into)
        _norm(ours.cross_residual.norm, theirs.attention.layer_norm)
        _feed_forward(ours, theirs.ffn)
    if first:
        _norm(encoder.norm, spec.encoder.layer_norm)
        _norm(decoder.norm, spec.decoder.layer_norm)
    names = [piece(index) for index in range(model.vocab_size)]
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    spec.validate()
    directory.mkdir(parents=True, exist_ok=True)
    spec.save(str(directory))


def _self_attention(ours: Any, norm: nn.LayerNorm, theirs: Any) -> None:
    theirs.linear[0].weight = _array(torch.cat((ours.query.weight, ours.key_value.weight)))
    theirs.linear[0].bias = _array(torch.cat((ours.query.bias, ours.key_value.bias)))
    _linear(ours.output, theirs.linear[1])
    _norm(norm, theirs.layer_norm)


def _feed_forward(ours: Any, theirs: Any) -> None:
    _linear(ours.feed_forward.inner, theirs.linear_0)
    _linear(ours.feed_forward.outer, theirs.linear_1)
    _norm(ours.feed_forward_residual.norm, theirs.layer_norm)


def _linear(ours: nn.Linear, theirs: Any) -> None:
    theirs.weight, theirs.bias = _array(ours.weight), _array(ours.bias)


def _norm(ours: nn.LayerNorm, theirs: Any) -> None:
    theirs.gamma, theirs.beta = _array(ours.weight), _array(ours.bias)


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().float().numpy()
