"""The Python in documents runs, from its first line to its last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def test_the_python_of_a_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "extending.md", "exec"), names)
    score = names["score"]
    assert score.attention.shape == (len(score.target) + 1, len(score.source) + 1)  # type: ignore[attr-defined]
    assert len(score.token_log_probs) == len(score.target) + 1  # type: ignore[attr-defined]
    assert names["model"].encoder.layers[0].feed_forward.inner.weight.grad.any()  # type: ignore[attr-defined]
