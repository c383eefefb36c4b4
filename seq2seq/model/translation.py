"""The translation model: an encoder and a decoder of any kinds, looked up by name, and the embeddings they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.config.schema import ModelConfig
from seq2seq.data.batches import Batch
from seq2seq.model.decoder import TransformerDecoder
from seq2seq.model.embedding import Embedding
from seq2seq.model.encoder import TransformerEncoder
from seq2seq.model.interfaces import Decoder, Encoder, Memory
from seq2seq.model.recurrent import RecurrentDecoder, RecurrentEncoder
from seq2seq.ops import native
from seq2seq.ops.linear import replace_linears
from seq2seq.ops.packed_linear import PackedLinear, supports_packing
from seq2seq.ops.packing import Layout
from seq2seq.ops.panel_linear import PanelLinear
from seq2seq.ops.quantized_linear import int8_layer
from seq2seq.ops.topk import MAX_INSERTED, Candidates
from seq2seq.support.devices import limit_compiled_shapes
from seq2seq.support.errors import UserError

SHAPES_OF_TRANSLATION = 160
"""Matrix multiplication shapes to keep code for: five matrices, up to 32 row counts (`ops.filled_rows.whole_steps`)."""
ROWS = 4096
"""Source tokens that a CPU encodes together."""
ENCODERS: dict[str, Callable[[Any, Embedding], Encoder]] = {
    "transformer": TransformerEncoder,
    "recurrent": RecurrentEncoder,
}
DECODERS: dict[str, Callable[[Any, Embedding], Decoder]] = {
    "transformer": TransformerDecoder,
    "recurrent": RecurrentDecoder,
}


class TranslationModel(nn.Module):
    """Packed source and target tokens to hidden rows; `output_weight` [V, D] turns those into logits."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.target_embedding = Embedding(vocab_size, config.d_model)
        source_embedding = self.target_embedding
        if config.tie_embeddings != "all":
            source_embedding = Embedding(vocab_size, config.d_model)
        self.encoder: Encoder = ENCODERS[config.encoder.kind](config.encoder, source_embedding)
        self.decoder: Decoder = DECODERS[config.decoder.kind](config.decoder, self.target_embedding)
        self.output = self.target_embedding
        if config.tie_embeddings == "none":
            self.output = Embedding(vocab_size, config.d_model)
        self.projection: nn.Module | None = None
        unsaved = self.state_dict().keys() - dict(self.named_parameters(remove_duplicate=False)).keys()
        assert not unsaved, f"{unsaved}: only parameters are saved; register buffers with persistent=False"

    @property
    def output_weight(self) -> nn.Parameter:
        """The matrix before the softmax, [V, D]; no bias (section 3.4)."""
        return self.output.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.output_weight.device

    @property
    def can_be_batch_invariant(self) -> bool:
        """Whether search can give a sentence bitwise the same result in any batch (`ops.batch_invariance`)."""
        can = self.encoder.can_be_batch_invariant and self.decoder.can_be_batch_invariant
        return can and isinstance(self.projection, PanelLinear)

    def can_be_recorded(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether training on a GPU can be recorded as a graph of fixed shapes, in which some sentences are empty."""
        return all(side.supports_empty_sentences(device, dtype) for side in (self.encoder, self.decoder))

    def forward(self, batch: Batch) -> Tensor:
        """Hidden rows [M, D], one for each target token to predict."""
        memory = self.encoder(batch.source, batch.source_layout)
        return self.decoder(batch.target_in, batch.target_layout, memory)

    def with_attention(self, batch: Batch, layer: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """`forward`, and each sentence's attention to its source [T, L]; see `interfaces.Decoder.with_attention`."""
        memory = self.encode(batch.source, batch.source_layout)
        return self.decoder.with_attention(batch.target_in, batch.target_layout, memory, layer)

    def encode(self, tokens: Tensor, layout: Layout) -> Memory:
        """The memory of packed source tokens [N]."""
        if tokens.is_cuda or torch.is_grad_enabled() or layout.filler or layout.total <= ROWS:
            return self.encoder(tokens, layout)
        # Part by part: intermediate results then stay in the caches of the CPU, and less padding is computed.
        parts = layout.parts(ROWS)
        found = map(self.encoder, tokens.split([part.total for part in parts]), parts)
        return Memory(torch.cat([memory.rows for memory in found]), layout)

    def start(self, memory: Memory) -> Any:
        """The decoder's state before the first step of search."""
        return self.decoder.start(memory)

    def step(self, state: Any, tokens: Tensor, parents: Tensor) -> Tensor:
        """Hidden rows [S, K, D] after the tokens [S, K]; see `interfaces.Decoder.step`."""
        return self.decoder.step(state, tokens, parents)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden rows [..., D] to logits [..., V]."""
        if self.projection is None:
            return F.linear(hidden, self.output_weight)
        return cast(Tensor, self.projection(hidden))

    def best(self, hidden: Tensor, scores: Tensor, count: int, never: Tensor) -> Candidates | None:
        """The best continuations, found without logits; see `search.interfaces.SearchModel.best`."""
        layer = self.projection
        most = min(MAX_INSERTED, scores.shape[1] * self.vocab_size)
        if isinstance(layer, PanelLinear) and native.supports_inference(hidden) and count <= most:
            return layer.best(hidden, scores, count, never)
        return None

    def keep(self, state: Any, slots: Tensor) -> None:
        """Keep only these slots; see `interfaces.Decoder.keep`."""
        self.decoder.keep(state, slots)

    def place(self, device: torch.device, dtype: torch.dtype) -> TranslationModel:
        """Make this model ready to translate and score there: in float32, bfloat16, or int8 on a CPU. Raises UserError.

        It cannot be trained after this, nor placed again.
        """
        limit_compiled_shapes(SHAPES_OF_TRANSLATION)
        self.eval()
        if device.type == "cpu":
            # Before processes are forked: each would compile it, or report that it cannot.
            native.library()
        elif device.index is not None:
            # Triton launches kernels on the current device, wherever their tensors are.
            torch.cuda.set_device(device)
        if dtype != torch.int8:
            self.to(device, dtype)._pack()
        elif device.type == "cpu":
            self._quantize()
        else:
            raise UserError(f"int8 on {device}: it is for the CPU; type --device cpu or --dtype bfloat16")
        self.encoder.finish()
        self.decoder.finish()
        return self

    def _pack(self) -> None:
        """Lay weights out for translation on a CPU, in the dtype that they have; elsewhere this does nothing."""
        if self.device.type == "cpu" and native.has_fast_matmul():
            self._replace_linears(PanelLinear.of)
        elif supports_packing(self.output_weight):
            self._replace_linears(PackedLinear)

    def _quantize(self) -> None:
        """Compute linear layers and logits in int8 from now on. Raises UserError."""
        self._replace_linears(int8_layer())
        if isinstance(self.projection, PanelLinear):
            self.bfloat16()

    def _replace_linears(self, make: Callable[[Tensor, Tensor | None], nn.Module]) -> None:
        replace_linears(self, make)
        self.projection = make(self.output_weight, None)


def count_parameters(model: nn.Module) -> int:
    """The number of learnt values, shared ones counted once; frozen parameters are not counted."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def build_model(config: ModelConfig, vocab_size: int, seed: int) -> TranslationModel:
    """A model with weights drawn from `seed`; torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TranslationModel(config, vocab_size)
