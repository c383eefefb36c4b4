"""The model directory: everything needed to translate, self-contained and movable; reading it runs no code from it."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch.overrides import TorchFunctionMode

import seq2seq
from seq2seq.config import compose
from seq2seq.config.schema import Config
from seq2seq.data.tokenizer import Tokenizer
from seq2seq.model.translation import TranslationModel
from seq2seq.support.errors import UserError
from seq2seq.support.files import new_directory, read_json, sha256_of, write_json

FORMAT_VERSION = 1
FILES = ("model.safetensors", "config.yaml", "tokenizer.model")
PACKAGES = ("torch", "sentencepiece", "datasets", "hydra-core", "safetensors")


def save_model_directory(
    directory: Path, config: Config, tokenizer: Tokenizer, weights: dict[str, torch.Tensor], **facts: Any
) -> None:
    """Write a model directory atomically; `facts` (steps, scores, hash of the data) go into its manifest."""
    with new_directory(directory) as folder:
        save_weights(folder / FILES[0], weights)
        (folder / FILES[1]).write_text(compose.to_yaml(config), encoding="utf-8")
        (folder / FILES[2]).write_bytes(tokenizer.model)
        manifest = {
            "format_version": FORMAT_VERSION,
            "sha256": {name: sha256_of(folder / name) for name in FILES},
            "versions": {"seq2seq": seq2seq.__version__, **{name: version(name) for name in PACKAGES}},
            "seed": config.seed,
            **facts,
        }
        write_json(folder / "manifest.json", manifest)


def load_model_directory(directory: Path) -> tuple[Config, Tokenizer, TranslationModel]:
    """The configuration, tokenizer and model (float32, on the CPU) of a directory.

    Raises UserError when it is missing, incomplete, changed since it was written, or of a format of another version.
    """
    if not (directory / "manifest.json").is_file():
        raise UserError(
            f"{directory}: no model there (no manifest.json); train one: seq2seq-train +recipe=quickstart, "
            "or give another: --model DIR"
        )
    try:
        manifest = read_json(directory / "manifest.json")
        found, hashes = manifest["format_version"], {name: manifest["sha256"][name] for name in FILES}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{directory}/manifest.json: broken") from None
    if found != FORMAT_VERSION:
        raise UserError(
            f"{directory}: model format {found}; this version reads {FORMAT_VERSION}; take the version that wrote it"
        )
    for name, expected in hashes.items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path}: missing from the model directory")
        if sha256_of(path) != expected:
            raise UserError(
                f"{path}: changed since it was written (its sha256 is not the manifest's); copy the directory again"
            )
    config = compose.load(directory / "config.yaml")
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    weights = load_weights(directory / "model.safetensors")
    with torch.device("meta"), _Undrawn():
        model = TranslationModel(config.model, tokenizer.vocab_size)
    require_same_shapes(model, weights, directory / "model.safetensors")
    with _Undrawn():
        model = TranslationModel(config.model, tokenizer.vocab_size)
    fill(model, weights, directory / "model.safetensors")
    return config, tokenizer, model


class _Undrawn(TorchFunctionMode):
    """Leaves new weights undrawn: they are to be filled, and on the meta device drawing imports sympy for a second."""

    DRAWING = (torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.fill_, torch.Tensor.zero_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in self.DRAWING else func(*args, **(kwargs or {}))


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write tensors as safetensors. Raises OSError, as when the disk is full."""
    try:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    except SafetensorError as error:
        # The library wraps the system's error into its own and keeps the number in the text alone.
        found = re.search(r"os error (\d+)", str(error))
        if found:
            raise OSError(int(found[1]), str(error), str(path)) from None
        raise


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises UserError when it is damaged."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def own_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's learnt tensors by name, shared ones once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def fill(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Copy tensors read from `path` into the model. Raises UserError unless names and shapes are the model's."""
    require_same_shapes(model, weights, path)
    with torch.no_grad():
        for name, tensor in own_weights(model).items():
            tensor.copy_(weights[name])


def require_same_shapes(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Raise UserError unless the tensors read from `path` have the names and shapes of the model's own."""
    own = own_weights(model)
    for name in own.keys() | weights.keys():
        have, need = (tuple(side[name].shape) if name in side else "none" for side in (weights, own))
        if have != need:
            raise UserError(f"{path}: tensor {name} has shape {have}; the configuration needs {need}")
