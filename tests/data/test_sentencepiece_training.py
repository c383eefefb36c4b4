"""The trainer runs apart, and its log tells how far it is."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from seq2seq.config.schema import TokenizerConfig
from seq2seq.data.sentencepiece_training import share_done, train_sentencepiece
from seq2seq.data.tokenizer import train_tokenizer
from seq2seq.support.errors import RunError
from tests.processes import PATIENCE, is_running

BPE = """\
trainer_interface.cc:466] Normalizing sentences...
trainer_interface.cc:575] all chars count=64034802
trainer_interface.cc:661] Tokenizing input sentences with whitespace: 745538
trainer_interface.cc:692] Done! 480155
bpe_model_trainer.cc:421] Merged: freq=2391 merges=1800 piece=x
bpe_model_trainer.cc:421] Merged: freq=1003 merges=3600 piece=y
bpe_model_trainer.cc:421] Merged: freq=379 merges=7600 piece=z
"""
UNIGRAM = """\
trainer_interface.cc:466] Normalizing sentences...
unigram_model_trainer.cc:327] Extracting seed sentencepieces
trainer_interface.cc:661] Tokenizing input sentences with whitespace: 745538
unigram_model_trainer.cc:854] Using 480155 sentences for EM training
unigram_model_trainer.cc:903] EM sub_iter=0 size=198448 obj=12.4
unigram_model_trainer.cc:903] EM sub_iter=0 size=52446 obj=10.2
unigram_model_trainer.cc:903] EM sub_iter=1 size=9333 obj=11.5
"""


@pytest.mark.parametrize(("kind", "log"), [("bpe", BPE), ("unigram", UNIGRAM)])
def test_each_line_of_the_log_is_some_way_further(kind: str, log: str) -> None:
    lines = log.splitlines(keepends=True)
    shares = [share_done("".join(lines[:count]), kind, 8000) for count in range(len(lines) + 1)]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] <= 1


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_milestones_are_those_of_the_installed_version(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def watched(log: str, *_: object) -> float:
        seen.append(log)
        return 0.0

    monkeypatch.setattr("seq2seq.data.sentencepiece_training.share_done", watched)
    text = [f"word{number} of{number % 7} {number**3}" for number in range(20_000)]
    train_sentencepiece(text, model_type=kind, vocab_size=2000)
    assert 0.9 < share_done(seen[-1], kind, 2000) <= 1


def test_the_message_of_a_failure_is_sentencepieces_own() -> None:
    with pytest.raises(RuntimeError, match=r"^INTERNAL: .*Vocabulary size too high"):
        train_sentencepiece(["a b c"], model_type="bpe", vocab_size=5000)


@pytest.mark.parametrize("program", ["raise RuntimeError('INTERNAL: broken')", "open('vocabulary.model', 'w').close()"])
def test_a_full_disk_is_no_matter_of_the_settings(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seq2seq.data.sentencepiece_training.PROGRAM", program)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        train_tokenizer(["a b c"] * 1000, TokenizerConfig(), tmp_path)
    assert not list(tmp_path.iterdir())


PARENT = """
import pathlib, sys
from seq2seq.data import sentencepiece_training as training
waits = "print('ready', flush=True); __import__('time').sleep(900)"
training.PROGRAM = training.PROGRAM.partition("sentencepiece.SentencePieceTrainer")[0] + waits
training.train_sentencepiece(["a b c"], pathlib.Path(sys.argv[1]), model_type="bpe", vocab_size=300)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent has ended")
def test_the_trainer_ends_with_whoever_started_it(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    began = time.monotonic()
    while not any("ready" in log.read_text() for log in tmp_path.glob("*/log")):
        assert process.poll() is None and time.monotonic() < began + PATIENCE
        time.sleep(0.05)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    while is_running(int(child)):
        assert time.monotonic() < began + 2 * PATIENCE
        time.sleep(0.05)


def test_a_trainer_that_is_killed_is_no_matter_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr("seq2seq.data.sentencepiece_training.PROGRAM", program)
    expected = r"on 1,000 lines was killed by SIGKILL, probably out of memory; type tokenizer\.max_lines=500$"
    with pytest.raises(RunError, match=expected):
        train_tokenizer(["a b c"] * 1000, TokenizerConfig())
