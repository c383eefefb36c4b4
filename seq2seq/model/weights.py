"""A model's weights by name: written and read as safetensors, compared with a model's, and put into it."""

from __future__ import annotations

import re
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from seq2seq.support.errors import UserError


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write tensors as safetensors into a folder just made, with its rights. Raises OSError, as for a full disk."""
    try:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
        # The library makes it readable by its owner only.
        path.chmod(path.parent.stat().st_mode & 0o666)
    except SafetensorError as error:
        # The library wraps the system's error in its own and keeps the error number only in the text.
        found = re.search(r"os error (\d+)", str(error))
        if found:
            raise OSError(int(found[1]), str(error), str(path)) from None
        raise


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises UserError when it is damaged."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError, TypeError) as error:
        # A TypeError for sides that no tensor can have.
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def own_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's learnt tensors by name, shared ones once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor, which must not be empty, holds neither NaN nor infinity."""
    # aminmax returns NaN if the tensor holds any; of all possible checks it alone reads the tensor just once.
    return all(bool(bound.isfinite()) for bound in tensor.aminmax())


def fill(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Copy tensors read from `path` into the model.

    Raises UserError unless names, shapes and dtypes match the model's and all numbers are finite.
    """
    require_same_shapes(model, weights, path)
    for name, tensor in weights.items():
        if not all_finite(tensor):
            raise UserError(
                f"{path}: tensor {name} holds a number that is not finite; take another model or checkpoint"
            )
    with torch.no_grad():
        for name, tensor in own_weights(model).items():
            tensor.copy_(weights[name])


def require_same_shapes(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Raise UserError unless the tensors read from `path` have the names, shapes and dtypes of the model's own."""
    own = own_weights(model)
    for name in own.keys() | weights.keys():
        have, need = (_form(side[name]) if name in side else "none" for side in (weights, own))
        if have != need:
            raise UserError(f"{path}: tensor {name} has shape {have}; the configuration needs {need}")


def _form(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')}"
