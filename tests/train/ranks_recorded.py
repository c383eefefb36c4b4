"""One of two ranks: whether recorded passes give both the weights that DistributedDataParallel gives them.

python -m torch.distributed.run --nproc-per-node=2 --standalone -m tests.train.ranks_recorded
"""

from __future__ import annotations

import torch
from torch import Tensor

from seq2seq.config.compose import compose
from seq2seq.config.schema import Config
from seq2seq.data.batches import Batch, MicroBatch
from seq2seq.model.translation import build_model
from seq2seq.ops.packing import Layout
from seq2seq.train.distributed import World, joined
from seq2seq.train.recorded import RecordedPasses
from seq2seq.train.updater import Updater
from tests.train.runs import TINY

OVERRIDES = [*("+recipe=files", "run_dir=none", *TINY, "trainer.device=cpu", "trainer.precision=float32")]
PARTS = 4


def trained(config: Config, world: World, *, recorded: bool) -> list[Tensor]:
    """The gradients of the first of three updates that begin with the weights of rank 0, and the weights at the end."""
    updater = Updater(build_model(config.model, 200, 1 + world.rank), config, world)
    if recorded:
        updater._recorded = RecordedPasses(updater._loss_of, updater.model, updater.device)
    updater.start()
    generator = torch.Generator().manual_seed(1)
    first: list[Tensor] = []
    for step in range(1, 4):
        tokens, layout = torch.randint(4, 200, (PARTS, 100), generator=generator), Layout.of([20] * 5)
        batches = [Batch(own, layout, own, own.roll(1), layout) for own in tokens]
        parts = [MicroBatch(number, batches[number], 1.0) for number in range(world.rank, PARTS, world.size)]
        updater.gradients(parts, 100 * PARTS, step)
        first = first or [weight.grad.clone() for weight in updater.model.parameters() if weight.grad is not None]
        updater.apply(1e-2, step)
    return [*first, *(weight.detach() for weight in updater.model.parameters())]


def main() -> None:
    """Train both ways and compare, also with the other rank."""
    with joined(compose(OVERRIDES)) as world:
        for optimizer, tolerance in (("adam", 1e-5), ("muon", 1e-4)):
            config = compose([*OVERRIDES, f"optimizer={optimizer}"])
            recorded, averaged = (trained(config, world, recorded=way) for way in (True, False))
            for one, other in zip(recorded, averaged, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=tolerance)
            found = world.gather(recorded)
            assert all(map(torch.equal, *found)), "both ranks have the same bits"


if __name__ == "__main__":
    main()
