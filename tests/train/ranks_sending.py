"""One of two ranks: prints how much of the gradients was sent before the last of them was computed, in bytes.

python -m torch.distributed.run --nproc-per-node=2 --standalone -m tests.train.ranks_sending
"""

import json

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from seq2seq.config.compose import compose
from seq2seq.data.batches import Batch, MicroBatch
from seq2seq.model.translation import build_model
from seq2seq.ops.packing import Layout
from seq2seq.train.distributed import joined
from seq2seq.train.updater import Updater

OVERRIDES = [
    *("+recipe=files", "run_dir=none", "model=base", "model.encoder.num_layers=2", "model.decoder.num_layers=2"),
    *("trainer.device=cpu", "trainer.precision=float32"),
]


def main() -> None:
    """Compute two updates of two parts, noting what of the second was sent when each gradient became ready."""
    config = compose(OVERRIDES)
    with joined(config) as world:
        updater = Updater(build_model(config.model, 1000, 1), config, world)
        updater.start()
        sent, before_last = [0], [0]

        def send(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
            sent[0] += bucket.buffer().nbytes
            done = dist.all_reduce(bucket.buffer().div_(world.size), async_op=True).get_future()
            return done.then(lambda future: future.value()[0])

        def ready(_: Tensor) -> None:
            before_last[0] = sent[0]

        assert isinstance(updater._loss, DistributedDataParallel)
        updater._loss.register_comm_hook(None, send)
        for weight in updater.model.parameters():
            weight.register_post_accumulate_grad_hook(ready)
        tokens, layout = torch.arange(4, 104), Layout.of([20] * 5)
        parts = [MicroBatch(number, Batch(tokens, layout, tokens, tokens, layout), 1.0) for number in range(2)]
        for step in (1, 2):
            # After the first update, buckets are made anew in the order in which gradients become ready.
            sent[0] = 0
            updater.gradients(parts, 400, step)
        weights = sum(weight.nbytes for weight in updater.model.parameters())
        if world.is_main:
            print(json.dumps({"before the last": before_last[0], "in all": sent[0], "weights": weights}))


if __name__ == "__main__":
    main()
