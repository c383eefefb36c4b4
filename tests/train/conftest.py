"""A trainer of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from seq2seq.config.compose import compose
from seq2seq.data.prepare import prepare
from seq2seq.train.trainer import Trainer
from tests.train.runs import TINY, Make, draw, write_copies


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_copies(tmp_path_factory.mktemp("corpus"), draw(300, 1), draw(10, 2))


@pytest.fixture
def make(corpus: list[str], tmp_path: Path) -> Make:
    """A trainer of a tiny model in `tmp_path/NAME`, five updates an epoch."""

    def make_trainer(name: str, *overrides: str) -> Trainer:
        config = compose([*corpus, f"run_dir={tmp_path}/{name}", *TINY, *overrides])
        return Trainer(config, prepare(config))

    return make_trainer
