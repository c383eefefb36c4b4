"""The Python in documents runs, from its first line to its last."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.processes import PATIENCE

ROOT = Path(__file__).parent.parent
CHECKS = """
assert score.attention.shape == (len(score.target) + 1, len(score.source) + 1)
assert len(score.token_log_probs) == len(score.target) + 1
assert model.encoder.layers[0].feed_forward.inner.weight.grad.any()
"""


def test_the_python_of_a_page_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    script = tmp_path / "page.py"
    script.write_text("".join(blocks) + CHECKS, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
