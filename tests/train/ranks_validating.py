"""One of two ranks, the second of which runs out of memory once while it validates.

python -m torch.distributed.run --nproc-per-node=2 --standalone -m tests.train.ranks_validating KEY=VALUE...
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

from seq2seq.config.compose import compose
from seq2seq.data.prepare import Prepared, prepare
from seq2seq.support.errors import OutOfMemory
from seq2seq.train.distributed import joined
from seq2seq.train.trainer import Trainer
from seq2seq.train.updater import Updater
from seq2seq.translate.translator import Translator


def main() -> None:
    """Train; the graphs of recorded passes are held to have had the memory that was missing."""
    config = compose(sys.argv[1:])
    translate, failed = Translator.translate, False
    with joined(config) as world:

        def short_of_memory(translator: Translator, texts: Iterable[str]) -> list[str]:
            nonlocal failed
            if world.rank and not failed:
                failed = True
                raise OutOfMemory("of this much")
            return translate(translator, texts)

        data = prepare(config) if world.is_main else None
        world.wait()
        trainer = Trainer(config, data or Prepared(Path(config.data.prepared_dir)), world)
        with (
            patch.object(Translator, "translate", short_of_memory),
            patch.object(Updater, "end_recording", lambda _: True),
        ):
            trainer.run()
        assert failed == bool(world.rank)


if __name__ == "__main__":
    main()
