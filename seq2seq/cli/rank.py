"""One rank of a training run: `seq2seq-train` runs it in its own process, `launch` starts several.

python -m seq2seq.cli.rank CONFIG.yaml      under torch's elastic launcher
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import sys
import time
from pathlib import Path

from seq2seq.config import compose
from seq2seq.config.schema import Config
from seq2seq.support.errors import UserError, explain
from seq2seq.support.files import locked, remove_leftovers, require_ours, write_json
from seq2seq.support.manifest import MANIFEST
from seq2seq.support.progress import keep_lock_to_this_process
from seq2seq.support.streams import make_dependable

PR_SET_PDEATHSIG = 1


def train_as_rank(config: Config) -> None:
    """Prepare and train; a run with other settings is refused before its prepared data are touched."""
    from seq2seq.data.prepare import Prepared, prepare
    from seq2seq.support.devices import compute_deterministically
    from seq2seq.train.checkpoint import Checkpoints
    from seq2seq.train.distributed import joined
    from seq2seq.train.trainer import Trainer
    from seq2seq.train.warm_start import require_same_model

    keep_lock_to_this_process()
    compute_deterministically(config.trainer.deterministic)
    data: Prepared | None = None
    with joined(config) as world, contextlib.ExitStack() as held:
        if world.is_main:
            checkpoints = Checkpoints(Path(config.run_dir))
            if not checkpoints.all():
                require_same_model(config)
            require_ours(Path(config.run_dir) / "model", MANIFEST, "take another run_dir=DIR")
            held.enter_context(locked(Path(config.run_dir)))
            remove_leftovers(checkpoints.directory)
            checkpoints.set_aside_damaged()
            checkpoints.require_same_settings(config)
            data = prepare(config)
        world.wait(patiently=True)
        if not Path(config.data.prepared_dir).is_dir():
            raise UserError(
                f"rank {world.rank} ({platform.node()}) does not see {config.data.prepared_dir}, which rank 0 made; "
                "take a run_dir=DIR on a disk that all machines share"
            )
        Trainer(config, data or Prepared(Path(config.data.prepared_dir)), world).run()


def main() -> None:
    """Train with a stored configuration; an error goes into the file that the launcher names, for it to report."""
    if sys.platform.startswith("linux"):
        # If the launcher dies without a word, the kernel tells its ranks to stop, as the launcher would.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    make_dependable()
    try:
        train_as_rank(compose.load(Path(sys.argv[1])))
    except BaseException as error:
        from seq2seq.train.distributed import LostRank

        exit_code, message = explain(error)
        record = {"message": message, "timestamp": int(time.time()), "exit_code": exit_code}
        write_json(Path(os.environ["TORCHELASTIC_ERROR_FILE"]), {**record, "lost": isinstance(error, LostRank)})
        # Not the interpreter's own exit, which would wait for the other ranks.
        os._exit(exit_code)
    # Nor here: a rank whose work was done was once ended by SIGABRT (docs/log.md, 2026-11-28).
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
