"""What an update computes on the device: the gradients of its micro-batches, and the change to the weights."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from seq2seq.config.schema import Config
from seq2seq.data.batches import Batch, MicroBatch
from seq2seq.model.translation import TranslationModel
from seq2seq.ops.compiled import compile_regions
from seq2seq.ops.packing import Layout
from seq2seq.support.devices import autocast, choose_compiling, choose_precision
from seq2seq.train.averaging import update_ema
from seq2seq.train.distributed import World
from seq2seq.train.loss import BatchLoss
from seq2seq.train.optimizer import build_optimizer, optimizer_step
from seq2seq.train.recorded import RecordedPasses, bucketed
from seq2seq.train.working_copy import working_copy


class Updater:
    """Updates a model's weights on the model's device with `optimizer`; `average` is their moving average, if any.

    The host waits for nothing here: whether a gradient was finite is decided on the device, and may be read later.
    """

    def __init__(self, model: TranslationModel, config: Config, world: World) -> None:
        self.model, self.config, self.world = model, config, world
        self.device = model.device
        self.precision = choose_precision(config.trainer.precision, self.device)
        self.average = copy.deepcopy(model) if config.trainer.average_decay is not None else None
        compiles = choose_compiling(config.trainer.compile, self.device)
        # All ranks or none: gradients are exchanged in another way.
        records = all(world.gather(compiles and model.can_be_recorded(self.device, self.precision)))
        working = working_copy(model, self.precision) if records else model
        if compiles:
            compile_regions(working)
        self.optimizer = build_optimizer(model, config.optimizer, self.precision)
        self._loss: nn.Module = BatchLoss(working).train()
        self._recorded = RecordedPasses(self._loss_of, model, self.device, working) if records else None
        # Before it is tried out what else fits into memory.
        world.connect(self._recorded.all_gradients if self._recorded else torch.zeros(1, device=self.device))

    def try_out(self, batch: Batch, *, adds: bool) -> None:
        """Compute a whole update that changes nothing, to see whether it fits; this creates the optimizer's state.

        With `adds`, an update has several parts like this batch on each rank. Only to be called before `start`. Raises
        torch.OutOfMemoryError.
        """
        try:
            if self._recorded:
                self._recorded.try_out(batch)
            else:
                self._backward(batch, 0.0)
            # Otherwise the optimizer's state would be scattered over the memory that the pass freed.
            torch.cuda.empty_cache()
            optimizer_step(self.optimizer, 0.0, skip=torch.ones((), device=self.device))
            if not self._recorded:
                # Later passes find that state, and gradients of the parts before; of several ranks, also buckets.
                buckets = []
                if not adds:
                    self.optimizer.zero_grad(set_to_none=True)
                elif self.world.size > 1:
                    buckets = [torch.empty_like(weight) for weight in self.model.parameters()]
                self._backward(batch, 0.0)
                del buckets
        finally:
            if not self._recorded:
                self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def reserve(self, batch: Batch) -> None:
        """Where passes are recorded, take memory for those of batches like this, as large as any to come.

        Only to be called before `start`. Raises torch.OutOfMemoryError.
        """
        if self._recorded:
            self._recorded.reserve(self.ready(batch))
            # What an optimizer needs for a moment must fit beside it.
            optimizer_step(self.optimizer, 0.0, skip=torch.ones((), device=self.device))

    def end_recording(self) -> bool:
        """Free the memory of recorded passes, whose kernels are then launched one by one; False if there is none."""
        return self._recorded is not None and self._recorded.end()

    def start(self) -> None:
        """Get ready for updates: from now on gradients are shared with the other ranks."""
        if self._recorded:
            self.world.share_weights(self.model)
            return
        self._loss = self.world.synchronised(self._loss)
        if self.world.size > 1:
            # DistributedDataParallel records its static graph in the first backward pass, which must synchronise.
            token, layout = torch.zeros(1, dtype=torch.int64), Layout.of([1])
            self._backward(Batch(token, layout, token, token, layout), 0.0)
            self.optimizer.zero_grad(set_to_none=True)

    def ready(self, batch: Batch) -> Batch:
        """This batch as the passes here need it: page-locked for a GPU, with filler for bfloat16 on a CPU.

        If passes are recorded, it is also given one of a few shapes.
        """
        if self.device.type == "cuda":
            limits = self.config.model.encoder.max_length, self.config.model.decoder.max_length
            return (bucketed(batch, limits) if self._recorded else batch).pin_memory()
        return batch.rounded() if self.precision == torch.bfloat16 else batch

    def gradients(self, parts: list[MicroBatch], target_tokens: int, step: int) -> Tensor:
        """Leave the gradients of the mean loss of update number `step` in the model, the same on all ranks.

        `parts` are this rank's, `target_tokens` the whole update's. Returns this rank's sums of loss and nll, [2].
        """
        sums = torch.zeros(2, device=self.device)
        # Recorded gradients of the ranks are summed, others averaged.
        ranks = 1 if self._recorded else self.world.size
        for number, batch, weight in parts:
            # Dropout depends on (seed, update, micro-batch) alone: neither on stops nor on the number of ranks.
            torch.manual_seed(_seed_of(self.config.seed, step, number))
            last = number == parts[-1].number
            with contextlib.nullcontext() if last else self.world.no_sync(self._loss):
                scale = weight * ranks / target_tokens
                if self._recorded:
                    sums += weight * self._recorded(batch, scale, adds=number != parts[0].number)
                else:
                    sums += weight * self._backward(batch, scale)
        if self._recorded:
            self.world.sum_in_place(self._recorded.all_gradients)
        return sums

    def apply(self, rate: float, step: int) -> Tensor:
        """Take an optimizer step, unless a gradient is not finite; returns the norm of all gradients, []."""
        settings = self.config.optimizer
        parameters = list(self.model.parameters())
        norm = get_total_norm([weight.grad for weight in parameters if weight.grad is not None])
        if settings.clip_norm is not None:
            clip_grads_with_norm_(parameters, settings.clip_norm, norm)
        optimizer_step(self.optimizer, rate, skip=~norm.isfinite())
        if not self._recorded:
            self.optimizer.zero_grad(set_to_none=True)
        if self.average and self.config.trainer.average_decay is not None:
            update_ema(self.average, self.model, self.config.trainer.average_decay, step)
        return norm

    def _loss_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with autocast(self.device, self.precision):
            loss, nll = self._loss(batch.to(self.device), self.config.trainer.label_smoothing)
        return loss, torch.stack((loss.detach(), nll))

    def _backward(self, batch: Batch, scale: float) -> Tensor:
        loss, sums = self._loss_of(batch)
        (loss * scale).backward()
        return sums


def _seed_of(*numbers: int) -> int:
    """One seed from several numbers, the same in every process."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
