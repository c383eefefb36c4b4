"""Model directories that earlier versions wrote are read by this one, and translate as they did then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seq2seq.translate.translator import Translator
from tests.fixtures.make_model import EXPECTED, KINDS, translations

MODELS = Path(__file__).parent.parent / "fixtures" / "models"
WRITTEN = sorted(path for path in MODELS.glob("*/*") if path.is_dir())


def test_a_model_of_each_kind_is_kept_and_small() -> None:
    assert {path.name for path in WRITTEN} >= set(KINDS)
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= 200_000 * len(
        list(MODELS.iterdir())
    )


@pytest.mark.parametrize("directory", WRITTEN, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_written_then_translates_as_it_did(directory: Path) -> None:
    kept = json.loads((directory.parent / f"{directory.name}.{EXPECTED}").read_text(encoding="utf-8"))
    sources = [row["source"] for row in kept]
    assert translations(directory, sources) == kept
    assert len({row["text"] for row in kept}) > 10, "a model that says the same of everything would prove nothing"
    nonempty = [row for row in kept if row["source"]]
    found = Translator.load(directory, device="cpu").translate([row["source"] for row in nonempty])
    assert found == [row["text"] for row in nonempty]
