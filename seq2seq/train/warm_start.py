"""Starting from a finished model (`init_from`): its weights and vocabulary, with a fresh optimizer and schedule."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from torch import nn

from seq2seq.config import compose
from seq2seq.config.schema import Config
from seq2seq.model.directory import load_model_directory
from seq2seq.model.weights import fill, own_weights
from seq2seq.support.errors import UserError


def require_same_model(config: Config) -> None:
    """Raise UserError unless the model of `config.init_from` is the configured one; dropout may differ.

    So may `model.norm`: the sides have their own.
    """
    if not config.init_from:
        return
    directory = Path(config.init_from)
    if not (directory / "config.yaml").is_file():
        inside = directory / "model"
        hint = f"; type init_from={inside}" if (inside / "config.yaml").is_file() else ""
        raise UserError(f"init_from={directory}: no model directory (no config.yaml in it){hint}")
    stored = asdict(compose.load(directory / "config.yaml").model)
    other = {
        f"model.{key}": was
        for key, was, _ in compose.differences(stored, asdict(config.model))
        if key != "norm" and key.rpartition(".")[2] != "dropout"
    }
    if other:
        raise UserError(f"init_from={directory}: its model has other settings; add {compose.to_type(other)}")


def take_weights(model: nn.Module, directory: Path) -> None:
    """Give the model the weights of a model directory. Raises UserError if they do not fit or are damaged."""
    fill(model, own_weights(load_model_directory(directory).model), directory)
