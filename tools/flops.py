"""The matrix products of a training update of a Transformer, counted from its settings and the sentences' lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from seq2seq.config.schema import ModelConfig


def update_flops(config: ModelConfig, vocab_size: int, source_lengths: ArrayLike, target_lengths: ArrayLike) -> int:
    """FLOPs of forward and backward pass over these pairs, lengths with eos; a multiply-add counts as two.

    Only what the pairs themselves need: no padding. The backward pass is twice the forward pass: one product with the
    input and one with the weight. Causal attention counts in full, as in kernels and other counters.
    """
    source, target = (np.asarray(lengths, np.int64) for lengths in (source_lengths, target_lengths))
    n, m = int(source.sum()), int(target.sum())
    d = config.d_model

    def widths(side: str) -> tuple[int, int, int]:
        settings = getattr(config, side)
        return settings.num_layers, d if settings.d_k is None else settings.num_heads * settings.d_k, settings.d_ff

    def attention(keys: int, queries_from: int, keys_from: int, scores: int) -> int:
        projected = queries_from * d * (keys + d) + keys_from * d * (keys + d)
        return projected + scores * (keys + d)

    layers, keys, d_ff = widths("encoder")
    encoder = layers * (attention(keys, n, n, int((source**2).sum())) + 2 * n * d * d_ff)
    layers, keys, d_ff = widths("decoder")
    own, cross = (
        attention(keys, m, *rest) for rest in ((m, int((target**2).sum())), (n, int((source * target).sum())))
    )
    decoder = layers * (own + cross + 2 * m * d * d_ff)
    return 3 * 2 * (encoder + decoder + m * d * vocab_size)
