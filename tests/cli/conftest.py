"""Running a command in this process, as its own process would, and looking at what it printed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest
import torch


class Outcome(NamedTuple):
    """A command's exit code and output."""

    code: int
    out: str
    err: str

    def refused(self, command: str, message: str, code: int = 2) -> None:
        """Assert that it ended with `code`, one line on stderr that holds `message`, and nothing on stdout."""
        assert (self.code, self.out) == (code, ""), self
        assert self.err.startswith(f"{command}: ") and self.err.count("\n") == 1, self.err
        assert message in self.err
        assert "Traceback" not in self.err


class Run(Protocol):
    """Runs a command's `main`."""

    def __call__(self, main: Callable[[], None], *arguments: str | Path, stdin: bytes = b"") -> Outcome: ...


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # The commands set it; this sets it back.
    monkeypatch.delenv("SEQ2SEQ_MODEL", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def call(main: Callable[[], None], *arguments: str | Path, stdin: bytes = b"") -> Outcome:
        (tmp_path / "stdin").write_bytes(stdin)
        handlers, level, threads = logging.root.handlers[:], logging.root.level, torch.get_num_threads()
        capfd.readouterr()
        with (tmp_path / "stdin").open() as given, monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["command", *map(str, arguments)])
            patch.setattr(sys, "stdin", given)
            patch.setattr(sys, "stderr", sys.stderr)  # The commands replace it; this sets it back.
            main()
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        torch.set_num_threads(threads)
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else 0, *capfd.readouterr())

    return call
