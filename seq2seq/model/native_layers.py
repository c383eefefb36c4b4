"""Layers of a Transformer in translation on a processor: an encoder, or a step of a decoder, in one call of C++.

A processor computes a step in less time than Python needs to ask for its parts, and what lies between them stays in its
caches. The plain references are `encoder.EncoderLayer` and `decoder_layer.DecoderLayer.step`.

Shapes: N packed rows of the source; others as in `row_cache`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from seq2seq.ops import native
from seq2seq.ops.dropout import Dropout
from seq2seq.ops.packing import Layout
from seq2seq.ops.panel_linear import PanelLinear
from seq2seq.ops.row_attention import lists_of_sentences, suits_rows


class NativeLayers:
    """Layers as C++ reads them: of each the linear layers and the norms, in the order in which its module has them."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        linears = [[part for part in _parts(layer) if isinstance(part, PanelLinear)] for layer in layers]
        norms = [[part for part in _parts(layer) if isinstance(part, nn.LayerNorm)] for layer in layers]
        self._norms = [[x.detach().float() for norm in of_one for x in norm.parameters()] for of_one in norms]
        self._structs = torch.tensor(
            [
                [number for linear in of_one for number in linear.numbers] + [x.data_ptr() for x in own_norms]
                for of_one, own_norms in zip(linears, self._norms, strict=True)
            ]
        )
        heads = layers[0].self_attention.num_heads
        keys, values = (width // heads for width in layers[0].self_attention.widths)
        self._shape = heads, keys, values, int(layers[0].feed_forward_residual.normalise_first), len(layers)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy has layers of its own, at other addresses.
        return type(self), (self.layers,)

    @classmethod
    def of(cls, layers: Iterable[nn.Module]) -> Self | None:
        """None where these layers are not laid out for it, or have another norm."""
        for part in (part for layer in layers for part in _parts(layer)):
            usual = part.eps == 1e-5 if isinstance(part, nn.LayerNorm) else isinstance(part, PanelLinear | Dropout)
            if not usual:
                return None
        return cls(list(layers))


def _parts(layer: nn.Module) -> list[nn.Module]:
    return [part for block in layer.children() for part in block.children()]


class NativeEncoder(NativeLayers):
    """The layers of an encoder."""

    def takes(self, x_ND: Tensor, layout: Layout) -> bool:
        """Whether this is the way for these packed sentences."""
        return suits_rows(x_ND, layout)

    def __call__(self, x_ND: Tensor, layout: Layout) -> Tensor:
        """What the layers make of packed rows, in their place: [N, D]."""
        lists_SL = lists_of_sentences(layout.lengths)
        sentence_N = torch.arange(layout.batch_size, dtype=torch.int32).repeat_interleave(layout.lengths)
        native.call(
            "encoder_layers", x_ND, self._structs, lists_SL, sentence_N, lists_SL.shape[1], *self._shape, *x_ND.shape
        )
        return x_ND


class NativeDecoder(NativeLayers):
    """The layers of a decoder, for steps of search."""

    def __call__(
        self,
        x_SKD: Tensor,
        targets: Tensor,
        sources: Tensor,
        filled: int,
        past_SKT: Tensor,
        source_BL: Tensor,
        sentence_R: Tensor,
    ) -> Tensor:
        """What the layers make of these rows, in their place: [S, K, D].

        `targets` and `sources` are `addresses` of the keys and values of each layer [N, E]; to those of the target the
        step adds its own, from row `filled` on.
        """
        native.call(
            "decoder_step",
            *(x_SKD, self._structs, targets, sources),
            *(past_SKT, past_SKT.shape[2], source_BL, sentence_R, source_BL.shape[1]),
            *self._shape,
            *(x_SKD.shape[:2].numel(), x_SKD.shape[2], filled),
        )
        return x_SKD


def addresses(tensors: Iterable[Tensor]) -> Tensor:
    """Where in memory these tensors begin, for C++ to read."""
    return torch.tensor([x.data_ptr() for x in tensors])
