"""Where tests of our kernels for GPUs run: on a GPU, or in Triton's interpreter (tests/conftest.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from seq2seq.config.schema import ModelConfig, TransformerConfig
from seq2seq.config.search import SearchConfig
from seq2seq.model.translation import TranslationModel, build_model
from seq2seq.search.beam import BeamSearch

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")


def distance(own: Tensor, exact: Tensor) -> float:
    """‖own − exact‖ / ‖exact‖."""
    return float(((own.double() - exact).norm() / exact.norm()).detach())


def model_and_search(dropout: float = 0.0) -> tuple[TranslationModel, BeamSearch]:
    """A tiny model on the device, and a search of few steps."""
    layers = TransformerConfig(num_layers=1, num_heads=1, d_ff=16, dropout=dropout)
    config = ModelConfig(d_model=16, dropout=dropout, encoder=layers, decoder=layers)
    model = build_model(config, 150, 1).eval().to(DEVICE)
    settings = SearchConfig(beam_size=2, n_best=2, max_length_ratio=0.5, max_length_offset=2)
    return model, BeamSearch(settings, 2, 3, [0, 1, 2])
