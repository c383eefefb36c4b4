"""What the training benchmark compares: our model, and the same Transformer as its peers would train it.

All are post-norm, tie source, target and output embeddings, add sinusoids, smooth labels by 0.1, and apply
dropout to sub-layer outputs and embeddings only, as in the paper (sections 3 and 5.4). Peers get padded batches in a
plain loop.

Shapes: B sentences, S and T pieces of the longest source and target, D d_model, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.config.schema import ModelConfig
from seq2seq.data.batches import Batch
from seq2seq.data.tokenizer import BOS, EOS, PAD
from seq2seq.model.positions import sinusoids
from seq2seq.model.translation import build_model
from seq2seq.train.loss import batch_loss

SMOOTHING = 0.1
LONGEST = 1024
"""The positions, in pieces, for which the peers keep sinusoids."""


@dataclass(frozen=True)
class Contestant:
    """A model with its loss, summed over the target tokens of a batch, and the rows that enter its linear layers."""

    model: nn.Module
    loss: Callable[[Batch], Tensor]
    rows: Callable[[Batch], int]


def packed_rows(batch: Batch) -> int:
    """Rows of source and target without pads."""
    return batch.source_layout.total + batch.target_layout.total


def padded_rows(batch: Batch) -> int:
    """Rows of source and target in padded grids."""
    return sum(layout.batch_size * layout.max_length for layout in (batch.source_layout, batch.target_layout))


def ours(config: ModelConfig, vocab_size: int) -> Contestant:
    """Our model and loss."""
    model = build_model(config, vocab_size, seed=1)
    return Contestant(model, lambda batch: batch_loss(model, batch, SMOOTHING)[0], packed_rows)


class PlainTransformer(nn.Module):
    """`nn.Transformer` with the embeddings around it.

    Its final norms, which a post-norm Transformer does not have, are removed; dropout of attention weights and of the
    activations in feed-forward layers is set to 0.
    """

    positions: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        encoder, decoder, d_model = config.encoder, config.decoder, config.d_model
        self.embedding = nn.Embedding(vocab_size, d_model, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        self.transformer = nn.Transformer(
            d_model,
            encoder.num_heads,
            encoder.num_layers,
            decoder.num_layers,
            encoder.d_ff,
            config.dropout,
            batch_first=True,
        )
        self.transformer.encoder.norm = self.transformer.decoder.norm = None
        for module in self.transformer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
            elif isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                module.dropout = nn.Dropout(0.0)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("positions", sinusoids(LONGEST, d_model), persistent=False)

    def forward(self, source_BS: Tensor, target_BT: Tensor, mask_BS: Tensor) -> Tensor:
        """Logits [B, T, V]; the mask is true where there is a source token."""
        future_TT = nn.Transformer.generate_square_subsequent_mask(target_BT.shape[1], source_BS.device)
        hidden_BTD = self.transformer(
            self.embed(source_BS),
            self.embed(target_BT),
            tgt_mask=future_TT,
            src_key_padding_mask=~mask_BS,
            memory_key_padding_mask=~mask_BS,
            tgt_is_causal=True,
        )
        return F.linear(hidden_BTD, self.embedding.weight)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L] to rows [B, L, D]."""
        rows = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim)
        return self.dropout(rows + self.positions[: tokens.shape[1]])


def plain(config: ModelConfig, vocab_size: int) -> Contestant:
    """PyTorch's own Transformer."""
    model = PlainTransformer(config, vocab_size)
    return padded(model, model)


def marian(attention: str) -> Callable[[ModelConfig, int], Contestant]:
    """Hugging Face's Marian with this kind of attention, `sdpa` or `eager`."""

    def build(config: ModelConfig, vocab_size: int) -> Contestant:
        model = marian_model(config, vocab_size, attention)

        def logits(source_BS: Tensor, target_BT: Tensor, mask_BS: Tensor) -> Tensor:
            return model(input_ids=source_BS, attention_mask=mask_BS.long(), decoder_input_ids=target_BT).logits

        return padded(model, logits)

    return build


def marian_model(config: ModelConfig, vocab_size: int, attention: str) -> Any:
    """Hugging Face's Marian as large as ours, with weights of its own."""
    from transformers import MarianConfig, MarianMTModel

    encoder, decoder = config.encoder, config.decoder
    settings = MarianConfig(
        vocab_size=vocab_size,
        d_model=config.d_model,
        encoder_layers=encoder.num_layers,
        decoder_layers=decoder.num_layers,
        encoder_attention_heads=encoder.num_heads,
        decoder_attention_heads=decoder.num_heads,
        encoder_ffn_dim=encoder.d_ff,
        decoder_ffn_dim=decoder.d_ff,
        activation_function="relu",
        dropout=config.dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        scale_embedding=True,
        init_std=config.d_model**-0.5,
        max_position_embeddings=LONGEST,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
        use_cache=False,
        attn_implementation=attention,
    )
    return MarianMTModel(settings)


def padded(model: nn.Module, logits: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Contestant:
    """A peer, whose `logits` are computed from padded sources, padded targets and the sources' mask."""

    def loss(batch: Batch) -> Tensor:
        source_BS = batch.source_layout.unpack(batch.source)
        target_BT, labels_BT = (batch.target_layout.unpack(side) for side in (batch.target_in, batch.target_out))
        logits_BTV = logits(source_BS, target_BT, batch.source_layout.mask)
        return F.cross_entropy(
            logits_BTV.flatten(0, 1),
            labels_BT.flatten(),
            ignore_index=PAD,
            label_smoothing=SMOOTHING,
            reduction="sum",
        )

    return Contestant(model, loss, padded_rows)


OURS = "ours"
RANKS = {"ours, 2 ranks": 2}
"""Contestants of several processes (`trainer.devices=2`), which share the threads that others have in one process."""
CONTESTANTS: dict[str, Callable[[ModelConfig, int], Contestant]] = {
    OURS: ours,
    **dict.fromkeys(RANKS, ours),
    "nn.Transformer": plain,
    "Marian, sdpa": marian("sdpa"),
    "Marian, eager": marian("eager"),
}
