"""A copy of a model for its passes, its linear layers in the format of the matmuls (Micikevicius et al., 2018,
section 3.1).

Under autocast each layer converts its own weights, and their gradients back: hundreds of small kernels in each update,
where copies of all weights are converted at once.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from seq2seq.model.translation import TranslationModel
from seq2seq.ops.linear import Linear


def working_copy(model: TranslationModel, dtype: torch.dtype) -> TranslationModel:
    """The same model with copies in `dtype` of the weights and biases of its linear layers, whose gradients are then in
    `dtype` too; others are shared.

    Those of embeddings, and so of the output layer, stay in float32, in which their gradients are summed.
    """
    linear = {weight for layer in model.modules() if isinstance(layer, Linear) for weight in layer.parameters()}
    parameters = {
        id(weight): nn.Parameter(weight.detach().to(dtype), weight.requires_grad) if weight in linear else weight
        for weight in model.parameters()
    }
    return copy.deepcopy(model, parameters)
