"""Where encoders, decoders and search meet. Any encoder goes with any decoder: they share packed rows, nothing else.

Shapes: N packed source tokens, M packed target tokens, D d_model, V vocabulary; S slots, K hypotheses of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from seq2seq.ops.packing import Layout


@dataclass(frozen=True)
class Memory:
    """What an encoder made of the source sentences: rows [N, D] and where each sentence lies in them."""

    rows: Tensor
    layout: Layout


class Encoder(Protocol):
    """Packed source tokens [N] to a memory; `can_be_batch_invariant`: see `Decoder`."""

    can_be_batch_invariant: bool

    def __call__(self, tokens: Tensor, layout: Layout) -> Memory: ...

    def takes_empty_sentences(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether in training there some sentences may have no tokens, on either side."""

    def finish(self) -> None:
        """Be told that weights will not change any more, but for translating."""


class Decoder(Protocol):
    """Target tokens to hidden rows, whole sentences at once (`__call__`) or one step at a time (`start`, `step`).

    The state between steps is the decoder's own. `step` continues hypothesis `parents[s, k]` of slot s (its place in
    the step before) with `tokens[s, k]`; K may change from step to step. `keep` lets slots go. `can_be_batch_invariant`
    tells that the bits of a sentence do not depend on its company in `ops.batch_invariance.batch_invariant`.
    """

    can_be_batch_invariant: bool

    def __call__(self, tokens: Tensor, layout: Layout, memory: Memory) -> Tensor:
        """Hidden rows [M, D] for target tokens [M], each computed from the tokens before it and itself."""

    def with_attention(
        self, tokens: Tensor, layout: Layout, memory: Memory, layer: int | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The same rows, and where each sentence's tokens (bos first, T of them) attend in its source: [T, L] in
        float32, of one layer (counted from 1; None: the one that serves alignments best), the mean of its heads.

        Raises UserError where there is no such layer.
        """

    def takes_empty_sentences(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether in training there some sentences may have no tokens, on either side."""

    def finish(self) -> None:
        """Be told that weights will not change any more, but for being searched with."""

    def start(self, memory: Memory) -> Any:
        """The state before the first step, one hypothesis a sentence."""

    def step(self, state: Any, tokens: Tensor, parents: Tensor) -> Tensor:
        """Advance `state` by one token a hypothesis: hidden rows [S, K, D] for tokens [S, K]."""

    def keep(self, state: Any, slots: Tensor) -> None:
        """Go on with these slots alone, [S] numbers before, in this order."""
