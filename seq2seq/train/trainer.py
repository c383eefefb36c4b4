"""The training loop: update, report, validate, save; stop and resume."""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seq2seq.config.compose import to_yaml
from seq2seq.config.schema import Config
from seq2seq.data.batches import Sampler, micro_batches
from seq2seq.data.prefetch import prefetched
from seq2seq.data.prepare import Prepared
from seq2seq.evaluate.scores import language_mismatch
from seq2seq.model.translation import TranslationModel, build_model, count_parameters
from seq2seq.model.weights import fill
from seq2seq.support.devices import SHAPES_OF_TRAINING, choose_device, keep_freed_memory, limit_compiled_shapes
from seq2seq.support.errors import OutOfMemory, ReportedError, RunError, Stopped, UserError
from seq2seq.support.files import remove_leftovers, write_json, write_text
from seq2seq.support.manifest import MANIFEST
from seq2seq.support.progress import say
from seq2seq.train.averaging import average_weights
from seq2seq.train.checkpoint import Progress, intact, step_of
from seq2seq.train.distributed import World, require_shareable
from seq2seq.train.fitting import choose_parts
from seq2seq.train.health import Health
from seq2seq.train.interrupts import SIGNALS, Interrupts
from seq2seq.train.report import Report
from seq2seq.train.saves import Saves
from seq2seq.train.schedule import learning_rate
from seq2seq.train.update import Pending, Update
from seq2seq.train.updater import Updater
from seq2seq.train.validation import validate
from seq2seq.train.warm_start import take_weights


class Trainer:
    """Trains a model on prepared data in `config.run_dir`, from scratch or from its newest checkpoint."""

    def __init__(self, config: Config, data: Prepared, world: World | None = None) -> None:
        self.config, self.data, self.world = config, data, world or World()
        self.run_dir = Path(config.run_dir)
        self.device = choose_device(config.trainer.device, self.world.local_rank if self.world.size > 1 else None)
        if self.device.type == "cpu":
            keep_freed_memory()
            limit_compiled_shapes(SHAPES_OF_TRAINING)
        elif self.device.index is not None:
            torch.cuda.set_device(self.device)
        if self.device.type == "cuda" and config.trainer.deterministic and config.search.sampling:
            raise UserError("trainer.deterministic: not with search.sampling on a GPU; leave one out")
        self.model = build_model(config.model, data.tokenizer.vocab_size, config.seed).to(self.device)
        self.saves = Saves(config, data, self.world)
        self.checkpoints = self.saves.checkpoints
        if config.init_from and not self.checkpoints.all():
            take_weights(self.model, Path(config.init_from))
        self.updater = Updater(self.model, config, self.world)
        self.sampler = Sampler(data.train, config.data.batch_tokens, config.seed)
        self._hashes = {"data_sha256": data.data_sha256, "valid_sha256": data.valid.sha256}
        self.progress = Progress(micro_batches=config.data.micro_batches or 0, **self._hashes)  # type: ignore[arg-type]
        self.interrupts = Interrupts(self._stopped)
        self._spike: int | None = None
        self._pending: Pending | None = None
        self._clock = time.monotonic()

    def run(self) -> None:
        """Train to the end and leave the final model in `run_dir/model`.

        Raises RunError after `trainer.max_skipped` updates in a row whose gradients were not finite, Stopped when a
        signal ended the run (its state saved), UserError when the run directory belongs to another configuration, its
        micro-batches do not suit the number of ranks, or the ranks do not find the same state in it.
        """
        if self.world.is_main:
            for folder in (self.run_dir, self.checkpoints.directory):
                remove_leftovers(folder)
        found = self._resume()
        has_model = self.world.gather((self.run_dir / "model" / MANIFEST).is_file())[0]
        was_finished = found is not None and self._restore(found, has_model=has_model)
        if was_finished and has_model:
            say(
                f"this run is finished (step {self.progress.step:,}: {self._end_reason()}); "
                f"its model: {self.run_dir / 'model'}"
            )
            return
        if found:
            say(f"resuming from step {found.step:,}")
        else:
            self._require_same_state({})
            say(
                f"{count_parameters(self.model):,} parameters, {len(self.data.train):,} pairs, "
                f"{self.world.size} x {self.device.type} in {str(self.updater.precision).removeprefix('torch.')}"
            )
            references = [pair.target for pair in self.data.valid_text]
            if advice := language_mismatch(references, self.config.data.target_language):
                say(f"{advice}; type data.target_language=L and another run_dir=DIR, or the best model is chosen badly")
        self._choose_micro_batches()
        require_shareable(self.progress.micro_batches, self.world.size)
        if self.world.is_main:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            write_text(self.run_dir / "config.yaml", to_yaml(self.config))
            if not found:
                # Of a finished run whose checkpoints were removed.
                self.saves.end_file.unlink(missing_ok=True)
        self.report = Report(
            self.run_dir if self.world.is_main else None, self.config.trainer.log_seconds, self.progress.seconds
        )
        self.health = Health(self.config.trainer, self.progress, self.report, self.data, self.world)
        try:
            with self.interrupts, self.saves.thread:
                if was_finished:
                    self._validate()
                else:
                    self._train()
                self.saves.thread.wait()
                with self.interrupts.ending_the_run_at_once():
                    self._finish()
        except torch.OutOfMemoryError:
            raise self._too_large(self.progress.micro_batches) from None
        finally:
            self.report.close()

    def _too_large(self, parts: int) -> RunError:
        return RunError(
            f"step {self.progress.step}: an update of {self.config.data.batch_tokens} tokens a side in {parts} "
            f"parts does not fit the device's memory; type data.micro_batches={2 * parts} and another run_dir=DIR"
        )

    def _resume(self) -> Progress | None:
        return self.checkpoints.resume(self.model, self.updater.optimizer, self.config, self.updater.average)

    def _restore(self, found: Progress, *, has_model: bool) -> bool:
        """Take up the progress of a checkpoint; returns whether the run was finished there. Raises UserError."""
        self.progress = found
        for name, key in (("training", "data_sha256"), ("validation", "valid_sha256")):
            # Runs begun before 2026-11-28 do not know the second.
            if getattr(found, key) not in ("", self._hashes[key]):
                raise UserError(
                    f"{self.run_dir}: the {name} data are not those that this run was started with; "
                    "restore them, or take another run_dir=DIR"
                )
        found.valid_sha256 = self._hashes["valid_sha256"]
        end = self.saves.end()
        self._require_same_state(end)
        # If the model was removed, the next one is the best there is.
        found.best_bleu = max(found.best_bleu, end["bleu"]) if has_model else -1.0
        return self._finished() and bool(end["step"] == found.step)

    def _require_same_state(self, end: dict[str, Any]) -> None:
        state = {**asdict(self.progress), **self._hashes, "end": end}
        device = self.device.type
        if self.config.optimizer.kind == "muon":
            # Its products have the same bits on all ranks only where they are computed by the same kernels.
            device = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
        self.world.require_same({"device": device, "precision": str(self.updater.precision), **state})

    def _choose_micro_batches(self) -> None:
        """Split updates into as few parts as fit in memory; a number given, or chosen before, is only tried out."""
        tokens, given = self.config.data.batch_tokens, self.progress.micro_batches
        try:
            parts = choose_parts(self.updater, self.data.train, self.sampler, given)
        except torch.OutOfMemoryError:
            raise self._too_large(given) from None
        # The amount of memory differs between ranks.
        parts = max(self.world.gather(parts))
        if parts not in (given, self.world.size):
            say(f"updates of {tokens:,} tokens a side are computed in {parts} parts (data.micro_batches={parts})")
        self.progress.micro_batches = parts

    def _train(self) -> None:
        settings, progress = self.config.trainer, self.progress
        self.updater.start()
        if progress.step and progress.validated < progress.step and self._is_due():
            self._validate()
        self._restart_clock()
        with contextlib.closing(self._updates()) as updates:
            while not self._finished():
                stop = self.train_step(next(updates))
                progress.update += 1
                self.saves.thread.check()
                to_save = progress.step % settings.save_every == 0 or bool(stop) or self._is_due()
                if to_save:
                    stop = self._settle() or stop
                    if stop or self._finished():
                        self.report.tell()
                went_back = self._spike is not None and self._go_back(self._spike)
                if to_save and not went_back:
                    progress.rollbacks = 0
                    self._save()
                if stop:
                    self.saves.thread.wait()
                    raise self._stopped(stop)
                if self._is_due() and not went_back:
                    self._validate()
        # Some updates are still to be reported if patience ended the run.
        self.report.tell()
        if not progress.validated:
            # Time ran out just when the run had gone back.
            self._validate()

    def _updates(self) -> Generator[Update]:
        """The updates from where the run stands, prepared ahead of time by a thread."""
        data, progress, world = self.data.train, self.progress, self.world

        def make(pairs: NDArray[np.int64]) -> Update:
            source, target = (int(lengths[pairs].sum()) for lengths in data.lengths)
            parts = micro_batches(data, pairs, progress.micro_batches, world.rank, world.size)
            ready = [part._replace(batch=self.updater.ready(part.batch)) for part in parts]
            return Update(pairs.tolist(), (source, target), ready)

        while True:
            updates = self.sampler.epoch(progress.epoch)
            yield from prefetched(make, (updates[index] for index in range(progress.update, len(updates))))
            del updates  # before the next epoch's are made: they are most of the memory for a large corpus
            progress.epoch, progress.update = progress.epoch + 1, 0

    def _is_due(self) -> bool:
        """Whether to validate at this step."""
        return self.progress.step % self.config.trainer.validate_every == 0 or self._finished()

    def _stopped(self, number: int) -> ReportedError:
        name, step = signal.Signals(number).name, self.progress.step
        return self.saves.error() or Stopped(
            number, f"stopped by {name} at step {step:,}, saved; rerun the same command to resume"
        )

    def train_step(self, update: Update) -> int:
        """One update by all ranks; returns the signal that any of them got, or 0.

        Nothing waits for the device to finish it: whether the gradient was finite is decided there, and read one
        update later.
        """
        config, progress = self.config, self.progress
        progress.step += 1
        rate = learning_rate(progress.step, config.schedule, config.model.d_model, config.trainer.max_steps)
        sums = self.updater.gradients(update.parts, update.tokens[1], progress.step)
        # Before anything waits for this update's weights: a dead rank is noticed here.
        signal_number = self._settle()
        norm = self.updater.apply(rate, progress.step)
        self._pending = Pending(progress.step, rate, update.tokens, update.pairs, torch.stack((*sums, norm)))
        return signal_number

    def _settle(self) -> int:
        """Share what the ranks know of the previous update and count it; returns the signal that any of them got, or 0.

        Raises RunError after `trainer.max_skipped` updates in a row whose gradients were not finite.
        """
        pending, self._pending = self._pending, None
        progress, now = self.progress, time.monotonic()
        # Clocks and signals differ between ranks; max_minutes goes by the clock of rank 0.
        seconds = now - self._clock if self.world.is_main else 0.0
        self._clock = now
        outcome = pending.outcome() if pending else [0.0, 0.0, 0.0]
        loss, nll, norms, seconds, *caught = self.world.sum(
            [*outcome, seconds, *(float(self.interrupts.caught == n) for n in SIGNALS)]
        )
        progress.seconds += seconds
        if pending:
            progress.source_tokens += pending.tokens[0]
            progress.target_tokens += pending.tokens[1]
            if self.health.accept(pending, loss, norms / self.world.size):
                trained, left = progress.seconds, self._left()
                self.report.update(pending.step, (loss, nll), pending.tokens, pending.rate, trained, left)
                # Where it saves, a step settles twice.
                self._spike = self._spike or self.health.spike(pending, loss)
        return next((int(number) for number, ranks in zip(SIGNALS, caught, strict=True) if ranks), 0)

    def _left(self) -> tuple[int, float]:
        """Updates and seconds of training that are left."""
        steps, minutes = self.config.trainer.max_steps, self.config.trainer.max_minutes
        return steps - self.progress.step, (math.inf if minutes is None else minutes * 60) - self.progress.seconds

    def _end_reason(self) -> str:
        """Which setting ends the run here, in words; empty while none does."""
        settings, (steps, seconds) = self.config.trainer, self._left()
        if steps <= 0:
            return f"trainer.max_steps={settings.max_steps}"
        if seconds <= 0:
            return f"trainer.max_minutes={settings.max_minutes:g}"
        if settings.patience is not None and self.progress.validations_since_best >= settings.patience:
            return f"no better validation BLEU in trainer.patience={settings.patience} validations"
        return ""

    def _finished(self) -> bool:
        return bool(self._end_reason())

    def _validate(self) -> None:
        progress, model = self.progress, self.updater.average or self.model
        # A signal ends a validation at once, since all is saved.
        self.saves.thread.wait()
        with self.interrupts.ending_the_run_at_once():
            values = self._scores(model)
        progress.validated = progress.step
        self.report.record("valid", progress.step, values)
        say(f"validation at step {progress.step:,}: perplexity {values['perplexity']:.2f}, BLEU {values['bleu']:.2f}")
        for sample in values["samples"]:
            for side in ("source", "hypothesis", "reference"):
                say(f"    {side + ':':12}{sample[side]}")
        progress.validations_since_best += 1
        if values["bleu"] > progress.best_bleu and self.saves.model(model, progress.step, values):
            progress.best_bleu, progress.best_step, progress.validations_since_best = values["bleu"], progress.step, 0
        self._save()

    def _restart_clock(self) -> None:
        """Exclude what was done since the last update from the training time, and so from the rates."""
        self._clock = time.monotonic()

    def _scores(self, model: TranslationModel) -> dict[str, Any]:
        step, parts = self.progress.step, self.progress.micro_batches
        while True:
            try:
                values = validate(model, self.data, self.config, self.world, self.updater.precision, parts)
                break
            except (torch.OutOfMemoryError, OutOfMemory):
                # Graphs hold memory for passes that do not run now.
                if not self.updater.end_recording():
                    raise RunError(
                        f"step {step}: validation does not fit the device's memory beside training; the last "
                        "checkpoint is kept: free memory, or take a larger device, and rerun the same command"
                    ) from None
        # PyTorch would keep cached what search freed, where training passes, with their own pool, cannot use it.
        torch.cuda.empty_cache()
        counts = {key: getattr(self.progress, key) for key in ("epoch", "source_tokens", "target_tokens")}
        return {**values, **counts, "minutes_trained": self.progress.seconds / 60}

    def _save(self) -> None:
        self.saves.checkpoint(self.model, self.updater.optimizer, self.progress, self.updater.average)
        self._restart_clock()

    def _go_back(self, since: int) -> bool:
        """Take the weights of the last checkpoint before step `since` and save them with the current place in the data.

        The same pairs again would make the same spike: updates are a function of the seed. Returns False if there is no
        such checkpoint.
        """
        progress, self._spike = self.progress, None
        self.saves.thread.wait()
        # Rank 0 decides: what the others see of its disk may be out of date.
        if not self.world.gather(any(step_of(folder) < since for folder in self.checkpoints.all()))[0]:
            say("there is no checkpoint before it to go back to; going on")
            self._restart_clock()
            return False
        self.world.wait()
        if self.world.is_main:
            self.checkpoints.drop_since(since)
        self.world.wait()
        found = self._resume()
        assert found
        self._pending = None
        progress.step, progress.skipped, progress.losses = found.step, found.skipped, found.losses
        progress.validated = found.validated
        progress.rollbacks += 1
        say(f"back at step {found.step:,}; the pairs of the updates since are left out")
        # The save replaces the checkpoint that the others read.
        self.world.wait()
        self._save()
        return True

    def _to_average(self) -> list[Path]:
        count = self.config.trainer.average_last
        folders = self.checkpoints.regular(self.config.trainer.save_every)[-count:] if count else []
        return intact(folders)

    def _finish(self) -> None:
        """Leave the model of better validation BLEU: the best one seen, or the average of the last checkpoints."""
        self.world.wait()
        # Rank 0 decides here too.
        folders = self.world.gather(self._to_average() if self.world.is_main else [])[0]
        best = self.progress.best_bleu
        if len(folders) > 1:
            fill(self.model, average_weights([folder / "model.safetensors" for folder in folders]), folders[-1])
            values = self._scores(self.model)
            self.report.record("average", self.progress.step, {"checkpoints": len(folders), **values})
            say(f"average of the last {len(folders)} checkpoints: BLEU {values['bleu']:.2f}; best before: {best:.2f}")
            if values["bleu"] >= best and self.saves.model(self.model, self.progress.step, values):
                best = values["bleu"]
        if error := self.saves.error():
            raise error
        if self.world.is_main:
            write_json(self.saves.end_file, {"step": self.progress.step, "bleu": best})
        self.world.wait()
        model = self.run_dir / "model"
        step, warmup = self.progress.step, self.config.schedule.warmup_steps
        if step < warmup and not self.config.init_from:
            say(
                f"this run ended at step {step:,}, while its learning rate was still rising: its model is far from "
                "what it could be; train longer, or in another run_dir with fewer schedule.warmup_steps than "
                f"{warmup:,}"
            )
        minutes, why = self.progress.seconds / 60, self._end_reason()
        say(f"finished after {minutes:.1f} minutes of training{f' ({why})' if why else ''}; the model: {model}")
        say(f"to translate with it: seq2seq-translate --model {shlex.quote(str(model))} < input.txt")
