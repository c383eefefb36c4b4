"""The rows of the paper's table 3: each is one change to the base model, and has the size that the change implies."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from seq2seq.config.compose import compose, options_of
from seq2seq.model.translation import TranslationModel, count_parameters

ROOT = Path(__file__).parent.parent.parent
ROWS: dict[str, Any] = json.loads((ROOT / "recipes/table3/results.json").read_text(encoding="utf-8"))["rows"]
PIECES = 37_000
POSITIONS = 1024

# What each row sets, written out; `sides` means encoder and decoder.
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    **{f"A_heads_{heads}": {"model.sides.num_heads": heads} for heads in (1, 4, 16, 32)},
    **{f"B_key_size_{d_k}": {"model.sides.d_k": d_k} for d_k in (16, 32)},
    **{f"C_layers_{layers}": {"model.sides.num_layers": layers} for layers in (2, 4, 8)},
    **{f"C_d_model_{d_model}": {"model.d_model": d_model} for d_model in (256, 1024)},
    **{f"C_d_ff_{d_ff}": {"model.sides.d_ff": d_ff} for d_ff in (1024, 4096)},
    **{f"D_dropout_{p}": {"model.dropout": p, "model.sides.dropout": p} for p in (0.0, 0.2)},
    **{f"D_label_smoothing_{share}": {"trainer.label_smoothing": share} for share in (0.0, 0.2)},
    "E_learned_positions": {"model.sides.positions": "learned"},
}


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in plain.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found


def size(row: str, pieces: int) -> int:
    """Weights of a row, counted on paper."""
    change = CHANGES[row]
    layers, d_ff = change.get("model.sides.num_layers", 6), change.get("model.sides.d_ff", 2048)
    d_model = change.get("model.d_model", 512)
    keys = 8 * change["model.sides.d_k"] if "model.sides.d_k" in change else d_model
    attention = 2 * (d_model * keys + keys) + 2 * (d_model * d_model + d_model)
    feed_forward = d_model * d_ff + d_ff + d_ff * d_model + d_model
    norm = 2 * d_model
    stacks = layers * (3 * attention + 2 * feed_forward + 5 * norm)
    return pieces * d_model + stacks + (2 * POSITIONS * d_model if row == "E_learned_positions" else 0)


def test_the_rows_are_those_of_the_paper() -> None:
    assert sorted(CHANGES) == options_of("ablation") == sorted(ROWS)


@pytest.mark.parametrize("row", CHANGES)
def test_a_row_changes_one_thing(row: str) -> None:
    base, changed = (flat(asdict(compose(["+recipe=table3", *add]))) for add in ([], [f"+ablation={row}"]))
    expected = {
        key.replace("sides", side): value for key, value in CHANGES[row].items() for side in ("encoder", "decoder")
    }
    assert {key: value for key, value in changed.items() if value != base[key]} == expected


@pytest.mark.parametrize("row", CHANGES)
def test_a_row_has_the_size_counted_on_paper(row: str) -> None:
    with torch.device("meta"):
        model = TranslationModel(compose(["+recipe=table3", f"+ablation={row}"]).model, PIECES)
    assert count_parameters(model) == size(row, PIECES) == ROWS[row]["parameters"]


PRINTED = {row: ROWS[row]["paper"]["parameters_millions"] for row in ROWS if ROWS[row]["paper"]["parameters_millions"]}


def test_the_papers_sizes_are_ours_with_four_thousand_pieces_more() -> None:
    # With 37,000 pieces ours are 1.2 to 4.1 M below the paper's millions. One vocabulary closes all ten gaps at once,
    # to the rounding: of 40,932 to 41,160 pieces. So the stacks are of the paper's size, row by row, and what differs
    # looks like the vocabulary, "about 37000" in the paper. (The eleventh figure, 213 M for big, does not fit: see
    # test_translation.py.)
    assert len(PRINTED) == 10
    gaps = {row: millions - size(row, PIECES) / 1e6 for row, millions in PRINTED.items()}
    assert min(gaps.values()) > 1.1 and max(gaps.values()) < 4.2
    fitting = [
        pieces
        for pieces in range(PIECES, 45_000)
        if all(round(size(row, pieces) / 1e6) == millions for row, millions in PRINTED.items())
    ]
    assert (fitting[0], fitting[-1], len(fitting)) == (40_932, 41_160, 229)


@pytest.mark.parametrize("row", [row for row in PRINTED if "d_model" not in row])
def test_a_row_differs_from_base_as_in_the_paper(row: str) -> None:
    # Both printed figures are rounded to a million; where d_model stays, the vocabulary drops out.
    ours, theirs = (size(row, PIECES) - size("base", PIECES)) / 1e6, PRINTED[row] - PRINTED["base"]
    assert abs(ours - theirs) <= 1.0


@pytest.mark.parametrize("row", options_of("ablation"))
def test_a_row_goes_with_any_recipe_of_transformers(row: str) -> None:
    config = compose(["+recipe=quickstart", f"+ablation={row}"])
    base = flat(asdict(compose(["+recipe=quickstart"])))
    changed = {
        key.replace("encoder", "sides").replace("decoder", "sides")
        for key, value in flat(asdict(config)).items()
        if value != base[key]
    }
    assert changed <= set(CHANGES[row])
    with torch.device("meta"):
        assert count_parameters(TranslationModel(config.model, 1000)) > 0
