"""Transformer translation on CPUs: all layers of the encoder, or a step of the decoder, in one call of C++.

A CPU computes a step in less time than Python needs to dispatch its operations, and intermediate results stay in its
caches. The plain references are `encoder.EncoderLayer`, and `decoder.TransformerDecoder` itself; `if_alike` compares
the two whenever a model is made ready.

Shapes: N packed rows of the source; others as in `row_cache`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from seq2seq.model.attention import MultiHeadAttention
from seq2seq.model.layers import FeedForward, LayerNorm, Residual
from seq2seq.model.positions import PositionedEmbedding
from seq2seq.ops import native
from seq2seq.ops.dropout import Dropout
from seq2seq.ops.linear import is_watched
from seq2seq.ops.packing import Layout
from seq2seq.ops.panel_linear import PanelLinear
from seq2seq.support.progress import say

BLOCKS, PARTS = {MultiHeadAttention, FeedForward, Residual}, {PanelLinear, Dropout, LayerNorm}
"""What C++ computes; a class derived from one of these is computed as it says itself."""
TOLERANCE = 1e-3
"""How far results of C++ may be from those of the layers, relative to their norm; measured: 1e-6 (docs/log.md)."""
Part = TypeVar("Part", bound=nn.Module)
Layers = TypeVar("Layers", bound="NativeLayers")


class NativeLayers:
    """Layers as C++ reads them: for each, its linear layers, then its norms, both in the order of its module.

    `counts` are the numbers of both in a layer.
    """

    counts: ClassVar[tuple[int, int]]

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        linears = [_parts(layer, PanelLinear) for layer in layers]
        norms = [_parts(layer, LayerNorm) for layer in layers]
        self.is_exact = all(linear.is_float32 for of_one in linears for linear in of_one)
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
    def of(cls, kind: type[nn.Module], layers: Iterable[nn.Module], *others: Any) -> Self | None:
        """These layers for C++; None where one is of another kind, has other parts or weights that are not laid out."""
        layers = list(layers)
        residuals = [block for layer in layers for block in layer.children() if type(block) is Residual]
        if len({residual.normalise_first for residual in residuals}) > 1:
            return None
        for layer in layers:
            parts, norms = _parts(layer, nn.Module), _parts(layer, nn.LayerNorm)
            usual = type(layer) is kind and {*map(type, layer.children())} <= BLOCKS and {*map(type, parts)} <= PARTS
            counts = len(_parts(layer, PanelLinear)), len(norms)
            unwatched = not any(map(is_watched, layer.modules()))
            if not (usual and unwatched and counts == cls.counts and all(map(_is_usual, norms))):
                return None
        return cls(layers, *others)


def _is_usual(norm: nn.Module) -> bool:
    """Whether C++ computes the same: it has this epsilon, and reads a weight and a bias."""
    return type(norm) is LayerNorm and norm.eps == 1e-5 and len(list(norm.parameters())) == 2


def _parts(layer: nn.Module, kind: type[Part]) -> list[Part]:
    return [part for block in layer.children() for part in block.children() if isinstance(part, kind)]


def if_alike(native: Layers | None, compute: Callable[[Layers | None], Tensor]) -> Layers | None:
    """`native`, unless what `compute` returns with it is not what it returns without, which one line then tells.

    With rounded weights it is not compared: of a deep model both ways may be far apart by rounding alone.
    """
    if native is None or not native.is_exact:
        return native
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        found, wanted = (compute(one) for one in (native, None))
    if (found - wanted).norm() <= TOLERANCE * wanted.norm() or wanted.isnan().any():
        return native
    say(f"{type(native).__name__}: not what the layers in Python compute, which are used instead, more slowly")
    return None


class NativeEncoder(NativeLayers):
    """The layers of an encoder."""

    counts = (5, 2)

    def __call__(self, x_ND: Tensor, layout: Layout) -> Tensor:
        """The layers applied to packed rows, in place: [N, D]."""
        seen = layout.lists, layout.sentences, layout.max_length
        native.call("encoder_layers", x_ND, self._structs, *seen, *self._shape, *x_ND.shape)
        return x_ND


class NativeDecoder(NativeLayers):
    """A decoder, for search steps."""

    counts = (8, 3)

    def __init__(self, layers: list[Any], embedding: PositionedEmbedding, norm: nn.Module) -> None:
        super().__init__(layers)
        self.embedding, self.norm = embedding, norm
        self._final_norm = [x.detach().float() for x in norm.parameters()]
        self._norm_addresses = addresses(self._final_norm) if self._final_norm else torch.zeros(2, dtype=torch.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.layers, self.embedding, self.norm)

    @classmethod
    def of(
        cls, kind: type[nn.Module], layers: Iterable[nn.Module], embedding: nn.Module, norm: nn.Module
    ) -> Self | None:
        """See `NativeLayers.of`; the embedding and the final norm, too, must be those that C++ computes."""
        usual = type(embedding) is PositionedEmbedding and (type(norm) is nn.Identity or _is_usual(norm))
        usual = usual and not any(map(is_watched, (*embedding.modules(), norm)))
        return super().of(kind, layers, embedding, norm) if usual else None

    def __call__(
        self,
        tokens_SK: Tensor,
        parents_SK: Tensor,
        past_SKT: Tensor,
        filled: int,
        targets: Tensor,
        sources: Tensor,
        source_BL: Tensor,
        sentence_R: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The hidden rows of these tokens [S, K, D], and their lists of past rows [S, K, T + 1], own row last.

        `targets` and `sources` are `addresses` of the keys and values of each layer [N, E]; the step appends its own to
        those of the target, from row `filled` on.
        """
        (slots, width), (before, length) = tokens_SK.shape, past_SKT.shape[1:]
        weight_VD, table_PD = self.embedding.tables(length + 1)
        vocabulary, d_model = weight_VD.shape
        x_SKD, grown_SKT = weight_VD.new_empty(slots, width, d_model), past_SKT.new_empty(slots, width, length + 1)
        native.call(
            "decoder_step",
            *(
                x_SKD,
                self._structs,
                self._norm_addresses,
                weight_VD,
                table_PD,
                tokens_SK.contiguous(),
                parents_SK.contiguous(),
            ),
            *(past_SKT, grown_SKT, targets, sources, source_BL, sentence_R),
            *(vocabulary, table_PD.shape[0], d_model, slots, before, width, length, filled, source_BL.shape[1]),
            *self._shape,
        )
        return x_SKD, grown_SKT


def addresses(tensors: Iterable[Tensor]) -> Tensor:
    """The memory addresses of these tensors, for C++ to read."""
    return torch.tensor([x.data_ptr() for x in tensors])
