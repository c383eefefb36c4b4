"""Position encodings (Vaswani et al., 2017, section 3.5): sinusoids, sine and cosine interleaved as in the paper's
formula; or learned, as in row E of its table 3."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from seq2seq.config.schema import TransformerConfig
from seq2seq.model.embedding import Embedding
from seq2seq.ops.dropout import Dropout
from seq2seq.ops.embed import embed, look_up
from seq2seq.support.devices import compute_dtype
from seq2seq.support.errors import UserError


def sinusoids(length: int, d_model: int) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d_model)), PE(pos, 2i+1) = cos of the same: [length, d_model], float32."""
    positions = torch.arange(length, dtype=torch.float64)[:, None]
    rates = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float64) * (-math.log(10000.0) / d_model))
    angles = positions * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).float()


class SinusoidalPositions(nn.Module):
    """A table of position encodings that grows to the longest sequence seen; nothing in it is learnt or stored."""

    table: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.empty(0, d_model), persistent=False)
        self._outgrown: list[Tensor] = []

    def forward(self, max_length: int) -> Tensor:
        """The encodings of at least `max_length` positions, [max_length or more, d_model]."""
        if max_length > self.table.shape[0]:
            # CUDA graphs of earlier batches still read it. Tables double: all old ones are no larger than the last.
            self._outgrown.append(self.table)
            self.table = sinusoids(max(512, 2 * max_length), self.table.shape[1]).to(self.table)
        return self.table


class LearnedPositions(nn.Module):
    """A vector for each of the first `length` positions, drawn from N(0, 1/D) (Gehring et al., 2017)."""

    def __init__(self, d_model: int, length: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, d_model))
        with torch.no_grad():
            self.weight.normal_(std=d_model**-0.5)

    def forward(self, max_length: int) -> Tensor:
        """The encodings of all positions, [length, d_model]. Raises UserError where `max_length` is above that."""
        if max_length > self.weight.shape[0]:
            raise UserError(
                f"a sequence of {max_length} pieces, eos counted: max_positions={self.weight.shape[0]}; "
                f"set data.cleaning.max_pieces={self.weight.shape[0] - 1}, or cut the text"
            )
        return self.weight


class PositionedEmbedding(nn.Module):
    """Dropout(embedding + position encoding): what the first layer of a Transformer reads (sections 3.4, 3.5, 5.4)."""

    regions = ("summed",)

    def __init__(self, embedding: Embedding, config: TransformerConfig) -> None:
        super().__init__()
        self.embedding = embedding
        self.positions: nn.Module = SinusoidalPositions(embedding.d_model)
        if config.positions == "learned":
            self.positions = LearnedPositions(embedding.d_model, config.max_positions)
        self.dropout = Dropout(config.dropout)

    def forward(self, tokens: Tensor, positions: Tensor | int, max_length: int) -> Tensor:
        """Tokens [...] at `positions` [...] (broadcast), all below `max_length`: [..., d_model], compute dtype."""
        weight_VD, table_PD = self.tables(max_length)
        if self.training and not isinstance(positions, int):
            return self.summed(tokens, weight_VD, positions, table_PD)
        x = embed(weight_VD, tokens, table_PD, positions)
        return self.dropout(x.to(compute_dtype(x)))

    def summed(self, tokens: Tensor, weight_VD: Tensor, positions: Tensor, table_PD: Tensor) -> Tensor:
        """The same in training, given the tables."""
        x = look_up(weight_VD, tokens) * math.sqrt(self.embedding.d_model) + look_up(table_PD, positions)
        return self.dropout(x.to(compute_dtype(x)))

    def tables(self, max_length: int) -> tuple[Tensor, Tensor]:
        """The tables whose rows are added: token embeddings [V, D] and encodings of at least `max_length` positions."""
        return self.embedding.weight, self.positions(max_length)
