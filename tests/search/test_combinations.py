"""Settings of search in any combination: nothing breaks, and what was asked for holds."""

from __future__ import annotations

import math
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from seq2seq.config.search import SearchConfig
from seq2seq.search.beam import BeamSearch
from seq2seq.search.interfaces import Constraints
from tests.search.toy import SOURCES, WORDS, ToyModel, holds, limit_of, run

WORD = st.sampled_from(WORDS)
PHRASES = st.lists(st.lists(WORD, min_size=1, max_size=3), max_size=2)


@st.composite
def configs(draw: st.DrawFn) -> SearchConfig:
    """Beam search, diverse or not, or sampling, with any of the other settings."""
    groups = draw(st.integers(1, 3))
    beam_size = groups * draw(st.integers(1, 3))
    config = SearchConfig(
        beam_size,
        n_best=draw(st.integers(1, beam_size)),
        length_normalization=draw(st.sampled_from(["gnmt", "average", "none"])),
        max_length=draw(st.none() | st.integers(1, 7)),
        max_length_offset=draw(st.integers(1, 6)),
        min_length_ratio=draw(st.sampled_from([0.0, 0.5, 2.0])),
        no_repeat_ngram=draw(st.integers(0, 3)),
        repetition_penalty=draw(st.sampled_from([0.5, 1.0, 1.5])),
        sampling=draw(st.booleans()) and groups == 1,
        diversity_groups=groups,
    )
    if config.sampling:
        config.temperature = draw(st.sampled_from([0.1, 1.0, 3.0]))
        config.top_k, config.top_p = draw(st.integers(0, 3)), draw(st.sampled_from([0.3, 1.0]))
    return config


@given(configs(), st.data(), st.integers(0, 99), PHRASES)
def test_what_is_found_is_what_was_asked_for(
    config: SearchConfig, data: st.DataObject, seed: int, forbidden: list[list[int]]
) -> None:
    none: st.SearchStrategy[list[list[int]]] = st.just([])
    wishes = st.builds(Constraints, st.lists(WORD, max_size=4), none if config.sampling else PHRASES)
    wanted = [data.draw(wishes) for _ in SOURCES]
    everything = run(ToyModel(seed), SOURCES, config, wanted, forbidden)
    # On a GPU sentences that are done stay for a while: nothing may come of it.
    with patch.object(BeamSearch, "least_done", lambda *_: data.draw(st.sampled_from([0.5, 1.0]))):
        assert run(ToyModel(seed), SOURCES, config, wanted, forbidden) == everything
    for source, wish, found in zip(SOURCES, wanted, everything, strict=True):
        scores = [hypothesis.score for hypothesis in found]
        assert scores == sorted(scores, reverse=True) and all(map(math.isfinite, scores))
        most = min(limit_of(source, config), config.max_length or math.inf)
        for tokens, _, limited in found:
            assert len(tokens) < most and limited == (len(tokens) + 1 == most)
            begin = len(wish.prefix)
            assert tokens[:begin] == wish.prefix
            assert all(holds(tokens, phrase) for phrase in wish.phrases)
            # What the prefix holds was asked for; nothing forbidden may end after it.
            ends = [tokens[:end] for end in range(begin + 1, len(tokens) + 1)]
            assert not any(end[-len(phrase) :] == phrase for end in ends for phrase in forbidden)
