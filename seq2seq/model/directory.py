"""The model directory: everything needed to translate, self-contained and movable; reading it runs no code from it."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch.overrides import TorchFunctionMode

import seq2seq
from seq2seq.config import compose
from seq2seq.config.schema import Config, ModelConfig
from seq2seq.data.tokenizer import Tokenizer
from seq2seq.model.translation import TranslationModel
from seq2seq.model.weights import fill, load_weights, require_same_shapes, save_weights
from seq2seq.support.errors import UserError
from seq2seq.support.files import new_directory, read_json, sha256_of, write_json
from seq2seq.support.manifest import MANIFEST

FORMAT_VERSION = 1
FILES = ("model.safetensors", "config.yaml", "tokenizer.model")
LARGEST_TEXT = 1 << 20
"""The largest config.yaml or manifest.json that is read, in bytes; ours have a few thousand."""
PACKAGES = ("torch", "sentencepiece", "datasets", "hydra-core", "safetensors")


def save_model_directory(
    directory: Path, config: Config, tokenizer: Tokenizer, weights: dict[str, torch.Tensor], **facts: Any
) -> None:
    """Write a model directory atomically; `facts` (steps, scores, hash of the data) go into its manifest."""
    with new_directory(directory) as folder:
        save_weights(folder / "model.safetensors", weights)
        (folder / "config.yaml").write_text(compose.to_yaml(config), encoding="utf-8")
        (folder / "tokenizer.model").write_bytes(tokenizer.model)
        manifest = {
            "format_version": FORMAT_VERSION,
            "sha256": {name: sha256_of(folder / name) for name in FILES},
            "versions": {"seq2seq": seq2seq.__version__, **{name: version(name) for name in PACKAGES}},
            "seed": config.seed,
            **facts,
        }
        write_json(folder / MANIFEST, manifest)


class ModelDirectory(NamedTuple):
    """The contents of a model directory, with the model in float32 on the CPU.

    `longest_source` is the length in pieces of the longest source that it was trained on; None: not known.
    """

    config: Config
    tokenizer: Tokenizer
    model: TranslationModel
    longest_source: int | None


def load_model_directory(directory: Path) -> ModelDirectory:
    """The contents of a directory, of which each file is read only after it is verified.

    Raises UserError when it is missing, incomplete, changed since it was written, of another format version, or
    malicious: nothing in it is executed, no link is followed out of it, and the sizes it claims are not trusted.
    """
    longest_source = read_manifest(directory).get("longest_source")
    config = compose.load(directory / "config.yaml")
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    path = directory / "model.safetensors"
    weights = load_weights(path)
    _require_size_of(weights, config.model, path)
    with torch.device("meta"), _Undrawn():
        model = TranslationModel(config.model, tokenizer.vocab_size)
    require_same_shapes(model, weights, path)
    with _Undrawn():
        model = TranslationModel(config.model, tokenizer.vocab_size)
    fill(model, weights, path)
    return ModelDirectory(config, tokenizer, model, longest_source)


def require_model(directory: Path) -> None:
    """Raise UserError, saying what to type next, where no model directory is."""
    if (directory / MANIFEST).is_file():
        return
    inside = directory / "model"
    if (inside / MANIFEST).is_file():
        raise UserError(f"{directory}: no model there, but in {inside}; give that directory")
    if (directory.parent / "checkpoints").is_dir():
        raise UserError(f"{directory}: no model there yet: training has not validated one; type its command again")
    raise UserError(
        f"{directory}: no model there (no {MANIFEST}); train one: seq2seq-train +recipe=quickstart, "
        "or give another: --model DIR"
    )


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a model directory, after the files have been verified against it.

    Raises UserError where it is not valid, and where a file is missing or changed.
    """
    require_model(directory)
    path = directory / MANIFEST
    _require_own_file(path)
    try:
        manifest = read_json(path)
        found, hashes, longest = manifest["format_version"], manifest["sha256"], manifest.get("longest_source", 1)
        listed = sorted(hashes.keys())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: broken; copy the directory again") from None
    if found != FORMAT_VERSION or type(found) is not int:
        raise UserError(
            f"{directory}: model format {found!r}; this version reads {FORMAT_VERSION}; take the version that wrote it"
        )
    if listed != sorted(FILES):
        raise UserError(
            f"{path}: lists the files {', '.join(map(repr, listed))}; a model has {', '.join(sorted(FILES))}"
        )
    if type(longest) is not int or longest < 1:
        raise UserError(f"{path}: longest_source={longest!r}: must be a whole number of at least 1")
    for name, sha256 in hashes.items():
        _require_own_file(directory / name)
        if sha256_of(directory / name) != sha256:
            raise UserError(
                f"{directory / name}: changed since it was written (its sha256 is not the manifest's); "
                "copy the directory again"
            )
    return cast("dict[str, Any]", manifest)


def _require_own_file(path: Path) -> None:
    """Raise UserError unless `path` is a file that really lies in its directory and is not implausibly large."""
    if not path.is_file():
        raise UserError(f"{path}: missing from the model directory")
    # A link out of it may expose a secret of this machine, and its target would be missing on the next one.
    if path.resolve().parent != path.parent.resolve():
        raise UserError(
            f"{path}: a link out of the model directory; make a copy without links: cp -rL {path.parent} NEW"
        )
    size, memory = path.stat().st_size, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = LARGEST_TEXT if path.suffix in (".json", ".yaml") else memory
    if size > limit:
        raise UserError(f"{path}: {size:,} bytes; more than {limit:,} are not read")


def _require_size_of(weights: dict[str, torch.Tensor], config: ModelConfig, path: Path) -> None:
    """Raise UserError for a model with more layers than there are tensors, or wider than the largest of them.

    Other models have their shapes compared one by one, but first have to be built: hours for a million layers.
    """
    # The other sides of a tensor without elements cost nothing, and may be of any size.
    widest = max((side for tensor in weights.values() if tensor.numel() for side in tensor.shape), default=0)
    numbers = [("d_model", config.d_model, widest)]
    for side in ("encoder", "decoder"):
        settings = getattr(config, side)
        numbers.append((f"{side}.max_positions", settings.max_length or 0, widest))
        # A kind need not have these settings.
        limits = {"num_layers": len(weights), "d_k": widest, "d_ff": widest}
        numbers += [(f"{side}.{name}", getattr(settings, name, None) or 0, limit) for name, limit in limits.items()]
    for key, value, limit in numbers:
        if value > limit:
            raise UserError(f"{path.parent}/config.yaml: model.{key}={value}, but {path.name} has no more than {limit}")


class _Undrawn(TorchFunctionMode):
    """Leaves new weights undrawn: they get filled, and on the meta device drawing takes a second to import sympy.

    Buffers are not in the file, and keep what they are set to.
    """

    DRAWING = (torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.fill_, torch.Tensor.zero_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_weight = func in self.DRAWING and args[0].requires_grad
        return args[0] if is_weight else func(*args, **(kwargs or {}))
