"""SentencePiece's trainer in a process of its own: its log becomes a progress bar, and a signal stops it at once.

On Linux it ends with the process that started it, whatever ends that.
"""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from seq2seq.support.errors import RunError
from seq2seq.support.progress import bar

PROGRAM = """
import ctypes, json, signal, sys, sentencepiece
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
sentencepiece.SentencePieceTrainer.train(**json.loads(sys.argv[1]))
"""
ROOM = 1 << 20
"""Bytes free on a disk below which the trainer's failure is blamed on it."""
# Share of the time passed when the log says that a phase begins, on 750,000 lines; both kinds read alike, then differ.
MILESTONES = {
    "bpe": {"Normalizing sentences": 0.05, "all chars count": 0.25, "Tokenizing input": 0.35, "Done! ": 0.65},
    "unigram": {"Normalizing sentences": 0.01, "Extracting seed": 0.06, "Tokenizing input": 0.34, "EM training": 0.36},
}


def train_sentencepiece(
    lines: list[str], place: Path | None = None, *, model_type: str, vocab_size: int, **settings: object
) -> bytes:
    """Train on the lines and return the model file's content.

    Files are written to a temporary folder in `place` (default: the system's). Raises RuntimeError with SentencePiece's
    own message, RunError if a signal killed it, and OSError where the disk is full.
    """
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        with (folder / "lines").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(line.replace("\n", " ") + "\n" for line in lines)
        log = folder / "log"
        # The names are stored in the model, so they must not depend on the folder.
        order = {"input": "lines", "model_prefix": "vocabulary", "model_type": model_type, "vocab_size": vocab_size}
        with log.open("wb") as errors, bar("training the vocabulary", 100, unit="%") as progress:
            command = [sys.executable, "-P", "-c", PROGRAM]
            command.append(json.dumps({**order, **settings}))
            with subprocess.Popen(command, cwd=folder, stdout=errors, stderr=errors) as trainer:
                try:
                    running = True
                    while running:
                        running = trainer.poll() is None
                        done = 100 * share_done(log.read_text("utf-8", "replace"), model_type, vocab_size)
                        progress.update(done - progress.n)
                        if running:
                            time.sleep(0.05)
                except BaseException:
                    trainer.kill()
                    raise
        if trainer.returncode < 0:
            raise RunError(
                f"training the vocabulary on {len(lines):,} lines was killed by "
                f"{signal.Signals(-trainer.returncode).name}, probably out of memory; "
                f"type tokenizer.max_lines={max(1, len(lines) // 2)}"
            )
        made = folder / "vocabulary.model"
        is_made = made.is_file() and made.stat().st_size > 0
        # It says nothing of a full disk, neither where it reads what was not all written, nor where it writes.
        if not (is_made and trainer.returncode == 0) and shutil.disk_usage(folder).free < ROOM:
            raise OSError(errno.ENOSPC, "No space left on device", str(place or folder.parent))
        if trainer.returncode:
            raise RuntimeError(log.read_text("utf-8", "replace").rpartition("RuntimeError: ")[2].strip())
        return made.read_bytes()


def share_done(log: str, model_type: str, vocab_size: int) -> float:
    """Roughly what share of the whole time has passed, from 0 to 1, judging by SentencePiece's log."""
    last = max((share for said, share in MILESTONES[model_type].items() if said in log), default=0.0)
    if merges := re.findall(r"merges=(\d+)", log):
        return last + (1 - last) * min(1.0, int(merges[-1]) / vocab_size)
    if sizes := [int(size) for size in re.findall(r"EM sub_iter=\d+ size=(\d+)", log)]:
        # Each round leaves three quarters of the pieces, until little more than the vocabulary is left.
        rounds = math.log(max(sizes[0], 2 * vocab_size) / vocab_size)
        return last + (1 - last) * max(0.0, min(1.0, math.log(sizes[0] / sizes[-1]) / rounds))
    return last
