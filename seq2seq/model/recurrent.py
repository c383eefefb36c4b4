"""A bidirectional LSTM encoder, and an LSTM decoder with additive attention (Bahdanau et al., 2015).

Shapes: N packed source tokens, M packed target tokens, B sentences, L length, D d_model; S slots, K hypotheses of
each, R = S·K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seq2seq.config.schema import RecurrentConfig
from seq2seq.model.embedding import Embedding
from seq2seq.model.interfaces import Memory
from seq2seq.ops.dropout import Dropout
from seq2seq.ops.packing import Layout
from seq2seq.support.errors import UserError


class RecurrentEncoder(nn.Module):
    """Embeddings, then a stack of LSTMs that read each sentence in both directions, D/2 wide each."""

    can_be_batch_invariant = False

    def __init__(self, config: RecurrentConfig, embedding: Embedding) -> None:
        super().__init__()
        d_model = embedding.d_model
        self.embedding = embedding
        self.dropout = Dropout(config.dropout)
        self.lstm = nn.LSTM(d_model, d_model // 2, config.num_layers, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor, layout: Layout) -> Memory:
        """Packed source tokens [N] to their memory."""
        x_BLD = layout.unpack(self.dropout(self.embedding(tokens)))
        packed = pack_padded_sequence(x_BLD, layout.lengths.cpu(), batch_first=True, enforce_sorted=False)
        h_BLD, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=layout.max_length)
        return Memory(self.dropout(layout.pack(h_BLD)), layout)

    def supports_empty_sentences(self, device: torch.device, dtype: torch.dtype) -> bool:  # noqa: ARG002
        """Never: see `interfaces.Decoder`."""
        return False

    def finish(self) -> None:
        """See `interfaces.Encoder`."""


class AdditiveAttention(nn.Module):
    """Weights of softmax(v · tanh(W·state + U·memory)) (section A.1.2 of Bahdanau et al.)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.energy = nn.Linear(d_model, 1, bias=False)

    def forward(
        self, state_SKD: Tensor, keys_SLD: Tensor, memory_SLD: Tensor, mask_SL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The weighted mean of each slot's memory for each of its states, [S, K, D], and the weights [S, K, L]."""
        hidden_SKLD = (self.query(state_SKD)[:, :, None] + keys_SLD[:, None]).tanh()
        scores_SKL = self.energy(hidden_SKLD).squeeze(-1).float().masked_fill(~mask_SL[:, None], -torch.inf)
        weights_SKL = scores_SKL.softmax(-1)
        return weights_SKL.to(memory_SLD.dtype) @ memory_SLD, weights_SKL


@dataclass
class RecurrentState:
    """Hidden and cell state of each layer [R, D], the memory with its keys [S, L, D], its mask [S, L], and K."""

    hidden: list[Tensor]
    cell: list[Tensor]
    memory: Tensor
    keys: Tensor
    mask: Tensor
    width: int = 1

    def advance(self, parents_SK: Tensor) -> None:
        """Give each hypothesis the state of its parent."""
        slots, width = parents_SK.shape
        rows = (parents_SK + torch.arange(slots, device=parents_SK.device)[:, None] * self.width).flatten()
        self.hidden, self.cell = ([x.index_select(0, rows) for x in layers] for layers in (self.hidden, self.cell))
        self.width = width

    def keep(self, slots: Tensor) -> None:
        """Keep only these slots."""
        self.memory, self.keys, self.mask = (x.index_select(0, slots) for x in (self.memory, self.keys, self.mask))
        self.hidden, self.cell = (
            [x.unflatten(0, (-1, self.width)).index_select(0, slots).flatten(0, 1) for x in layers]
            for layers in (self.hidden, self.cell)
        )


class RecurrentDecoder(nn.Module):
    """LSTM cells that read the previous token and the context that the previous state attended to in the memory."""

    can_be_batch_invariant = False

    def __init__(self, config: RecurrentConfig, embedding: Embedding) -> None:
        super().__init__()
        d_model = embedding.d_model
        self.embedding = embedding
        self.dropout = Dropout(config.dropout)
        self.attention = AdditiveAttention(d_model)
        self.initial = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(config.num_layers))
        widths = [2 * d_model] + [d_model] * (config.num_layers - 1)
        self.cells = nn.ModuleList(nn.LSTMCell(width, d_model) for width in widths)
        self.output = nn.Linear(3 * d_model, d_model)

    def forward(self, tokens: Tensor, layout: Layout, memory: Memory) -> Tensor:
        """Packed target tokens [M] to hidden rows [M, D]."""
        return self._whole(tokens, layout, memory)[0]

    def supports_empty_sentences(self, device: torch.device, dtype: torch.dtype) -> bool:  # noqa: ARG002
        """Never: see `interfaces.Decoder`."""
        return False

    def with_attention(
        self, tokens: Tensor, layout: Layout, memory: Memory, layer: int | None
    ) -> tuple[Tensor, list[Tensor]]:
        """`forward`, with its one attention; see `interfaces.Decoder`."""
        if layer not in (None, 1):
            raise UserError(f"attention of layer {layer}: a recurrent decoder has one attention, number 1")
        rows_MD, weights_BTL = self._whole(tokens, layout, memory)
        sizes = zip(layout.lengths.tolist(), memory.layout.lengths.tolist(), strict=True)
        return rows_MD, [own[:target, :source] for own, (target, source) in zip(weights_BTL, sizes, strict=True)]

    def _whole(self, tokens: Tensor, layout: Layout, memory: Memory) -> tuple[Tensor, Tensor]:
        state = self.start(memory)
        x_BTD = layout.unpack(self.dropout(self.embedding(tokens)))
        steps = [self._advance(state, x_B1D) for x_B1D in x_BTD.split(1, dim=1)]
        rows_BTD, weights_BTL = (torch.cat(parts, dim=1) for parts in zip(*steps, strict=True))
        return layout.pack(rows_BTD), weights_BTL

    def finish(self) -> None:
        """See `interfaces.Decoder`."""

    def start(self, memory: Memory) -> RecurrentState:
        """The state before the first token, from the mean of the memory, which any encoder provides."""
        rows_SLD = memory.layout.unpack(memory.rows)
        mean_SD = rows_SLD.sum(1) / memory.layout.lengths[:, None]
        hidden = [initial(mean_SD).tanh() for initial in self.initial]
        cell = [torch.zeros_like(h) for h in hidden]
        return RecurrentState(hidden, cell, rows_SLD, self.attention.key(rows_SLD), memory.layout.mask)

    def step(self, state: RecurrentState, tokens: Tensor, parents: Tensor) -> Tensor:
        """Hidden rows [S, K, D] for the next tokens [S, K]; see `interfaces.Decoder`."""
        state.advance(parents)
        return self._advance(state, self.dropout(self.embedding(tokens)))[0]

    def keep(self, state: RecurrentState, slots: Tensor) -> None:
        """Keep only these slots."""
        state.keep(slots)

    def _advance(self, state: RecurrentState, x_SKD: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden rows [S, K, D] after one more token of each hypothesis, and its attention weights, [S, K, L]."""
        queries_SKD = state.hidden[-1].view(x_SKD.shape)
        context_SKD, weights_SKL = self.attention(queries_SKD, state.keys, state.memory, state.mask)
        below_RD = torch.cat((x_SKD, context_SKD.to(x_SKD.dtype)), -1).flatten(0, 1)
        for layer, cell in enumerate(self.cells):
            state.hidden[layer], state.cell[layer] = cell(below_RD, (state.hidden[layer], state.cell[layer]))
            below_RD = self.dropout(state.hidden[layer])
        output = torch.cat((below_RD.view(x_SKD.shape), context_SKD.to(x_SKD.dtype), x_SKD), -1)
        return self.dropout(self.output(output).tanh()), weights_SKL
