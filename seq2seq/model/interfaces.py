"""The interfaces of encoders and decoders. Any encoder goes with any decoder: all they share is packed rows.

Shapes: N packed source tokens, M packed target tokens, D d_model; S slots, K hypotheses of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from seq2seq.ops.packing import Layout


@dataclass(frozen=True)
class Memory:
    """An encoder's output for the source sentences: rows [N, D] and where each sentence lies in them."""

    rows: Tensor
    layout: Layout


class Encoder(Protocol):
    """Packed source tokens [N] to a memory; `can_be_batch_invariant`: see `Decoder`."""

    can_be_batch_invariant: bool

    def __call__(self, tokens: Tensor, layout: Layout) -> Memory: ...

    def supports_empty_sentences(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether some sentences may have no tokens, on either side, in training on this device in this dtype."""

    def finish(self) -> None:
        """Called when the weights are final, to prepare for translation."""


class Decoder(Protocol):
    """Target tokens to hidden rows, whole sentences at once (`__call__`) or one step at a time (`start`, `step`).

    The state between steps is private to the decoder. `step` extends hypothesis `parents[s, k]` of slot s (its index in
    the previous step) with `tokens[s, k]`; K may change from step to step. `keep` drops slots. `can_be_batch_invariant`
    says that within `ops.batch_invariance.batch_invariant` the results for a sentence do not depend, to the last bit,
    on the rest of its batch.
    """

    can_be_batch_invariant: bool

    def __call__(self, tokens: Tensor, layout: Layout, memory: Memory) -> Tensor:
        """Hidden rows [M, D] for target tokens [M], each computed from its token and those before it."""

    def with_attention(
        self, tokens: Tensor, layout: Layout, memory: Memory, layer: int | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The same rows, and the attention of each sentence's T tokens (bos first) to its source: [T, L] in float32.

        It is the mean over the heads of one layer (counted from 1; None: the one best suited for alignments). Raises
        UserError where there is no such layer.
        """

    def supports_empty_sentences(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether some sentences may have no tokens, on either side, in training on this device in this dtype."""

    def finish(self) -> None:
        """Called when the weights are final, to prepare for search."""

    def start(self, memory: Memory) -> Any:
        """The state before the first step, with one hypothesis per sentence."""

    def step(self, state: Any, tokens: Tensor, parents: Tensor) -> Tensor:
        """Advance `state` by one token per hypothesis: hidden rows [S, K, D] for tokens [S, K]."""

    def keep(self, state: Any, slots: Tensor) -> None:
        """Keep only these slots, given by their previous numbers [S], in this order."""
