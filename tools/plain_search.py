"""Translate a file on the plain path, whole forward passes without any cache, and compare with the fast path.

    python -m tools.plain_search MODEL SOURCE [--beam-size 4] [--lines 1000]

Prints JSON: how many lines are the same, and the largest difference in score. Exit code 1 if any line differs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seq2seq.data.batches import Batch
from seq2seq.data.text_files import read_lines
from seq2seq.model.directory import load_model_directory
from seq2seq.model.translation import TranslationModel
from seq2seq.ops.packing import Layout
from seq2seq.translate.translator import Translator


@dataclass
class Fed:
    """For each slot, the source ids and the ids fed so far to each hypothesis."""

    slots: list[tuple[list[int], list[list[int]]]]


class Uncached:
    """A model without a cache (`SearchModel`): each step recomputes the whole prefix of each hypothesis."""

    def __init__(self, model: TranslationModel) -> None:
        self.model = model

    def encode(self, tokens: Tensor, layout: Layout) -> list[list[int]]:
        return [source.tolist() for source in tokens.split(layout.lengths.tolist())]

    def start(self, memory: list[list[int]]) -> Fed:
        return Fed([(source, [[]]) for source in memory])

    def step(self, state: Fed, tokens: Tensor, parents: Tensor) -> Tensor:
        new = zip(state.slots, tokens.tolist(), parents.tolist(), strict=True)
        state.slots = [
            (source, [[*fed[parent], token] for parent, token in zip(places, chosen, strict=True)])
            for (source, fed), chosen, places in new
        ]
        pairs = [(source, prefix) for source, fed in state.slots for prefix in fed]
        sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
        source, target = (torch.tensor(list(itertools.chain(*side))) for side in (sources, targets))
        source_layout, target_layout = (Layout.of([len(ids) for ids in side]) for side in (sources, targets))
        hidden = self.model(Batch(source, source_layout, target, target, target_layout))
        ends = target_layout.starts + target_layout.lengths - 1
        return hidden[ends].unflatten(0, tokens.shape)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)

    def best(self, *_: object) -> None:
        """None: search uses its logits alone."""

    def keep(self, state: Fed, slots: Tensor) -> None:
        state.slots = [state.slots[slot] for slot in slots.tolist()]


def main() -> None:
    """The command."""
    options = argparse.ArgumentParser("plain_search", description=__doc__.split("\n")[0] if __doc__ else "")
    options.add_argument("model", type=Path)
    options.add_argument("source", type=Path)
    options.add_argument("--beam-size", type=int, default=4)
    options.add_argument("--lines", type=int)
    arguments = options.parse_args()
    texts = list(itertools.islice(read_lines(arguments.source), arguments.lines))
    fast, plain = (Translator.load(arguments.model, device="cpu", beam_size=arguments.beam_size) for _ in range(2))
    # Its weights are not laid out for translation: PyTorch's own operations are used, as in training.
    model = load_model_directory(arguments.model).model.eval()
    plain._together = lambda: Uncached(model)  # type: ignore[method-assign, assignment, return-value]
    found = list(zip(fast.translate_n_best(texts), plain.translate_n_best(texts), strict=True))
    same = sum(one.texts == other.texts for one, other in found)
    apart = max(abs(one.scores[0] - other.scores[0]) for one, other in found)
    print(json.dumps({"lines": len(texts), "same": same, "scores_apart": apart}))
    sys.exit(same < len(texts))


if __name__ == "__main__":
    main()
