"""Checkpoints: everything that going on needs, in `checkpoints/step-N/`, written atomically; tensors in safetensors."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from seq2seq.config import compose
from seq2seq.config.schema import Config
from seq2seq.model.directory import fill, load_weights, own_weights, save_weights
from seq2seq.support.errors import RunError, UserError
from seq2seq.support.files import new_directory, read_json, write_json

MAY_CHANGE = (
    *(f"trainer.{key}" for key in ("max_steps", "max_minutes", "save_every", "devices")),
    *("data.workers", "data.prepared_dir", "run_dir"),
    *(f"data.{split}.sha256" for split in ("train", "valid", "test")),
)
REMEDY = "Try a lower schedule.peak, a longer schedule.warmup_steps, or optimizer.clip_norm=1.0"


@dataclass
class Progress:
    """Where a run stands; the next update is number `update` of `epoch`.

    `seconds` of training and tokens trained on are counted over all stops. `micro_batches` are the parts of an update,
    chosen at the start; `validated` is the last step that was; `skipped` are the
    latest updates in a row whose gradients were not finite.
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
    micro_batches: int = 0
    validated: int = 0
    skipped: int = 0


class Checkpoints:
    """The checkpoints of a run, newest last."""

    def __init__(self, run_dir: Path) -> None:
        self.directory = run_dir / "checkpoints"

    def all(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        found = [path for path in self.directory.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def regular(self, save_every: int) -> list[Path]:
        """Those of `all` that stand at the regular distance: a signal or the end of the run makes others too."""
        return [path for path in self.all() if int(path.name.removeprefix("step-")) % save_every == 0]

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        config: Config,
        average: nn.Module | None = None,
    ) -> None:
        """Write the checkpoint of this step, then delete those that are no longer to be kept.

        Raises RunError for non-finite weights.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            raise RunError(
                f"step {progress.step}: a weight is not finite; nothing was saved, the last checkpoint stands. {REMEDY}"
            )
        with new_directory(self.directory / f"step-{progress.step}") as folder:
            save_weights(folder / "model.safetensors", own_weights(model))
            save_weights(folder / "optimizer.safetensors", _optimizer_tensors(model, optimizer))
            if average:
                save_weights(folder / "average.safetensors", own_weights(average))
            (folder / "config.yaml").write_text(compose.to_yaml(config), encoding="utf-8")
            write_json(folder / "progress.json", asdict(progress))
        keep = config.trainer.keep_checkpoints
        for old in set(self.all()[:-keep]) - set(self.regular(config.trainer.save_every)[-keep:]):
            shutil.rmtree(old)

    def resume(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Config, average: nn.Module | None = None
    ) -> Progress | None:
        """Load the newest checkpoint into model, optimizer and moving average; None where there is none.

        Raises UserError when the configuration differs in more than the keys of `MAY_CHANGE`.
        """
        self.require_same_settings(config)
        if not self.all():
            return None
        folder = self.all()[-1]
        fill(model, load_weights(folder / "model.safetensors"), folder)
        _fill_optimizer(model, optimizer, load_weights(folder / "optimizer.safetensors"))
        if average:
            fill(average, load_weights(folder / "average.safetensors"), folder)
        return Progress(**read_json(folder / "progress.json"))

    def require_same_settings(self, config: Config) -> None:
        """Raise UserError when the newest checkpoint was made with settings that must not change."""
        if not self.all():
            return
        folder = self.all()[-1]
        stored = compose.load(folder / "config.yaml")
        changed = [
            f"{key} was {old}, is {new}"
            for key, old, new in compose.differences(asdict(stored), asdict(config))
            if key not in MAY_CHANGE
        ]
        if changed:
            raise UserError(
                f"{folder}: this run was started with other settings: {'; '.join(changed)}; "
                "set them back, or take another run_dir=DIR"
            )


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _fill_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition(".")
        optimizer.state[parameters[owner]][key] = tensor.to(parameters[owner].device)
