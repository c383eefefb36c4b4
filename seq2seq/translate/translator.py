"""The public API: text in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seq2seq.config.schema import Config, SearchConfig
from seq2seq.data.batches import cut
from seq2seq.data.text_files import BLANKS
from seq2seq.data.tokenizer import BOS, EOS, Tokenizer
from seq2seq.model.directory import load_model_directory
from seq2seq.model.translation import TranslationModel
from seq2seq.ops.packing import Layout
from seq2seq.search.beam import BeamSearch
from seq2seq.search.hypotheses import Hypothesis
from seq2seq.support.devices import choose_device
from seq2seq.support.errors import RunError, UserError
from seq2seq.support.files import read_json
from seq2seq.support.progress import bar
from seq2seq.translate.splitting import split
from seq2seq.translate.workers import Workers

BATCH_TOKENS = 4096
BATCHES_OF_A_WORKER = 2
TOKENS_OF_A_WORKER = 1000
"""Source tokens under which one more worker is not worth starting."""
LONGEST = 250


@dataclass
class Translation:
    """The hypotheses of one text, best first: `text` and `score` (log-probability / length penalty) of each.

    `status` is `ok`, `empty` (nothing to translate) or `split` (longer than the model was trained for: translated in
    parts and joined, the score the sum of theirs; only the best hypothesis is kept).
    """

    texts: list[str]
    scores: list[float]
    status: str = "ok"


@dataclass
class Translator:
    """A model, its tokenizer and the settings of search, ready to translate.

    Texts of more than `longest` pieces are cut; no output has more than `longest_output`, eos counted (None: any).
    `workers` is the number of processes that share the work; with more than one they are forked at the first texts
    that make several batches, and keep the model and the settings of then. With `deterministic` each text is searched
    by itself, which makes scores the same to the last bit whatever other texts there are.
    """

    model: TranslationModel
    tokenizer: Tokenizer
    search: SearchConfig = field(default_factory=SearchConfig)
    batch_tokens: int = BATCH_TOKENS
    longest: int = LONGEST
    longest_output: int | None = None
    workers: int = 1
    deterministic: bool = False
    _started: Workers | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def load(
        cls, directory: str | Path, *, device: str = "auto", dtype: torch.dtype = torch.float32, **search: Any
    ) -> Translator:
        """Load a model directory; `search` overrides its settings (`beam_size=1`).

        `dtype` is float32, bfloat16 or int8 (linear layers in 8-bit integers, on a CPU). Raises UserError.
        """
        config, tokenizer, model = load_model_directory(Path(directory))
        trained = read_json(Path(directory) / "manifest.json").get("longest_source", LONGEST)
        place = choose_device(device)
        if dtype != torch.int8:
            model = model.to(place, dtype)
        elif place.type == "cpu":
            model.quantize()
        else:
            raise UserError(f"int8 on {place}: it is for the CPU; type --device cpu or --dtype bfloat16")
        translator = cls.of(model.eval(), tokenizer, config, trained)
        return replace(translator, search=replace(config.search, **search))

    @classmethod
    def of(
        cls, model: TranslationModel, tokenizer: Tokenizer, config: Config, longest_source: int = LONGEST
    ) -> Translator:
        """The translator of a model in memory; `longest_source`, in pieces, is the longest text it was trained on."""
        limit = config.model.decoder.max_length
        # Half of what the decoder can write: a translation may be twice as long as its source before it is cut off.
        longest = longest_source if limit is None else min(longest_source, limit // 2)
        return cls(model, tokenizer, config.search, longest=longest, longest_output=limit)

    def translate(self, texts: Sequence[str]) -> list[str]:
        """The best translation of each text; an empty or blank text gives an empty one."""
        return [translation.texts[0] for translation in self.translate_n_best(texts)]

    def translate_n_best(self, texts: Sequence[str]) -> list[Translation]:
        """The `search.n_best` translations of each text, with scores."""
        # Outer blanks were taken off in training too; a line of a file with CRLF ends with one.
        stripped = [text.strip(BLANKS) for text in texts]
        parts = [split(text, self._count, self.longest) if text.strip() else [] for text in stripped]
        found = iter(self._search([part for of_text in parts for part in of_text]))
        return [self._join([next(found) for _ in of_text]) for of_text in parts]

    def _count(self, texts: list[str]) -> list[int]:
        return list(map(len, self.tokenizer.encode(texts)))

    def _search(self, texts: list[str]) -> list[list[Hypothesis]]:
        """The hypotheses of each text, searched in batches of similar length."""
        sources = [[*ids, EOS] for ids in self.tokenizer.encode(texts)]
        lengths = np.array([len(ids) for ids in sources], np.int32)
        # The longest first: what is left at the end, where some workers have nothing to do, is short.
        order = np.argsort(-lengths, kind="stable")
        workers = min(self.workers, 1 + int(lengths.sum()) // TOKENS_OF_A_WORKER)
        # Each worker has several batches to do, so that all end at about the same time.
        share = self.batch_tokens if workers == 1 else int(lengths.sum()) // (workers * BATCHES_OF_A_WORKER) + 1
        most = max(min(self.batch_tokens, share), int(lengths.max(initial=0)))
        runs = order[:, None].tolist() if self.deterministic else list(cut(order, [lengths[order]], most))
        results: list[list[Hypothesis]] = [[] for _ in sources]
        with bar("translating", len(sources)) as progress:
            for done, found in self._map([[sources[index] for index in run] for run in runs], workers):
                for index, hypotheses in zip(runs[done], found, strict=True):
                    results[index] = hypotheses
                progress.update(len(runs[done]))
        if not all(results):
            raise RunError(
                "the model gives no finite scores (broken weights?); try another checkpoint or --dtype float32"
            )
        return results

    def _map(self, batches: list[list[list[int]]], workers: int) -> Iterator[tuple[int, list[list[Hypothesis]]]]:
        """The number of each batch of sources and what was found for it, as they are done."""
        if workers == 1:
            return enumerate(map(self._search_batch, batches))
        if self._started is None:
            self._started = Workers(self.workers, self._search_batch)
        return self._started.map(batches)

    def _search_batch(self, sources: list[list[int]]) -> list[list[Hypothesis]]:
        search = BeamSearch(self.search, BOS, EOS, self.tokenizer.never_generated, self.longest_output)
        device = self.model.output_weight.device
        tokens = torch.tensor([token for ids in sources for token in ids], device=device)
        return search(self.model, tokens, Layout.of([len(ids) for ids in sources], device))

    def _join(self, parts: list[list[Hypothesis]]) -> Translation:
        if not parts:
            return Translation([""], [0.0], "empty")
        if len(parts) == 1:
            texts = self.tokenizer.decode([hypothesis.tokens for hypothesis in parts[0]])
            return Translation(texts, [hypothesis.score for hypothesis in parts[0]])
        best = [hypotheses[0] for hypotheses in parts]
        text = " ".join(self.tokenizer.decode([hypothesis.tokens for hypothesis in best]))
        return Translation([text], [sum(hypothesis.score for hypothesis in best)], "split")
