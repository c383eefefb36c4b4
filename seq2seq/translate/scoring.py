"""Exact scores of given pairs by teacher forcing: one pass predicts each target token from those before it.

Scores are natural logarithms of probabilities, unsmoothed, and include eos; with a length penalty of 0 search gives its
own outputs the same scores.

Shapes: M packed target tokens, C of a chunk, D d_model, V vocabulary; T target tokens and L source tokens of a pair,
eos counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.data.batches import Batch, cut
from seq2seq.data.text_files import BLANKS
from seq2seq.data.tokenizer import Tokenizer
from seq2seq.model.directory import load_model_directory
from seq2seq.model.translation import TranslationModel
from seq2seq.support.devices import choose_device, choose_dtype
from seq2seq.support.errors import RunError, UserError
from seq2seq.translate.alignment import pharaoh, word_links, words_of
from seq2seq.translate.batching import explaining_out_of_memory
from seq2seq.translate.splitting import blank_after

BATCH_TOKENS = 4096
ROWS = 512
"""Rows whose logits exist at once: enough for a matrix multiplication, megabytes where a batch would take gigabytes."""
SIDES = ("source", "target")
NOT_FINITE = "the model gives no finite scores (broken weights?); try another checkpoint or --dtype float32"


@dataclass(frozen=True)
class PairScore:
    """A pair as scored: its ids without eos, and the log-probability of each target token and of eos, [T].

    `attention` [T, L], where it was requested, shows where in the source, eos counted, each prediction attended.
    `within_word` if the source is part of a longer text and begins within the word in which the part before it ended.
    """

    source: list[int]
    target: list[int]
    token_log_probs: list[float]
    attention: Tensor | None = None
    within_word: bool = False

    @property
    def score(self) -> float:
        """The log-probability of the target."""
        return math.fsum(self.token_log_probs)

    @property
    def per_token(self) -> float:
        """The mean over target tokens, eos counted."""
        return self.score / len(self.token_log_probs)


def perplexity(score: float, tokens: int) -> float:
    """exp(−score / tokens) for the log-probability of all targets and their token count, eos included; NaN for 0."""
    return math.exp(min(-score / tokens, 700.0)) if tokens else math.nan


@torch.no_grad()
def score_pairs(
    model: TranslationModel,
    pairs: Sequence[tuple[list[int], list[int]]],
    batch_tokens: int = BATCH_TOKENS,
    *,
    attention: bool = False,
    layer: int | None = None,
) -> list[PairScore]:
    """The scores of pairs of ids (source, target) without bos and eos, in the given order.

    Pairs of similar length are computed together, as many as have `batch_tokens` on each side, or the longest pair's.
    `attention` requests that of the decoder's `layer`, see `interfaces.Decoder.with_attention`. Raises UserError where
    there is no such layer, RunError for scores that are not finite, and OutOfMemory.
    """
    lengths = [np.array([len(pair[side]) + 1 for pair in pairs], np.int32) for side in (0, 1)]
    order = np.lexsort(lengths)
    most = max(batch_tokens, *(int(side.max(initial=0)) for side in lengths))
    scores: dict[int, PairScore] = {}
    for run in cut(order, [side[order] for side in lengths], most):
        batch = Batch.of_ids([pairs[index] for index in run])
        tokens = max(batch.source_layout.total, batch.target_layout.total)
        with explaining_out_of_memory(len(run), tokens, batch_tokens):
            batch = batch.to(model.device)
            hidden_MD, weights = model.with_attention(batch, layer) if attention else (model(batch), [None] * len(run))
            log_probs = token_log_probs(model, hidden_MD, batch.target_out)
        if not log_probs.isfinite().all():
            raise RunError(NOT_FINITE)
        by_pair = log_probs.cpu().split(batch.target_layout.lengths.tolist())
        for index, found, own_TL in zip(run.tolist(), by_pair, weights, strict=True):
            source, target = pairs[index]
            scores[index] = PairScore(source, target, found.tolist(), None if own_TL is None else own_TL.cpu())
    return [scores[index] for index in range(len(pairs))]


def token_log_probs(model: TranslationModel, hidden_MD: Tensor, target_M: Tensor) -> Tensor:
    """The log-probability of each target token given its hidden row, [M] in float32, chunk by chunk."""
    chunks = zip(hidden_MD.split(ROWS), target_M.split(ROWS), strict=True)
    return -torch.cat(
        [F.cross_entropy(model.logits(h_CD).float(), target_C, reduction="none") for h_CD, target_C in chunks]
    )


@dataclass
class Scorer:
    """A model and its tokenizer, ready to score pairs of texts.

    `limits` are the longest source and target that the model's positions cover, eos counted (None: any);
    `longest_source` the longest it was trained on (None: not known).
    """

    model: TranslationModel
    tokenizer: Tokenizer
    batch_tokens: int = BATCH_TOKENS
    limits: tuple[int | None, int | None] = (None, None)
    longest_source: int | None = None

    @classmethod
    def load(cls, directory: str | Path, *, device: str = "auto", dtype: torch.dtype | str = torch.float32) -> Scorer:
        """Load a model directory; `dtype` is float32, bfloat16 or int8 (on a CPU), or its name. Raises UserError."""
        config, tokenizer, model, longest_source = load_model_directory(Path(directory))
        return cls(
            model.place(choose_device(device), choose_dtype(dtype)),
            tokenizer,
            limits=(config.model.encoder.max_length, config.model.decoder.max_length),
            longest_source=longest_source,
        )

    def score(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        attention: bool = False,
        layer: int | None = None,
        names: tuple[str, str] = SIDES,
        first: int = 1,
    ) -> list[PairScore]:
        """The scores of pairs of texts (source, target), outer blanks stripped as in training; see `score_pairs`.

        Nothing is truncated: raises UserError for a text that is too long, naming its side (one of `names`) and its
        number, counted from `first`; and for what is not a pair of strings.
        """
        pairs = list(pairs)
        for number, given in enumerate(pairs, first):
            if not (isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(x, str) for x in given)):
                raise UserError(f"pair {number}: {given!r} is not a pair (source, target) of strings")
        sides = [self.tokenizer.encode([pair[side].strip(BLANKS) for pair in pairs]) for side in (0, 1)]
        encoded = list(zip(*sides, strict=True))
        for number, pair in enumerate(encoded, first):
            for name, ids, limit in zip(names, pair, self.limits, strict=True):
                self._require_room(f"{name}:{number}", len(ids) + 1, limit)
        return score_pairs(self.model, encoded, self.batch_tokens, attention=attention, layer=layer)

    def _require_room(self, place: str, length: int, limit: int | None) -> None:
        if limit is not None and length > limit:
            raise UserError(
                f"{place}: {length:,} pieces, eos counted; this model's positions end at {limit:,}: "
                "leave the line out, or cut it on both sides"
            )
        if length > self.batch_tokens:
            raise UserError(
                f"{place}: {length:,} pieces, eos counted, are more than a batch holds; "
                f"type --batch-tokens {length}, or leave the line out"
            )

    def status(self, score: PairScore) -> str:
        """`ok`, `empty` (one side has no pieces) or `long` (the source is longer than any in training)."""
        if not (score.source and score.target):
            return "empty"
        return "long" if self.longest_source is not None and len(score.source) > self.longest_source else "ok"

    def links(self, score: PairScore) -> list[tuple[int, int]]:
        """The word alignment of a pair that was scored with attention; see `alignment.word_links`."""
        return links(self.tokenizer, [score])


def links(tokenizer: Tokenizer, parts: Sequence[PairScore]) -> list[tuple[int, int]]:
    """The word alignment of a text that was scored in parts, with attention; words are numbered through all of them."""
    found: list[tuple[int, int]] = []
    before = [0, 0]
    joined = False
    for part in parts:
        assert part.attention is not None, "scored without attention"
        before[0] -= part.within_word
        source, target = (tokenizer.pieces(ids) for ids in (part.source, part.target))
        before[1] -= joined and bool(words_of(target))
        found += [
            (word + before[0], place + before[1])
            for word, place in word_links(part.attention[:-1, :-1], source, target)
        ]
        before = [
            count + max(words_of(side), default=-1) + 1 for count, side in zip(before, (source, target), strict=True)
        ]
        joined = not blank_after(tokenizer.decode([part.target])[0])
    return found


def described(
    tokenizer: Tokenizer, parts: Sequence[PairScore], *, tokens: bool = False, align: str | None = None
) -> dict[str, Any]:
    """A text that was scored in parts, described for JSON: its tokens with their log-probabilities; alignments.

    `align` is `pharaoh`, or `matrix`, which adds the attention weights where the text is in one part.
    """
    source, target = (
        [piece for part in parts for piece in (*tokenizer.pieces(getattr(part, side)), "</s>")] for side in SIDES
    )
    row: dict[str, Any] = {}
    if tokens or align == "matrix":
        row["tokens"] = target
    if tokens:
        row["token_log_probs"] = [round(log_prob, 6) for part in parts for log_prob in part.token_log_probs]
    if align:
        row["alignment"] = pharaoh(links(tokenizer, parts))
    if align == "matrix" and len(parts) == 1 and parts[0].attention is not None:
        row["source_tokens"] = source
        row["attention"] = [[round(weight, 4) for weight in weights] for weights in parts[0].attention.tolist()]
    return row
