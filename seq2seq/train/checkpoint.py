"""Checkpoints: everything that resuming needs, in `checkpoints/step-N/`, written atomically; tensors in safetensors."""

from __future__ import annotations

import copy
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch import nn

from seq2seq.config import compose
from seq2seq.config.schema import Config
from seq2seq.model.weights import all_finite, fill, load_weights, own_weights, save_weights
from seq2seq.support.errors import RunError, UserError
from seq2seq.support.files import new_directory, read_json, remove_directory, write_json
from seq2seq.support.manifest import damage, write_manifest
from seq2seq.support.progress import say

MAY_CHANGE = frozenset(
    (
        "data.prepared_dir",
        "data.test.sha256",
        "data.train.sha256",
        "data.valid.sha256",
        "data.workers",
        "model.norm",
        "run_dir",
        "trainer.devices",
        "trainer.keep_checkpoints",
        "trainer.log_seconds",
        "trainer.max_minutes",
        "trainer.max_skipped",
        "trainer.max_steps",
        "trainer.on_full_disk",
        "trainer.on_loss_spike",
        "trainer.patience",
        "trainer.samples",
        "trainer.save_every",
        "trainer.timeout_minutes",
    )
)
"""Settings with which a run may be resumed though they were others before; the sides of a model have their own norm."""
REMEDY = "Try a lower schedule.peak, a longer schedule.warmup_steps, or optimizer.clip_norm=1.0"


@dataclass
class Progress:
    """Where a run stands; the next update is number `update` of `epoch`.

    `seconds` of training and the tokens trained on are totals across restarts. `micro_batches` is the number of parts
    of an update, chosen at the start; `validated` is the last validated step, `best_step` that of the best BLEU;
    `skipped` counts the latest updates in a row whose gradients were not finite, `losses` are those from which spikes
    are detected, `rollbacks` counts the rollbacks since the last save that was not part of one.
    """

    step: int = 0
    epoch: int = 0
    update: int = 0
    seconds: float = 0.0
    source_tokens: int = 0
    target_tokens: int = 0
    best_bleu: float = -1.0
    validations_since_best: int = 0
    data_sha256: str = ""
    valid_sha256: str = ""
    micro_batches: int = 0
    validated: int = 0
    best_step: int = 0
    skipped: int = 0
    rollbacks: int = 0
    losses: list[float] = field(default_factory=list)


@dataclass
class Snapshot:
    """What a checkpoint holds of a run, copied to the CPU: training may go on while it is written.

    `files` are the tensors of each file, by name.
    """

    files: dict[str, dict[str, torch.Tensor]]
    progress: Progress

    @classmethod
    def of(
        cls, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, average: nn.Module | None
    ) -> Snapshot:
        """Copy the state of a run. Raises RunError for non-finite weights."""
        weights = own_weights(model)
        if not all(map(all_finite, weights.values())):
            raise RunError(
                f"step {progress.step}: a weight is not finite; nothing was saved, the last checkpoint is kept. "
                + REMEDY
            )
        state = {
            f"{name}.{key}": value
            for name, parameter in model.named_parameters()
            for key, value in optimizer.state[parameter].items()
        }
        files = {"model.safetensors": weights, "optimizer.safetensors": state}
        if average:
            files["average.safetensors"] = own_weights(average)
        copies = {
            file: {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
            for file, tensors in files.items()
        }
        return cls(copies, copy.deepcopy(progress))

    @property
    def size(self) -> int:
        """Bytes of all tensors, which are nearly all of a checkpoint."""
        return sum(tensor.nbytes for tensors in self.files.values() for tensor in tensors.values())


class Checkpoints:
    """The checkpoints of a run, newest last."""

    def __init__(self, run_dir: Path) -> None:
        self.directory = run_dir / "checkpoints"

    def all(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        found = [path for path in self.directory.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        return sorted(found, key=step_of)

    def regular(self, save_every: int) -> list[Path]:
        """Those of `all` at multiples of `save_every`: a signal or the end of the run makes others too."""
        return [path for path in self.all() if step_of(path) % save_every == 0]

    def set_aside_damaged(self) -> None:
        """Rename the damaged checkpoints that are newer than the newest intact one, and say which.

        Raises UserError, and renames nothing, when none is intact.
        """
        faults: dict[Path, str] = {}
        for folder in reversed(self.all()):
            if fault := damage(folder):
                faults[folder] = fault
            else:
                break
        if faults and len(faults) == len(self.all()):
            found = "; ".join(f"{folder.name}/{fault}" for folder, fault in faults.items())
            raise UserError(
                f"{self.directory}: no checkpoint is intact ({found}); restore one from a backup, or take another "
                "run_dir=DIR"
            )
        for damaged, fault in faults.items():
            aside = damaged.with_name(f"{damaged.name}.damaged")
            if aside.exists():
                remove_directory(aside)
            damaged.replace(aside)
            say(f"{damaged}/{fault}; renamed to {aside.name}; using the checkpoint before it")

    def drop_since(self, step: int) -> None:
        """Delete the checkpoints of this step and later ones."""
        for folder in self.all():
            if step_of(folder) >= step:
                remove_directory(folder)

    def save(self, snapshot: Snapshot, config: Config) -> None:
        """Write the checkpoint of this step and, once it is on disk, delete those that are no longer to be kept.

        Kept are the last `keep_checkpoints`, as many of the last regular ones, and the best. Raises RunError for a disk
        that does not read back what was written.
        """
        progress = snapshot.progress
        with new_directory(self.directory / f"step-{progress.step}", verify=_require_whole) as folder:
            for name, tensors in snapshot.files.items():
                save_weights(folder / name, tensors)
            (folder / "config.yaml").write_text(compose.to_yaml(config), encoding="utf-8")
            write_json(folder / "progress.json", asdict(progress))
            write_manifest(folder)
        keep = config.trainer.keep_checkpoints
        kept = {*self.all()[-keep:], *self.regular(config.trainer.save_every)[-keep:]}
        for old in self.all():
            if old not in kept and step_of(old) != progress.best_step:
                remove_directory(old)

    def resume(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Config, average: nn.Module | None
    ) -> Progress | None:
        """Load the newest checkpoint into model, optimizer and moving average; None where there is none.

        Raises UserError when it is damaged, or when the configuration differs in keys that are not in `MAY_CHANGE`.
        """
        if not self.all():
            return None
        folder = self.all()[-1]
        if fault := damage(folder):
            raise UserError(f"{folder}/{fault}; rerun the same command to resume from the one before, if there is one")
        self.require_same_settings(config)
        fill(model, load_weights(folder / "model.safetensors"), folder)
        _fill_optimizer(model, optimizer, folder / "optimizer.safetensors")
        if average:
            fill(average, load_weights(folder / "average.safetensors"), folder)
        return _read_progress(folder / "progress.json")

    def require_same_settings(self, config: Config) -> None:
        """Raise UserError when the newest checkpoint was made with settings that must not change."""
        if not self.all():
            return
        folder = self.all()[-1]
        stored = compose.load(folder / "config.yaml")
        before = {
            key: old for key, old, _ in compose.differences(asdict(stored), asdict(config)) if key not in MAY_CHANGE
        }
        if before:
            raise UserError(
                f"{folder}: this run was started with other settings; type {compose.to_type(before)} to resume it, "
                "or another run_dir=DIR"
            )


def intact(folders: list[Path]) -> list[Path]:
    """Those of these checkpoints that are undamaged; the others are named on stderr."""
    faults = {folder: damage(folder) for folder in folders}
    for folder, fault in faults.items():
        if fault:
            say(f"{folder}/{fault}; left out")
    return [folder for folder, fault in faults.items() if not fault]


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def _require_whole(folder: Path) -> None:
    if fault := damage(folder, from_disk=True):
        raise RunError(
            f"{folder.parent}: what was read back is not what was written ({fault}); the last checkpoint is kept, but "
            "this disk is not to be trusted: take a run_dir=DIR on another"
        )


def _fill_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Load the tensors of `path` into the optimizer. Raises UserError for those that do not fit the model's."""
    parameters = dict(model.named_parameters())
    for name, tensor in load_weights(path).items():
        owner, _, key = name.rpartition(".")
        fits = owner in parameters and tensor.shape in ((), parameters[owner].shape)
        if not fits or tensor.dtype is not parameters[owner].dtype:
            raise UserError(f"{path}: {name}, {tuple(tensor.shape)} in {tensor.dtype}, fits no parameter of the model")
        if not all_finite(tensor):
            raise UserError(f"{path}: {name} has values that are not finite")
        # A copy: what is read maps the file, whose disk space could not be freed while this run lasts.
        optimizer.state[parameters[owner]][key] = tensor.to(parameters[owner].device, copy=True)


def _read_progress(path: Path) -> Progress:
    """The progress stored in `path`. Raises UserError when it holds none."""
    kinds = {key.name: type(getattr(Progress(), key.name)) for key in fields(Progress)}
    try:
        found = read_json(path)
        if all(isinstance(value, kinds[name]) for name, value in found.items()):
            progress = Progress(**found)
            if all(isinstance(loss, float) for loss in progress.losses):
                return progress
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(f"{path}: not the progress of a run; restore it from a backup, or take another run_dir=DIR")
