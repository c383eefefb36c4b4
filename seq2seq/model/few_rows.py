"""A step of search with few hypotheses through all layers of a Transformer decoder, in one call of C++.

A processor computes such a step in less time than Python needs to ask for its parts. The plain reference is
`decoder_layer.DecoderLayer.step`.

Shapes as in `row_cache`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from seq2seq.model.decoder_layer import DecoderLayer
from seq2seq.ops import native
from seq2seq.ops.alone import rows_are_alone
from seq2seq.ops.few_rows import FewRows

FEW = {torch.float32: 32, torch.bfloat16: 16, torch.int8: 32}
"""Hypotheses of all sentences up to which this is quicker than part by part, for the format of the weights."""


class FewRowsDecoder:
    """Layers laid out for it: all that computes in a step must be."""

    def __init__(self, layers: list[DecoderLayer]) -> None:
        self.layers = layers
        self.most = min(FEW[few.format] for layer in layers for few in _of_few(layer))
        self._norms = [[x.detach().float() for norm in _norms(layer) for x in norm.parameters()] for layer in layers]
        self._structs = torch.tensor([self._numbers(*parts) for parts in zip(layers, self._norms, strict=True)])
        """What an array of the struct `DecoderLayer` in C++ holds."""

    @staticmethod
    def _numbers(layer: DecoderLayer, norms: list[Tensor]) -> list[int]:
        return [number for few in _of_few(layer) for number in few.numbers] + [x.data_ptr() for x in norms]

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy has layers of its own, at other addresses.
        return FewRowsDecoder, (self.layers,)

    @staticmethod
    def of(layers: list[DecoderLayer]) -> FewRowsDecoder | None:
        """None where these layers are not laid out for few rows."""
        are_laid_out = all(len(_of_few(layer)) == len(_linears(layer)) for layer in layers)
        have_the_norm = all(norm.eps == 1e-5 for layer in layers for norm in _norms(layer))
        return FewRowsDecoder(layers) if are_laid_out and have_the_norm else None

    def takes(self, x_SKD: Tensor) -> bool:
        """Whether this is the way for a step of so many rows."""
        return x_SKD.shape[:2].numel() <= self.most and not rows_are_alone() and native.can_compute(x_SKD)

    def __call__(
        self,
        x_SKD: Tensor,
        targets: list[Tensor],
        sources: list[Tensor],
        filled: int,
        past_SKT: Tensor,
        source_BL: Tensor,
        sentence_R: Tensor,
    ) -> Tensor:
        """What the layers make of these rows, in their place: [S, K, D].

        `targets` and `sources` are keys and values of each layer [N, E]; those of the step go to rows from `filled`.
        """
        keys, values = self.layers[0].self_attention.widths
        heads = self.layers[0].self_attention.num_heads
        native.call(
            "decoder_step",
            *(x_SKD, self._structs, _addresses(targets), _addresses(sources), past_SKT, source_BL, sentence_R),
            *(x_SKD.shape[:2].numel(), filled, past_SKT.shape[2], source_BL.shape[1]),
            *(heads, keys // heads, values // heads),
            *(int(self.layers[0].self_residual.normalise_first), len(self.layers), x_SKD.shape[2]),
        )
        return x_SKD


def _addresses(tensors: Iterable[Tensor]) -> Tensor:
    return torch.tensor([x.data_ptr() for x in tensors])


def _linears(layer: DecoderLayer) -> list[nn.Module]:
    own, other, feed_forward = layer.self_attention, layer.cross_attention, layer.feed_forward
    own_parts, other_parts = (own.query, own.key_value, own.output), (other.query, other.output)
    return [*own_parts, *other_parts, feed_forward.inner, feed_forward.outer]


def _of_few(layer: DecoderLayer) -> list[FewRows]:
    found = (getattr(linear, "few", None) for linear in _linears(layer))
    return [few for few in found if few]


def _norms(layer: DecoderLayer) -> list[nn.LayerNorm]:
    return [layer.self_residual.norm, layer.cross_residual.norm, layer.feed_forward_residual.norm]
