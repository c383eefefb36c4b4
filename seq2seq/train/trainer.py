"""The training loop: update, report, validate, save; stop; go on."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from seq2seq.config.compose import to_yaml
from seq2seq.config.schema import Config
from seq2seq.data.batches import Batch, Sampler, micro_batches
from seq2seq.data.prepare import Prepared
from seq2seq.evaluate.scores import bleu_signature
from seq2seq.model.directory import fill, own_weights, save_model_directory
from seq2seq.model.translation import TranslationModel, build_model, count_parameters
from seq2seq.support.devices import autocast, choose_device, choose_precision, keep_freed_memory
from seq2seq.support.errors import RunError, Stopped, UserError
from seq2seq.support.files import read_json, remove_leftovers, write_json, write_text
from seq2seq.support.progress import say
from seq2seq.train.averaging import average_weights, blend
from seq2seq.train.checkpoint import REMEDY, Checkpoints, Progress
from seq2seq.train.distributed import World, require_shareable
from seq2seq.train.loss import BatchLoss
from seq2seq.train.optimizer import build_optimizer
from seq2seq.train.report import Report
from seq2seq.train.schedule import learning_rate
from seq2seq.train.validation import validate
from seq2seq.train.warm_start import starting_weights

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ONE_SIGNAL = 5.0
"""Seconds within which a second signal is taken for the same one: launchers pass on what the rank got already."""


class Trainer:
    """Trains a model on prepared data in `config.run_dir`, from scratch or from its newest checkpoint."""

    def __init__(self, config: Config, data: Prepared, world: World | None = None) -> None:
        self.config, self.data, self.world = config, data, world or World()
        self.run_dir = Path(config.run_dir)
        self.end = self.run_dir / "end.json"
        self.device = choose_device(config.trainer.device, self.world.local_rank if self.world.size > 1 else None)
        self.precision = choose_precision(config.trainer.precision, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        elif self.device.index is not None:
            torch.cuda.set_device(self.device)
        self.model = build_model(config.model, data.tokenizer.vocab_size, config.seed).to(self.device)
        self.checkpoints = Checkpoints(self.run_dir)
        if config.init_from and not self.checkpoints.all():
            fill(self.model, starting_weights(config), Path(config.init_from))
        self.average = copy.deepcopy(self.model) if config.trainer.average_decay is not None else None
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.sampler = Sampler(data.train, config.data.batch_tokens, config.seed)
        self.progress = Progress(
            data_sha256=data.data_sha256, micro_batches=config.data.micro_batches or self.world.size
        )
        self._signal, self._signal_time, self._is_saved = 0, 0.0, False

    def run(self) -> None:
        """Train to the end and leave the final model in `run_dir/model`.

        Raises RunError on a non-finite loss, Stopped when a signal ended the run (its state saved), UserError when
        the run directory belongs to another configuration, its micro-batches do not suit the number of ranks, or the
        ranks do not find the same state in it.
        """
        if self.world.is_main:
            for folder in (self.run_dir, self.checkpoints.directory):
                remove_leftovers(folder)
        found = self.checkpoints.resume(self.model, self.optimizer, self.config, self.average)
        if found:
            self.progress = found
            if found.data_sha256 != self.data.data_sha256:
                raise UserError(
                    f"{self.run_dir}: the training data are not those that this run was started with; "
                    "restore them, or take another run_dir=DIR"
                )
            end = read_json(self.end) if self.end.is_file() else {"step": 0, "bleu": -1.0}
            self._require_same_state(end)
            if self._finished() and end["step"] == found.step:
                say(f"this run is finished (step {found.step:,}); its model: {self.run_dir / 'model'}")
                return
            found.best_bleu = max(found.best_bleu, end["bleu"])
            say(f"going on from step {found.step:,}")
        else:
            self._require_same_state({})
            say(
                f"{count_parameters(self.model):,} parameters, {len(self.data.train):,} pairs, "
                f"{self.world.size} x {self.device.type} in {str(self.precision).removeprefix('torch.')}"
            )
        require_shareable(self.progress.micro_batches, self.world.size)
        self.loss = self.world.synchronised(BatchLoss(self.model))
        if self.world.is_main:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            write_text(self.run_dir / "config.yaml", to_yaml(self.config))
        self.report = Report(self.run_dir if self.world.is_main else None, self.config.trainer.log_seconds)
        handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            self._train()
            self._finish()
        except torch.OutOfMemoryError:
            parts = self.progress.micro_batches
            raise RunError(
                f"step {self.progress.step}: an update of {self.config.data.batch_tokens} tokens a side in {parts} "
                f"parts does not fit the device's memory; type data.micro_batches={2 * parts} and another run_dir=DIR"
            ) from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.report.close()

    def _require_same_state(self, end: dict[str, Any]) -> None:
        state = {**asdict(self.progress), "data_sha256": self.data.data_sha256, "end": end}
        self.world.require_same({"device": self.device.type, "precision": str(self.precision), **state})

    def _train(self) -> None:
        settings, progress = self.config.trainer, self.progress
        updates = self.sampler.epoch(progress.epoch)
        self.model.train()
        if self.world.size > 1:
            # The graph is recorded in the first backward pass, which must be one that synchronises.
            self._backward(Batch.of(self.data.train, np.arange(1)), 0.0)
            self.optimizer.zero_grad(set_to_none=True)
        if progress.step and progress.validated < progress.step and self._is_due():
            self._validate()
        while not self._finished():
            if progress.update >= len(updates):
                progress.epoch, progress.update = progress.epoch + 1, 0
                updates = self.sampler.epoch(progress.epoch)
            stop = self._update(updates[progress.update])
            progress.update += 1
            if progress.step % settings.save_every == 0 or stop or self._is_due():
                self._save()
            if stop:
                raise self._stopped(stop)
            if self._is_due():
                self._validate()

    def _is_due(self) -> bool:
        """Whether this step is one to validate."""
        return self.progress.step % self.config.trainer.validate_every == 0 or self._finished()

    def _all_is_saved(self, yes: bool) -> None:
        """While it is, a signal ends the run at once: a validation may be long, and is made up for."""
        self._is_saved = yes
        if yes and self._signal:
            raise self._stopped(self._signal)

    def _stopped(self, number: int) -> Stopped:
        name = signal.Signals(number).name
        return Stopped(number, f"stopped by {name} at step {self.progress.step:,}, saved; the same command goes on")

    def _update(self, pairs: NDArray[np.int64]) -> int:
        """One update by all ranks; returns the signal that any of them got, or 0."""
        started = time.monotonic()
        config, progress = self.config, self.progress
        progress.step += 1
        rate = learning_rate(progress.step, config.schedule, config.model.d_model, config.trainer.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        source_tokens, target_tokens = (int(lengths[pairs].sum()) for lengths in self.data.train.lengths)
        sums = self._gradients(pairs, target_tokens)
        # Signals differ between ranks. Asked before anything waits for the device: a rank that is gone shows here.
        caught = self.world.sum([float(self._signal == number) for number in SIGNALS])
        loss_sum, nll_sum = self.world.sum(sums.tolist())
        parameters = list(self.model.parameters())
        norm = get_total_norm([weight.grad for weight in parameters if weight.grad is not None])
        if not math.isfinite(loss_sum + float(norm)):
            raise RunError(
                f"step {progress.step}: the loss is {loss_sum}, the norm of its gradient {float(norm)}; "
                f"the weights were not updated. {REMEDY}"
            )
        if config.optimizer.clip_norm is not None:
            clip_grads_with_norm_(parameters, config.optimizer.clip_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average and config.trainer.average_decay is not None:
            blend(self.average, self.model, config.trainer.average_decay, progress.step)
        # Clocks differ between ranks too; max_minutes is by that of rank 0.
        (seconds,) = self.world.sum([time.monotonic() - started if self.world.is_main else 0.0])
        progress.seconds += seconds
        progress.source_tokens += source_tokens
        progress.target_tokens += target_tokens
        self.report.update(progress.step, (loss_sum, nll_sum), (source_tokens, target_tokens), rate, self._left())
        return next((int(number) for number, ranks in zip(SIGNALS, caught, strict=True) if ranks), 0)

    def _gradients(self, pairs: NDArray[np.int64], target_tokens: int) -> Tensor:
        """Leave the gradients of the mean loss of an update in the model; returns this rank's sums of loss and nll."""
        sums = torch.zeros(2, device=self.device)
        mine = list(
            micro_batches(self.data.train, pairs, self.progress.micro_batches, self.world.rank, self.world.size)
        )
        for index, batch, weight in mine:
            # Dropout depends on (seed, update, micro-batch) alone: neither on stops nor on the number of ranks.
            torch.manual_seed(_seed_of(self.config.seed, self.progress.step, index))
            last = index == mine[-1][0]
            with contextlib.nullcontext() if last else self.world.alone(self.loss):
                # Ranks are averaged, not summed.
                sums += weight * self._backward(batch, weight * self.world.size / target_tokens)
        return sums

    def _backward(self, batch: Batch, scale: float) -> Tensor:
        with autocast(self.device, self.precision):
            loss, nll = self.loss(batch.to(self.device), self.config.trainer.label_smoothing)
        (loss * scale).backward()
        return torch.stack((loss.detach(), nll))

    def _left(self) -> tuple[int, float]:
        settings = self.config.trainer
        minutes = settings.max_minutes if settings.max_minutes is not None else math.inf
        return settings.max_steps - self.progress.step, minutes * 60 - self.progress.seconds

    def _finished(self) -> bool:
        steps, seconds = self._left()
        patience = self.config.trainer.patience
        return steps <= 0 or seconds <= 0 or (patience is not None and self.progress.validations_since_best >= patience)

    def _validate(self) -> None:
        progress, model = self.progress, self.average or self.model
        self._all_is_saved(True)
        values = self._scores(model)
        self._all_is_saved(False)
        progress.validated = progress.step
        self.report.record("valid", progress.step, values)
        say(f"validation at step {progress.step:,}: perplexity {values['perplexity']:.2f}, BLEU {values['bleu']:.2f}")
        for sample in values["samples"]:
            say(f"    {sample['source']}\n  = {sample['hypothesis']}\n  ~ {sample['reference']}")
        if values["bleu"] > progress.best_bleu:
            progress.best_bleu, progress.validations_since_best = values["bleu"], 0
            self._save_model(model, values)
        else:
            progress.validations_since_best += 1
        self._save()

    def _scores(self, model: TranslationModel) -> dict[str, Any]:
        values = validate(model, self.data, self.config, self.world, self.precision)
        self.report.skip_pause()
        counts = {key: getattr(self.progress, key) for key in ("epoch", "source_tokens", "target_tokens")}
        return {**values, **counts, "minutes_trained": self.progress.seconds / 60}

    def _save(self) -> None:
        if self.world.is_main:
            self.checkpoints.save(self.model, self.optimizer, self.progress, self.config, self.average)
        self.report.skip_pause()

    def _save_model(self, model: TranslationModel, values: dict[str, Any]) -> None:
        if not self.world.is_main:
            return
        save_model_directory(
            self.run_dir / "model",
            self.config,
            self.data.tokenizer,
            own_weights(model),
            data_sha256=self.data.data_sha256,
            longest_source=self.data.longest_source,
            steps=self.progress.step,
            valid={"loss": values["loss"], "bleu": values["bleu"], "signature": bleu_signature()},
        )

    def _finish(self) -> None:
        """Leave the better model by validation BLEU: the best one seen, or the average of the last checkpoints."""
        self.world.wait()
        self._all_is_saved(True)
        count = self.config.trainer.average_last
        folders = self.checkpoints.regular(self.config.trainer.save_every)[-count:] if count else []
        best = self.progress.best_bleu
        if len(folders) > 1:
            fill(self.model, average_weights([folder / "model.safetensors" for folder in folders]), folders[-1])
            values = self._scores(self.model)
            self.report.record("average", self.progress.step, {"checkpoints": len(folders), **values})
            say(f"average of the last {len(folders)} checkpoints: BLEU {values['bleu']:.2f}; best single: {best:.2f}")
            if values["bleu"] >= best:
                self._save_model(self.model, values)
                best = values["bleu"]
        if self.world.is_main:
            write_json(self.end, {"step": self.progress.step, "bleu": best})
        self.world.wait()
        say(f"finished after {self.progress.seconds / 60:.1f} minutes of training; the model: {self.run_dir / 'model'}")

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._signal and time.monotonic() - self._signal_time > ONE_SIGNAL:
            raise Stopped(number, "stopped at once; the last save stands")
        if not self._signal:
            self._signal, self._signal_time = number, time.monotonic()
            if self._is_saved:
                raise self._stopped(number)


def _seed_of(*numbers: int) -> int:
    """One seed out of several numbers, the same in every process."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
