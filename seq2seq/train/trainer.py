"""The training loop: update, report, validate, save; stop; go on."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seq2seq.config.compose import to_yaml
from seq2seq.config.schema import Config
from seq2seq.data.batches import Sampler, in_order, micro_batches
from seq2seq.data.prepare import Prepared
from seq2seq.evaluate.scores import bleu, bleu_signature
from seq2seq.model.directory import fill, own_weights, save_model_directory
from seq2seq.model.translation import build_model, count_parameters
from seq2seq.support.devices import choose_device, choose_precision, keep_freed_memory
from seq2seq.support.errors import RunError, Stopped, UserError
from seq2seq.support.files import read_json, remove_leftovers, write_json, write_text
from seq2seq.support.progress import bar, say
from seq2seq.train.averaging import average_weights
from seq2seq.train.checkpoint import REMEDY, Checkpoints, Progress
from seq2seq.train.loss import batch_loss
from seq2seq.train.optimizer import build_optimizer
from seq2seq.train.report import Report
from seq2seq.train.schedule import learning_rate
from seq2seq.translate.translator import Translator


class Trainer:
    """Trains a model on prepared data in `config.run_dir`, from scratch or from its newest checkpoint."""

    def __init__(self, config: Config, data: Prepared) -> None:
        self.config, self.data = config, data
        self.run_dir = Path(config.run_dir)
        self.end = self.run_dir / "end.json"
        self.device = choose_device(config.trainer.device)
        self.precision = choose_precision(config.trainer.precision, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.model = build_model(config.model, data.tokenizer.vocab_size, config.seed).to(self.device)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.checkpoints = Checkpoints(self.run_dir)
        self.sampler = Sampler(data.train, config.data.batch_tokens, config.seed)
        self.progress = Progress(data_sha256=data.data_sha256)
        self._signal = 0

    def run(self) -> None:
        """Train to the end and leave the final model in `run_dir/model`.

        Raises RunError on a non-finite loss, Stopped when a signal ended the run (its state saved), UserError when
        the run directory belongs to another configuration.
        """
        remove_leftovers(self.run_dir)
        found = self.checkpoints.resume(self.model, self.optimizer, self.config)
        if found:
            self.progress = found
            if found.data_sha256 != self.data.data_sha256:
                raise UserError(
                    f"{self.run_dir}: the training data are not those that this run was started with; "
                    "restore them, or take another run_dir=DIR"
                )
            end = read_json(self.end) if self.end.is_file() else {"step": 0, "bleu": -1.0}
            if self._finished() and end["step"] == found.step:
                say(f"this run is finished (step {found.step:,}); its model: {self.run_dir / 'model'}")
                return
            found.best_bleu = max(found.best_bleu, end["bleu"])
            say(f"going on from step {found.step:,}")
        else:
            say(
                f"{count_parameters(self.model):,} parameters, {len(self.data.train):,} pairs, "
                f"{self.device.type} in {str(self.precision).removeprefix('torch.')}"
            )
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_text(self.run_dir / "config.yaml", to_yaml(self.config))
        self.report = Report(self.run_dir, self.config.trainer.log_seconds)
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._train()
            self._finish()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.report.close()

    def _train(self) -> None:
        settings, progress = self.config.trainer, self.progress
        updates = self.sampler.epoch(progress.epoch)
        self.model.train()
        while not self._finished():
            if progress.update >= len(updates):
                progress.epoch, progress.update = progress.epoch + 1, 0
                updates = self.sampler.epoch(progress.epoch)
            started = time.monotonic()
            try:
                self._update(updates[progress.update])
            except torch.OutOfMemoryError:
                parts = 2 * self.config.data.micro_batches
                raise RunError(
                    f"step {progress.step}: an update of {self.config.data.batch_tokens} tokens a side does not fit "
                    f"the device's memory; type data.micro_batches={parts} and another run_dir=DIR"
                ) from None
            progress.update += 1
            progress.seconds += time.monotonic() - started
            if progress.step % settings.validate_every == 0 or self._finished():
                self._validate()
            if progress.step % settings.save_every == 0 or self._signal or self._finished():
                self._save()
            if self._signal:
                name = signal.Signals(self._signal).name
                raise Stopped(
                    self._signal, f"stopped by {name} at step {progress.step:,}, saved; the same command goes on"
                )

    def _update(self, pairs: NDArray[np.int64]) -> None:
        config, progress = self.config, self.progress
        progress.step += 1
        rate = learning_rate(progress.step, config.schedule, config.model.d_model, config.trainer.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        source_tokens, target_tokens = (int(lengths[pairs].sum()) for lengths in self.data.train.lengths)
        sums = torch.zeros(2, device=self.device)
        for index, batch in enumerate(micro_batches(self.data.train, pairs, config.data.micro_batches)):
            # Dropout depends on (seed, update, micro-batch) alone, not on how often the run was stopped.
            torch.manual_seed(_seed_of(config.seed, progress.step, index))
            with self._autocast():
                loss, nll = batch_loss(self.model, batch.to(self.device), config.trainer.label_smoothing)
            (loss / target_tokens).backward()
            sums += torch.stack((loss.detach(), nll))
        total, nll_total = sums.tolist()
        if not math.isfinite(total):
            raise RunError(f"step {progress.step}: the loss is {total}; the weights were not updated. {REMEDY}")
        if config.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress.source_tokens += source_tokens
        progress.target_tokens += target_tokens
        self.report.update(progress.step, (total, nll_total), (source_tokens, target_tokens), rate, self._left())

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def _left(self) -> tuple[int, float]:
        settings = self.config.trainer
        minutes = settings.max_minutes if settings.max_minutes is not None else math.inf
        return settings.max_steps - self.progress.step, minutes * 60 - self.progress.seconds

    def _finished(self) -> bool:
        steps, seconds = self._left()
        patience = self.config.trainer.patience
        return steps <= 0 or seconds <= 0 or (patience is not None and self.progress.validations_since_best >= patience)

    def _validate(self) -> None:
        progress = self.progress
        values = self._scores()
        self.report.record("valid", progress.step, values)
        say(f"validation at step {progress.step:,}: perplexity {values['perplexity']:.2f}, BLEU {values['bleu']:.2f}")
        for sample in values["samples"]:
            say(f"    {sample['source']}\n  = {sample['hypothesis']}\n  ~ {sample['reference']}")
        if values["bleu"] > progress.best_bleu:
            progress.best_bleu, progress.validations_since_best = values["bleu"], 0
            self._save_model(own_weights(self.model), progress.step, values)
        else:
            progress.validations_since_best += 1

    def _scores(self) -> dict[str, Any]:
        """Loss, perplexity and BLEU on the validation split, and sample translations."""
        data, settings = self.data, self.config.trainer
        started = time.monotonic()
        self.model.eval()
        nll = 0.0
        with torch.no_grad(), bar("validating", len(data.valid), unit="pairs") as progress:
            for batch in in_order(data.valid, max(self.config.data.batch_tokens, int(np.max(data.valid.lengths)))):
                with self._autocast():
                    nll += float(batch_loss(self.model, batch.to(self.device), 0.0)[1])
                progress.update(batch.target_layout.batch_size)
        loss = nll / float(data.valid.lengths[1].sum())
        translator = Translator.of(self.model, data.tokenizer, self.config)
        hypotheses = translator.translate([pair.source for pair in data.valid_text])
        self.model.train()
        self.report.skip_pause()
        samples = [
            {"source": pair.source, "hypothesis": hypothesis, "reference": pair.target}
            for pair, hypothesis in list(zip(data.valid_text, hypotheses, strict=True))[: settings.samples]
        ]
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 50.0)),
            "bleu": bleu(hypotheses, [pair.target for pair in data.valid_text]),
            "epoch": self.progress.epoch,
            "source_tokens": self.progress.source_tokens,
            "target_tokens": self.progress.target_tokens,
            "minutes_trained": self.progress.seconds / 60,
            "validation_seconds": time.monotonic() - started,
            "samples": samples,
        }

    def _save(self) -> None:
        self.checkpoints.save(
            self.model, self.optimizer, self.progress, self.config, self.config.trainer.keep_checkpoints
        )
        self.report.skip_pause()

    def _save_model(self, weights: dict[str, torch.Tensor], steps: int, values: dict[str, Any]) -> None:
        save_model_directory(
            self.run_dir / "model",
            self.config,
            self.data.tokenizer,
            weights,
            data_sha256=self.data.data_sha256,
            steps=steps,
            valid={"loss": values["loss"], "bleu": values["bleu"], "signature": bleu_signature()},
        )

    def _finish(self) -> None:
        """Leave the better model by validation BLEU: the best one seen, or the average of the last checkpoints."""
        count = self.config.trainer.average_last
        folders = self.checkpoints.regular(self.config.trainer.save_every)[-count:] if count else []
        best = self.progress.best_bleu
        if len(folders) > 1:
            fill(self.model, average_weights([folder / "model.safetensors" for folder in folders]), folders[-1])
            values = self._scores()
            self.report.record("average", self.progress.step, {"checkpoints": len(folders), **values})
            say(f"average of the last {len(folders)} checkpoints: BLEU {values['bleu']:.2f}; best single: {best:.2f}")
            if values["bleu"] >= best:
                self._save_model(own_weights(self.model), self.progress.step, values)
                best = values["bleu"]
        write_json(self.end, {"step": self.progress.step, "bleu": best})
        say(f"finished after {self.progress.seconds / 60:.1f} minutes of training; the model: {self.run_dir / 'model'}")

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._signal:
            raise Stopped(number, "stopped at once; the last save stands")
        self._signal = number
        say(f"{signal.Signals(number).name}: saving after this step")


def _seed_of(*numbers: int) -> int:
    """One seed out of several numbers, the same in every process."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
