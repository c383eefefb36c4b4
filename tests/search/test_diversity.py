"""Diverse beam search against the same over lists, and what it is for: groups that differ."""

from __future__ import annotations

import pytest

from seq2seq.config.search import SearchConfig
from tests.search.toy import EOS, SOURCES, WORDS, Exact, Prefix, ToyModel, assert_same, limit_of, log_probabilities, run


def by_lists(seed: int, source: Prefix, config: SearchConfig) -> list[list[Exact]]:
    """The finished outputs of each group; a token costs what groups before have chosen in the same step."""
    beam = config.beam_size // config.diversity_groups
    live: list[list[tuple[float, Prefix]]] = [[(0.0, ())] for _ in range(config.diversity_groups)]
    finished: list[list[Exact]] = [[] for _ in live]
    limit = limit_of(source, config)
    for length in range(1, limit + 1):
        chosen: list[int] = []
        for group, hypotheses in enumerate(live):
            candidates = []
            for total, words in hypotheses:
                row = log_probabilities(seed, source, words)
                for token in [EOS] + (WORDS if length < limit else []):
                    cost = config.diversity_penalty * chosen.count(token)
                    candidates.append((total + row[token] - cost, (*words, token)))
            best = sorted(candidates, reverse=True)[: max(2 * beam, 2)] if beam > 1 else sorted(candidates)[-1:]
            for total, tokens in best:
                if tokens[-1] == EOS:
                    penalty = ((5 + length) / 6) ** config.length_penalty
                    finished[group].append(Exact(list(tokens[:-1]), total / penalty))
            live[group] = [candidate for candidate in best if candidate[1][-1] != EOS][:beam]
            chosen += [tokens[-1] for _, tokens in live[group]]
            if finished[group]:
                finished[group].sort(key=lambda exact: -exact.score)
                bound = live[group][0][0] / ((5 + limit) / 6) ** config.length_penalty if live[group] else -1e9
                if beam == 1 or (
                    len(finished[group]) >= config.n_best and bound <= finished[group][config.n_best - 1].score
                ):
                    live[group] = []
    return [of_group[: config.n_best] for of_group in finished]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("beam_size", "groups"), [(4, 2), (6, 3), (3, 3)])
def test_it_is_the_search_over_lists(seed: int, beam_size: int, groups: int) -> None:
    config = SearchConfig(beam_size, max_length_offset=4, n_best=groups, diversity_groups=groups, diversity_penalty=0.8)
    for source, found in zip(SOURCES, run(ToyModel(seed), SOURCES, config), strict=True):
        expected = by_lists(seed, source, config)
        turns = [group[place] for place in range(groups) for group in expected if place < len(group)]
        different: dict[tuple[int, ...], Exact] = {}
        for exact in turns:
            different.setdefault(tuple(exact.tokens), exact)
        chosen = sorted([*different.values()][:groups], key=lambda exact: -exact.score)
        assert_same(found, chosen)


def test_groups_begin_differently_where_it_costs_enough() -> None:
    config = SearchConfig(3, n_best=3, diversity_groups=3, diversity_penalty=100.0, max_length_offset=6, min_length=2)
    for found in run(ToyModel(2), SOURCES, config):
        assert len({hypothesis.tokens[0] for hypothesis in found}) == 3


def test_it_does_not_depend_on_the_batch() -> None:
    config = SearchConfig(4, n_best=2, diversity_groups=2, max_length_offset=6)
    together = run(ToyModel(5), SOURCES, config)
    assert [run(ToyModel(5), [source], config)[0] for source in SOURCES] == together


@pytest.mark.parametrize("seed", range(8))
def test_groups_of_one_end_at_their_eos_however_many_outputs_are_asked_for(seed: int) -> None:
    config = SearchConfig(2, n_best=2, diversity_groups=2, diversity_penalty=100.0, max_length_offset=40, min_length=2)
    model = ToyModel(seed)
    (found,) = run(model, [SOURCES[0]], config)
    assert len(found) == 2
    # Slots of groups that have ended are closed up; the last one ends with the longer of both outputs.
    assert model.state is not None
    assert len(model.state.slots) == max(len(hypothesis.tokens) + 1 for hypothesis in found)
