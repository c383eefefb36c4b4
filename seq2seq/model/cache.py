"""The key-value cache of a Transformer decoder in search.

Shapes: S slots, K hypotheses of each, R = S·K, H heads, T steps so far, L source length, E width of a head (d_k in
keys, d_v in values).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of `x` by `index`; `x` itself where the index is the identity."""
    if index.shape[0] == x.shape[0] and torch.equal(index, torch.arange(x.shape[0], device=x.device)):
        return x
    return x.index_select(0, index)


@dataclass
class LayerCache:
    """Keys and values of one layer: of the source, once per slot [S, H, L, E]; of the target so far [R, H, T, E]."""

    source_keys: Tensor
    source_values: Tensor
    keys: Tensor | None = None
    values: Tensor | None = None

    def append(self, keys_RHE: Tensor, values_RHE: Tensor) -> tuple[Tensor, Tensor]:
        """Add one step and return all steps, [R, H, T, E] each."""
        new_keys, new_values = keys_RHE.unsqueeze(2), values_RHE.unsqueeze(2)
        self.keys = new_keys if self.keys is None else torch.cat((self.keys, new_keys), 2)
        self.values = new_values if self.values is None else torch.cat((self.values, new_values), 2)
        return self.keys, self.values


@dataclass
class DecoderCache:
    """The caches of all layers, the mask over the source [S, L] (None: no pads), K and T."""

    layers: list[LayerCache]
    source_mask: Tensor | None
    width: int = 1
    length: int = 0

    def reorder(self, parents_SK: Tensor) -> None:
        """Keep for each hypothesis the steps of its parent, and for each slot the source of its parents' slot."""
        slots = parents_SK[:, 0] // self.width
        rows = parents_SK.flatten()
        for layer in self.layers:
            layer.source_keys, layer.source_values = take(layer.source_keys, slots), take(layer.source_values, slots)
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = take(layer.keys, rows), take(layer.values, rows)
        if self.source_mask is not None:
            self.source_mask = take(self.source_mask, slots)
        self.width = parents_SK.shape[1]
