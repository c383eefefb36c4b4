"""Running a recipe's script: the commands that it calls come from a folder that stands first on PATH."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).parents[2]
OWN = {
    *("DEVICES", "NODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    *("RECIPE", "PUBLISHED", "WMT14", "IWSLT14", "MULTI30K", "SEQ2SEQ_SHARED_DATA"),
}


class Script(Protocol):
    """Runs `recipes/NAME` in the folder of the test, with variables of its own."""

    def __call__(self, name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """An empty folder for commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(commands: Path) -> dict[str, str]:
    """The environment of a user who set none of the scripts' variables."""
    inherited = {key: value for key, value in os.environ.items() if key not in OWN and not key.startswith("SLURM_")}
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    return {**inherited, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def script(tmp_path: Path, environment: dict[str, str]) -> Script:
    def run(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(ROOT / "recipes" / name), *arguments],
            cwd=tmp_path,
            env={**environment, **variables},
            capture_output=True,
            text=True,
        )

    return run
