"""The public API: text in, text out."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from seq2seq.config.schema import Config
from seq2seq.config.search import SearchConfig
from seq2seq.data.text_files import BLANKS
from seq2seq.data.tokenizer import BOS, EOS, Tokenizer
from seq2seq.model.directory import load_model_directory
from seq2seq.model.ensemble import Ensemble
from seq2seq.model.translation import TranslationModel
from seq2seq.ops.batch_invariance import batch_invariant
from seq2seq.ops.packing import Layout
from seq2seq.search.beam import Beams, BeamSearch, longest_outputs
from seq2seq.search.interfaces import Constraints, Hypothesis
from seq2seq.search.penalties import coverage_penalty
from seq2seq.support.devices import choose_device, choose_dtype
from seq2seq.support.errors import RunError, UserError, nearest
from seq2seq.support.progress import bar
from seq2seq.translate.batching import batches, explaining_out_of_memory, regrouped
from seq2seq.translate.glossary import Glossary
from seq2seq.translate.scoring import NOT_FINITE, PairScore, score_pairs
from seq2seq.translate.splitting import blank_after, join
from seq2seq.translate.tasks import Task, parts_of, tasks_of
from seq2seq.translate.translation import Translation
from seq2seq.translate.workers import Workers

BATCH_TOKENS = 8192
BATCH_TOKENS_OF_GPU = 32768
TOKENS_OF_A_WORKER = 1000
"""Source tokens below which one more worker is not worth starting."""
LONGEST = 250
NOTHING_TO_TRANSLATE = "the text is empty: its translation is, too, and cannot begin with a prefix"
Result = TypeVar("Result")
Job = Callable[["Translator"], Result]
"""What a worker does with its copy of the translator."""


def list_of_texts(name: str, texts: Iterable[str]) -> list[str]:
    """These texts as a list. Raises UserError for a single string, and for anything in it that is not a string."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise UserError(f"{name}: {type(texts).__name__} given, where a list of strings is needed")
    found = list(texts)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise UserError(f"{name}[{number}] is {type(text).__name__}, must be str: {text!r}")
    return found


@dataclass
class Translator:
    """A model, its tokenizer and search settings, ready to translate.

    Texts of more than `longest` pieces are split; no output has more than `longest_output`, eos counted (None: any).
    `glossary` says which terms outputs must contain, `forbidden` which texts they must not, after their prefixes;
    `others` are models that search together with the first. `workers` is the largest number of processes that share the
    work; they are forked at the first call with enough text for several, more of them when a later call has more text,
    and again after an error or a change of settings. With `devices`, each process has the models on one of these, in
    `dtype`. With `deterministic`, scores are the same to the last bit whatever other texts there are; where rows cannot
    be computed that way (on a GPU, without a compiler, in a recurrent model, with a coverage penalty), each text is
    searched by itself.
    """

    model: TranslationModel
    tokenizer: Tokenizer
    search: SearchConfig = field(default_factory=SearchConfig)
    batch_tokens: int = BATCH_TOKENS
    longest: int = LONGEST
    longest_output: int | None = None
    workers: int = 1
    devices: list[torch.device] = field(default_factory=list)
    dtype: torch.dtype = torch.float32
    deterministic: bool = False
    glossary: Glossary | None = None
    forbidden: Sequence[str] = ()
    others: Sequence[TranslationModel] = ()
    _started: Workers | None = field(default=None, init=False, repr=False, compare=False)
    _as_started: Translator | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *others: str | Path,
        device: str = "auto",
        dtype: torch.dtype | str = torch.float32,
        **search: Any,
    ) -> Translator:
        """Load a model directory; `search` overrides its settings (`beam_size=1`).

        With `others` it makes an ensemble; the settings are those of the first. `dtype` is float32, bfloat16 or int8
        (linear layers in 8-bit integers, on a CPU), or its name. Several devices, separated by
        commas (`cuda:0,cuda:1`), share the work. Raises UserError, also when vocabularies differ.
        """
        known = [one.name for one in fields(SearchConfig)]
        for name in search:
            if name not in known:
                raise UserError(f"{name}: no such setting of search{nearest(name, known)}")
        places = [choose_device(name) for name in device.split(",")]
        dtype = choose_dtype(dtype)
        directories = (directory, *others)
        members = [cls._load(Path(one), places, dtype) for one in directories]
        first = members[0]
        first.dtype = dtype
        for other, member in zip(directories, members, strict=True):
            if member.tokenizer.model != first.tokenizer.model:
                raise UserError(f"{other} has another vocabulary than {directory}: they cannot search together")
        if len(members) > 1:
            limits = [member.longest_output for member in members if member.longest_output is not None]
            first.others = [member.model for member in members[1:]]
            first.longest = min(member.longest for member in members)
            first.longest_output = min(limits, default=None)
        if len(places) > 1:
            first.devices = places
        if places[0].type == "cuda":
            first.batch_tokens = BATCH_TOKENS_OF_GPU
        return replace(first, search=replace(first.search, **search))

    @classmethod
    def _load(cls, directory: Path, places: list[torch.device], dtype: torch.dtype) -> Translator:
        config, tokenizer, model, trained = load_model_directory(directory)
        # Each of several devices gets a copy, in a process of its own.
        model = model.place(places[0], dtype) if len(places) == 1 else model.eval()
        return cls.of(model, tokenizer, config, trained or LONGEST)

    @classmethod
    def of(
        cls, model: TranslationModel, tokenizer: Tokenizer, config: Config, longest_source: int = LONGEST
    ) -> Translator:
        """The translator of a model in memory; `longest_source`, in pieces, is the longest text it was trained on."""
        limit = config.model.decoder.max_length
        # Half of the decoder's longest output: a translation may be twice as long as its source before it is cut off.
        longest = longest_source if limit is None else min(longest_source, limit // 2)
        return cls(model, tokenizer, config.search, longest=longest, longest_output=limit)

    def translate(self, texts: Iterable[str], prefixes: Iterable[str] | None = None) -> list[str]:
        """The best translation of each text; an empty or blank text gives an empty one."""
        return [translation.texts[0] for translation in self.translate_n_best(texts, prefixes)]

    def translate_n_best(self, texts: Iterable[str], prefixes: Iterable[str] | None = None) -> list[Translation]:
        """The `search.n_best` translations of each text, with scores.

        With `prefixes`, each begins with the one for its text (`""`: with anything). Raises UserError, RunError.
        """
        self._check()
        texts = list_of_texts("texts", texts)
        prefixes = [""] * len(texts) if prefixes is None else list_of_texts("prefixes", prefixes)
        if len(prefixes) != len(texts):
            raise UserError(f"{len(prefixes)} prefixes for {len(texts)} texts: give one for each, empty for none")
        tasks_of_texts = self._tasks_of(texts, prefixes)
        tasks = list(chain.from_iterable(tasks_of_texts))
        results = self._search(tasks)
        unmet = ["" if found else self._why(task) for task, found in zip(tasks, results, strict=True)]
        if any(unmet):
            freed = [task._replace(constraints=Constraints()) for task, why in zip(tasks, unmet, strict=True) if why]
            again = iter(self._search(freed))
            results = [next(again) if why else found for found, why in zip(results, unmet, strict=True)]
        translations = list(map(Translation.joined, regrouped(zip(tasks, results, unmet, strict=True), tasks_of_texts)))
        outputs = [output for translation in translations for output in translation.outputs]
        sequences = [part.tokens for output in outputs for _, part in output]
        texts = map(join, regrouped(self.tokenizer.decode(sequences, torch.get_num_threads()), outputs))
        texts_of_each = regrouped(texts, [translation.outputs for translation in translations])
        for translation, own, prefix in zip(translations, texts_of_each, prefixes, strict=True):
            translation.texts = own or [""]
            if not own and prefix.strip(BLANKS):
                translation.flags.append("unmet")
                translation.unmet = NOTHING_TO_TRANSLATE
        return translations

    def stream(self, text: str, prefix: str = "") -> Iterator[str]:
        """The translation of a text as it is found, a few characters at a time, by greedy search or sampling.

        Raises UserError for a beam of several hypotheses; for a glossary, which needs such a beam; and, before anything
        is found, for a prefix with which no translation can begin (`why_impossible`).
        """
        self._check()
        self.require_streaming()
        if why := self.why_impossible(text, prefix):
            raise UserError(why)
        tasks = self._tasks_of([text], [prefix])[0]
        shown = ""
        for place, task in enumerate(tasks):
            if place:
                yield blank_after(shown)
            told = shown = ""
            results: list[list[Hypothesis]] = []
            for beams in self._steps(task):
                results = beams.results
                tokens = [token for token in beams.prefixes[0, 0].tolist() if token != EOS]
                shown = self.tokenizer.decode([tokens])[0]
                # A character may come in several pieces, a byte each.
                if len(shown) > len(told) and not shown.endswith("\ufffd"):
                    yield shown[len(told) :]
                    told = shown
            if len(shown) > len(told):
                yield shown[len(told) :]
            if not results[0]:
                raise RunError(NOT_FINITE)

    def _check(self) -> None:
        """Raise UserError for settings that were changed to something else than they may be."""
        if not isinstance(self.search, SearchConfig):
            raise UserError(f"search={self.search!r}: change its settings one by one, as in search.beam_size = 1")
        self.search.check()
        for name in ("workers", "batch_tokens"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name}={value!r}: must be a whole number, at least 1")
        if not isinstance(self.glossary, Glossary | None):
            raise UserError(
                f"glossary={self.glossary!r}: must be a Glossary, as in Glossary({{'car': 'Auto'}}), or None"
            )
        list_of_texts("forbidden", self.forbidden)

    def why_impossible(self, text: str, prefix: str) -> str:
        """Why no translation of a text can begin with this prefix; empty where one can."""
        tasks = self._tasks_of(list_of_texts("texts", [text]), list_of_texts("prefixes", [prefix]))[0]
        if not tasks and prefix.strip(BLANKS):
            return NOTHING_TO_TRANSLATE
        return next(map(self._no_room, tasks), "")

    def _tasks_of(self, texts: Sequence[str], prefixes: Sequence[str]) -> list[list[Task]]:
        """The tasks of each text, the first of which gets its prefix."""
        if self.glossary and self.search.sampling:
            raise UserError("a glossary is for beam search: leave it out, or sampling (--sampling)")
        # Outer blanks were stripped in training too; a line of a CRLF file ends with one.
        stripped = [text.strip(BLANKS) for text in texts]
        parts = parts_of(stripped, self.tokenizer, self.longest, torch.get_num_threads())
        starts = [
            prefix.strip(BLANKS) if place == 0 else ""
            for prefix, of_text in zip(prefixes, parts, strict=True)
            for place, _ in enumerate(of_text)
        ]
        return regrouped(tasks_of(list(chain.from_iterable(parts)), starts, self.tokenizer, self.glossary), parts)

    def _steps(self, task: Task) -> Iterator[Beams]:
        """The state of search for one text after each step."""
        steps = self._beam_search().steps(self._together(), *self._packed([task]), [task.constraints])
        while True:
            # Never held across a yield: what the caller computes meanwhile must not be affected.
            with self._invariant(), self._explaining_out_of_memory([task]):
                beams = next(steps, None)
            if beams is None:
                return
            yield beams

    def require_streaming(self) -> None:
        """Raise UserError unless there is a single hypothesis, of which nothing is ever taken back."""
        search = self.search
        size, name = (search.n_best, "n_best") if search.sampling else (search.beam_size, "beam_size")
        if size > 1 or self.glossary:
            given = str(size) if size > 1 else "with a glossary, which needs several"
            remedies = [f"set {name}=1 (--{name.replace('_', '-')} 1)"] if size > 1 else []
            remedies += ["leave out the glossary"] if self.glossary else []
            raise UserError(f"streaming is for a single hypothesis, not {given}: {', '.join(remedies)}")
        if self.devices:
            raise UserError("streaming uses one device: name only one (--device cuda:0)")

    def _search(self, tasks: list[Task]) -> list[list[Hypothesis]]:
        """The hypotheses of each task, searched in batches of similar length; none where constraints were not met."""
        lengths = np.array([len(task.source) for task in tasks], np.int32)
        widths = np.array([sum(map(len, task.constraints.phrases)) for task in tasks], np.int32)
        workers = len(self.devices) or min(self.workers, 1 + int(lengths.sum()) // TOKENS_OF_A_WORKER)
        if self.deterministic and not self._can_be_batch_invariant():
            runs = list(np.argsort(-lengths)[:, None])
        else:
            runs = batches(lengths, widths, workers, self.batch_tokens)
        results: list[list[Hypothesis]] = [[] for _ in tasks]
        jobs = [partial(Translator._search_batch, tasks=[tasks[index] for index in run]) for run in runs]
        mapped = self._map(jobs, workers)
        # Whatever ends this, even between two results, ends the workers: nobody would read what they still send.
        with bar("translating", len(tasks)) as progress, closing(mapped):
            for done, found in mapped:
                for index, hypotheses in zip(runs[done], found, strict=True):
                    results[index] = hypotheses
                progress.update(len(runs[done]))
        if not all(found or task.constraints for task, found in zip(tasks, results, strict=True)):
            raise RunError(NOT_FINITE)
        return results

    def _map(self, jobs: Sequence[Job[Result]], workers: int) -> Generator[tuple[int, Result]]:
        """The number of each job and its result, as jobs finish."""
        if workers == 1:
            yield from enumerate(map(self._do, jobs))
            return
        # Copied with what can be changed in place, so that workers started later have the settings of the first ones.
        now = replace(self, search=replace(self.search), forbidden=list(self.forbidden), others=list(self.others))
        if self._started and now != self._as_started:
            self._started.close()
        # No processes: other settings, or an error, ended them.
        if not (self._started and self._started.processes):
            self._started, self._as_started = Workers(workers, now._do, now._move_to_device), now
        # As many as these texts are worth; the first texts were few where input comes slowly.
        self._started.grow(workers)
        yield from self._started.map(jobs)

    def _do(self, job: Job[Result]) -> Result:
        return job(self)

    def _move_to_device(self, worker: int) -> None:
        if self.devices:
            for model in (self.model, *self.others):
                model.place(self.devices[worker], self.dtype)

    def _beam_search(self) -> BeamSearch:
        forbidden = list(filter(None, self.tokenizer.encode(self.forbidden)))
        # Coverage is known only for whole outputs: as many as the beam holds are found first.
        config = replace(self.search, n_best=self.search.beam_size) if self.search.coverage_penalty else self.search
        return BeamSearch(config, BOS, EOS, self.tokenizer.never_generated, self.longest_output, forbidden)

    def _packed(self, tasks: list[Task]) -> tuple[torch.Tensor, Layout]:
        tokens = torch.tensor([token for task in tasks for token in task.source], device=self.model.device)
        return tokens, Layout.of([len(task.source) for task in tasks], self.model.device)

    def _search_batch(self, tasks: list[Task]) -> list[list[Hypothesis]]:
        constraints = [task.constraints for task in tasks]
        with self._invariant(), self._explaining_out_of_memory(tasks):
            found = self._beam_search()(self._together(), *self._packed(tasks), constraints)
        if not self.search.coverage_penalty:
            return found
        pairs = [(task.source[:-1], one.tokens) for task, of_one in zip(tasks, found, strict=True) for one in of_one]
        attended = regrouped(self._score(pairs, attention=True), found)
        return [self._covered(*both) for both in zip(found, attended, strict=True)]

    def _covered(self, found: list[Hypothesis], attended: list[PairScore]) -> list[Hypothesis]:
        """The `n_best` hypotheses, best first, with the coverage penalty added to their scores."""
        rescored = []
        for hypothesis, score in zip(found, attended, strict=True):
            assert score.attention is not None
            penalty = coverage_penalty(score.attention[:, :-1], self.search.coverage_penalty)
            rescored.append(hypothesis._replace(score=hypothesis.score + penalty))
        return sorted(rescored, key=lambda one: -one.score)[: self.search.n_best]

    def _explaining_out_of_memory(self, tasks: list[Task]) -> AbstractContextManager[None]:
        return explaining_out_of_memory(len(tasks), sum(len(task.source) for task in tasks), self.batch_tokens)

    def _invariant(self) -> AbstractContextManager[None]:
        return batch_invariant(self.deterministic and self._can_be_batch_invariant())

    def _can_be_batch_invariant(self) -> bool:
        # The coverage penalty needs a pass over whole outputs, which is not batch-invariant.
        models = (self.model, *self.others)
        return not self.search.coverage_penalty and all(model.can_be_batch_invariant for model in models)

    def _together(self) -> TranslationModel | Ensemble:
        return Ensemble([self.model, *self.others]) if self.others else self.model

    def explain(self, translations: Sequence[Translation], *, attention: bool = False) -> list[list[list[PairScore]]]:
        """The log-probabilities of all tokens of each hypothesis of each translation, part by part; see `PairScore`.

        They are those of the (first) model itself, whatever rules search followed, and so is the attention.
        """
        parts = [part for translation in translations for output in translation.outputs for part in output]
        pairs = [(task.source[:-1], hypothesis.tokens) for task, hypothesis in parts]
        count = max(1, len(self.devices))
        shares = [pairs[len(pairs) * one // count : len(pairs) * (one + 1) // count] for one in range(count)]
        jobs = [partial(Translator._score, pairs=share, attention=attention) for share in shares]
        found = dict(self._map(jobs, count))
        scores = (
            replace(score, within_word=task.within_word)
            for score, (task, _) in zip(chain.from_iterable(found[one] for one in range(count)), parts, strict=True)
        )
        outputs = [translation.outputs for translation in translations]
        return regrouped(regrouped(scores, chain.from_iterable(outputs)), outputs)

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]], attention: bool) -> list[PairScore]:
        # A pair by itself has the same scores whatever the others are.
        groups = [[pair] for pair in pairs] if self.deterministic else [pairs]
        scored = (score_pairs(self.model, group, self.batch_tokens, attention=attention) for group in groups)
        return list(chain.from_iterable(scored))

    def _why(self, task: Task) -> str:
        """Why nothing was found for a task."""
        phrases = self.tokenizer.decode(task.constraints.phrases)
        held = ", ".join(map(repr, phrases)) or "the prefix"
        return self._no_room(task) or f"no output of at most {self._most(task)} pieces contains all of {held}"

    def _no_room(self, task: Task) -> str:
        """Why the prefix of a task does not fit; empty where it does."""
        pieces, most = len(task.constraints.prefix), self._most(task)
        return f"the prefix has {pieces} pieces, but the output may have only {most}" if pieces > most else ""

    def _most(self, task: Task) -> int:
        """The most pieces that the output of a task may have."""
        return int(longest_outputs(self.search, self.longest_output, torch.tensor(len(task.source)))) - 1
