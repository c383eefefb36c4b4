"""What holds for every pairing of encoder and decoder, and for the embeddings that they share."""

from __future__ import annotations

import copy
import itertools
import math
from functools import cache
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.config.compose import compose
from seq2seq.config.schema import ModelConfig, RecurrentConfig, TransformerConfig
from seq2seq.data.batches import Batch
from seq2seq.model import translation
from seq2seq.model.interfaces import Memory
from seq2seq.model.translation import DECODERS, ENCODERS, TranslationModel, build_model, count_parameters
from seq2seq.ops import native
from seq2seq.ops.packing import Layout
from seq2seq.ops.topk import MAX_INSERTED

VOCABULARY, WIDTH, BOS = 23, 16, 2
PAIRINGS = [
    *itertools.product(ENCODERS, DECODERS, ["post"]),
    ("transformer", "transformer", "pre"),
    ("ablated", "ablated", "post"),
]
every_pairing = pytest.mark.parametrize(("encoder", "decoder", "norm"), PAIRINGS)

Sentences = list[list[int]]


def kind(name: str, norm: str) -> TransformerConfig | RecurrentConfig:
    if name == "transformer":
        return TransformerConfig(num_layers=2, num_heads=4, d_ff=32, norm=norm)
    if name == "ablated":  # rows B and E of table 3: keys half as wide as values, learned positions
        return TransformerConfig(
            num_layers=2, num_heads=4, d_k=2, d_ff=32, norm=norm, positions="learned", max_positions=16
        )
    assert name == "recurrent", "a new kind needs its settings here"
    return RecurrentConfig(num_layers=2)


@cache
@torch.inference_mode(False)
def model_of(encoder: str, decoder: str, norm: str) -> TranslationModel:
    config = ModelConfig(d_model=WIDTH, encoder=kind(encoder, norm), decoder=kind(decoder, norm))
    model = build_model(config, VOCABULARY, seed=4)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            # No bias may stay 0 and no norm 1: they would hide that a term is missing.
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    return model.eval()


@cache
@torch.inference_mode(False)
def exact_model_of(encoder: str, decoder: str, norm: str) -> TranslationModel:
    """The same in float64, in which rounding stays far below what a leak would change."""
    return copy.deepcopy(model_of(encoder, decoder, norm)).double()


def packed(sentences: Sentences) -> tuple[Tensor, Layout]:
    return torch.tensor([token for sentence in sentences for token in sentence]), Layout.of([*map(len, sentences)])


def batch_of(sources: Sentences, targets: Sentences) -> Batch:
    target, target_layout = packed(targets)
    return Batch(*packed(sources), target, target, target_layout)


def hidden(model: TranslationModel, sources: Sentences, targets: Sentences) -> list[Tensor]:
    return list(model(batch_of(sources, targets)).split([len(target) for target in targets]))


token = st.integers(0, VOCABULARY - 1)
sentence = st.lists(token, min_size=1, max_size=6)
pairs = st.lists(st.tuples(sentence, sentence), min_size=1, max_size=4)


@every_pairing
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_a_future_token_changes_nothing_before_it(encoder: str, decoder: str, norm: str, data: st.DataObject) -> None:
    drawn = data.draw(pairs)
    sources, targets = [pair[0] for pair in drawn], [pair[1] for pair in drawn]
    row = data.draw(st.integers(0, len(targets) - 1))
    place = data.draw(st.integers(0, len(targets[row]) - 1))
    changed = [list(target) for target in targets]
    changed[row][place] = (targets[row][place] + data.draw(st.integers(1, VOCABULARY - 1))) % VOCABULARY
    with torch.set_grad_enabled(data.draw(st.booleans())):
        before = hidden(model_of(encoder, decoder, norm), sources, targets)
        after = hidden(model_of(encoder, decoder, norm), sources, changed)
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        unchanged = place if index == row else len(old)
        torch.testing.assert_close(new[:unchanged], old[:unchanged], atol=1e-6, rtol=0)
    assert not torch.allclose(after[row][place], before[row][place], atol=1e-4)


@every_pairing
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_other_sentences_in_the_batch_change_nothing(
    encoder: str, decoder: str, norm: str, data: st.DataObject
) -> None:
    model, drawn = exact_model_of(encoder, decoder, norm), data.draw(pairs)
    with torch.set_grad_enabled(data.draw(st.booleans())):
        together = hidden(model, [pair[0] for pair in drawn], [pair[1] for pair in drawn])
        for (source, target), rows in zip(drawn, together, strict=True):
            (alone,) = hidden(model, [source], [target])
            torch.testing.assert_close(rows, alone, atol=1e-6, rtol=0)


@every_pairing
def test_every_source_token_counts_for_its_own_sentence_only(encoder: str, decoder: str, norm: str) -> None:
    model = model_of(encoder, decoder, norm)
    sources, targets = [[5, 6, 7], [8], [9, 10]], [[BOS, 4], [BOS, 5, 6], [BOS]]
    before = hidden(model, sources, targets)
    for place in range(3):
        changed = [list(source) for source in sources]
        changed[0][place] = 20
        after = hidden(model, changed, targets)
        assert float((after[0] - before[0]).detach().abs().amax(1).min()) > 1e-5
        for old, new in zip(before[1:], after[1:], strict=True):
            torch.testing.assert_close(new, old, atol=1e-6, rtol=0)


@every_pairing
@pytest.mark.parametrize("rows", [1, 4, 7, 100])
def test_a_processor_encodes_part_by_part_what_it_does_at_once(
    encoder: str, decoder: str, norm: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = exact_model_of(encoder, decoder, norm)
    tokens, layout = packed([[5, 6, 7], [8], [9, 10], [4, 4, 4, 4, 4], [11]])
    counted = Mock(wraps=model.get_submodule("encoder").forward)
    monkeypatch.setattr(translation, "ROWS", rows)
    monkeypatch.setattr(model.encoder, "forward", counted)
    with torch.no_grad():
        found = model.encode(tokens, layout)
    assert counted.call_count == {1: 5, 4: 3, 7: 2, 100: 1}[rows]
    assert found.layout is layout
    torch.testing.assert_close(found.rows, model.encoder(tokens, layout).rows, atol=1e-9, rtol=0)


def test_rows_with_filler_are_encoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exact_model_of("transformer", "transformer", "post")
    tokens, layout = packed([[5, 6, 7], [8], [9, 10]])
    filled = Layout(layout.lengths, layout.max_length, layout.total + 2, 2)
    monkeypatch.setattr(translation, "ROWS", 1)
    with torch.no_grad():
        found = model.encode(F.pad(tokens, (0, 2)), filled)
        assert found.layout is filled
        torch.testing.assert_close(found.rows[:6], model.encoder(tokens, layout).rows, atol=1e-9, rtol=0)


def expected_logits(model: TranslationModel, sources: Sentences, prefixes: list[list[list[int]]]) -> Tensor:
    """Logits after the last token of each prefix [S][K], each from a full pass over it alone."""
    return torch.stack(
        [
            torch.stack([F.linear(hidden(model, [source], [prefix])[0][-1], model.output_weight) for prefix in of_slot])
            for source, of_slot in zip(sources, prefixes, strict=True)
        ]
    )


@every_pairing
@pytest.mark.parametrize("lengths", [[3, 1, 4, 2], [3, 3, 3, 3]])
@torch.inference_mode()
def test_steps_of_search_are_the_full_forward_pass(encoder: str, decoder: str, norm: str, lengths: list[int]) -> None:
    model = model_of(encoder, decoder, norm)
    generator = torch.Generator().manual_seed(6)

    def draw(*shape: int, below: int = VOCABULARY) -> list[Any]:
        return torch.randint(below, shape, generator=generator).tolist()

    sources: Sentences = [draw(length) for length in lengths]
    state = model.start(model.encode(*packed(sources)))
    prefixes: list[list[list[int]]] = [[[]] for _ in sources]
    width = 1
    # The slots that go on, in their order, and how many hypotheses each has.
    for slots, new_width in (
        ([0, 1, 2, 3], 1),
        ([0, 1, 2, 3], 3),
        ([0, 1, 2, 3], 3),
        ([0, 2, 3], 3),
        ([2, 0], 2),
        ([0, 1], 4),
        ([1], 1),
    ):
        places = draw(len(slots), new_width, below=width)
        tokens = draw(len(slots), new_width)
        prefixes = [
            [[*prefixes[slot][place], new] for place, new in zip(of_slot, new_tokens, strict=True)]
            for slot, of_slot, new_tokens in zip(slots, places, tokens, strict=True)
        ]
        sources_before, sources = sources, [sources[slot] for slot in slots]
        if slots != list(range(len(sources_before))):
            model.keep(state, torch.tensor(slots))
        logits = model.logits(model.step(state, torch.tensor(tokens), torch.tensor(places)))
        torch.testing.assert_close(logits, expected_logits(model, sources, prefixes), atol=1e-5, rtol=0)
        width = new_width


@every_pairing
@torch.inference_mode()
def test_steps_in_bfloat16_are_near(encoder: str, decoder: str, norm: str) -> None:
    exact = model_of(encoder, decoder, norm)
    config = ModelConfig(d_model=WIDTH, encoder=kind(encoder, norm), decoder=kind(decoder, norm))
    rounded = TranslationModel(config, VOCABULARY).eval()
    rounded.load_state_dict(exact.state_dict())
    rounded = rounded.to(torch.bfloat16)
    sources = packed([[5, 6, 7], [8]])
    states = [(model, model.start(model.encode(*sources))) for model in (exact, rounded)]
    for parents, tokens in (
        ([[0], [0]], [[BOS], [BOS]]),
        ([[0, 0], [0, 0]], [[4, 5], [6, 7]]),
        ([[1, 0], [1, 1]], [[9, 9], [8, 4]]),
    ):
        expected, out = (
            model.logits(model.step(state, torch.tensor(tokens), torch.tensor(parents))) for model, state in states
        )
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0)


@every_pairing
def test_forward_pass_gives_a_gradient_to_every_weight(encoder: str, decoder: str, norm: str) -> None:
    model = model_of(encoder, decoder, norm)
    rows = model(batch_of([[5, 6, 7], [8]], [[BOS, 4, 5], [BOS, 6]]))
    grads = torch.autograd.grad((rows * torch.randn(rows.shape)).sum(), list(model.parameters()))
    assert all(float(grad.abs().sum()) > 0 for grad in grads)


def embeddings(tie: str) -> tuple[TranslationModel, set[int], Tensor, Tensor]:
    model = build_model(ModelConfig(d_model=WIDTH, tie_embeddings=tie), VOCABULARY, 1)
    tables = [parameter for parameter in model.parameters() if tuple(parameter.shape) == (VOCABULARY, WIDTH)]
    return model, {id(table) for table in tables}, model.target_embedding.weight, model.output_weight


def input_of(module: nn.Module) -> nn.Parameter:
    found: list[Any] = [part for name, part in module.named_parameters() if name.endswith("embedding.weight")]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(("tie", "matrices"), [("all", 1), ("target", 2), ("none", 3)])
def test_tying_shares_matrices(tie: str, matrices: int) -> None:
    model, tables, target, output = embeddings(tie)
    source = input_of(model.get_submodule("encoder"))
    assert input_of(model.get_submodule("decoder")) is target
    assert (source is target) == (tie == "all")
    assert (output is target) == (tie != "none")
    assert {id(source), id(target), id(output)} == tables
    assert len(tables) == matrices


def test_a_seed_names_one_model_and_leaves_the_random_state() -> None:
    config = ModelConfig(d_model=WIDTH, encoder=kind("transformer", "post"), decoder=kind("transformer", "post"))
    state = torch.get_rng_state()
    first, second, other = (build_model(config, VOCABULARY, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for one, same in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, same)
    assert not torch.equal(first.output_weight, other.output_weight)


def paper_size(vocabulary: int, d_model: int, d_ff: int, layers: int) -> int:
    """Weights of the paper's Transformer, counted on paper; the number of heads does not enter."""
    attention = 4 * (d_model * d_model + d_model)  # query, key, value and output, each with a bias
    feed_forward = d_model * d_ff + d_ff + d_ff * d_model + d_model
    norm = 2 * d_model
    encoder_layer = attention + feed_forward + 2 * norm
    decoder_layer = 2 * attention + feed_forward + 3 * norm
    return vocabulary * d_model + layers * (encoder_layer + decoder_layer)


@pytest.mark.parametrize(
    ("name", "d_model", "d_ff", "expected"), [("base", 512, 2048, 63_082_496), ("big", 1024, 4096, 214_245_376)]
)
def test_base_and_big_have_the_papers_size(name: str, d_model: int, d_ff: int, expected: int) -> None:
    config = compose([f"model={name}", "run_dir=unused"]).model
    with torch.device("meta"):
        model = TranslationModel(config, 37_000)
    assert count_parameters(model) == paper_size(37_000, d_model, d_ff, 6) == expected


def test_no_vocabulary_explains_both_sizes_in_the_paper() -> None:
    # Table 3 says 65 M for base and 213 M for big; with 37,000 pieces and our biases they are 63.1 M and 214.2 M.
    # The vocabulary, "about 37000" in the paper, is the one term large enough to explain that: 65 M needs 39,769 to
    # 41,721 pieces, 213 M needs 35,296 to 36,272. The two do not overlap, so no one vocabulary gives both numbers.
    # Nor do other conventions close the gap: leaving out the biases of attention, as some implementations do, takes
    # 0.04 M from base and 0.07 M from big. The paper does not say what it counted; we do not know.
    def pieces(millions: float, d_model: int, d_ff: int) -> float:
        return (millions * 1e6 - paper_size(0, d_model, d_ff, 6)) / d_model

    base = math.ceil(pieces(64.5, 512, 2048)), math.floor(pieces(65.5, 512, 2048))
    big = math.ceil(pieces(212.5, 1024, 4096)), math.floor(pieces(213.5, 1024, 4096))
    assert (base, big) == ((39_769, 41_721), (35_296, 36_272))
    for d_model, millions in ((512, 0.04), (1024, 0.07)):
        assert 18 * 4 * d_model / 1e6 == pytest.approx(millions, abs=0.005)


def test_memory_is_rows_and_their_layout() -> None:
    model = model_of("transformer", "transformer", "post")
    tokens, layout = packed([[5, 6, 7], [8]])
    memory = model.encode(tokens, layout)
    assert isinstance(memory, Memory)
    assert memory.rows.shape == (4, WIDTH)
    assert memory.layout is layout


@every_pairing
@torch.no_grad()
def test_a_model_made_ready_to_translate_gives_the_same_logits(encoder: str, decoder: str, norm: str) -> None:
    plain = model_of(encoder, decoder, norm)
    ready = copy.deepcopy(plain).place(torch.device("cpu"), torch.float32)
    layout = Layout.of([3, 1])
    found = []
    for model in (plain, ready):
        state = model.start(model.encode(torch.tensor([5, 6, 3, 3]), layout))
        model.step(state, torch.tensor([[BOS], [BOS]]), torch.zeros(2, 1, dtype=torch.int64))
        hidden = model.step(state, torch.tensor([[7, 8], [9, 5]]), torch.zeros(2, 2, dtype=torch.int64))
        found.append(model.logits(hidden))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


@every_pairing
def test_a_model_can_do_what_both_its_sides_can(
    encoder: str, decoder: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    widest = WIDTH // 4
    monkeypatch.setattr("seq2seq.model.attention.supports_short_sentences", lambda *kind: max(kind[2:]) == widest)
    model, both = model_of(encoder, decoder, norm), "recurrent" not in (encoder, decoder)
    assert model.can_be_recorded(torch.device("cuda"), torch.bfloat16) == both
    assert not model.can_be_batch_invariant
    ready = copy.deepcopy(model).train().place(torch.device("cpu"), torch.float32)
    assert not ready.training
    assert ready.can_be_batch_invariant == (both and native.has_fast_matmul())


@pytest.mark.skipif(not native.has_fast_matmul(), reason="logits are written out here")
@torch.no_grad()
def test_more_continuations_than_a_list_holds_or_there_are_need_logits() -> None:
    ready = copy.deepcopy(model_of("transformer", "transformer", "post")).place(torch.device("cpu"), torch.float32)
    for width, most in ((1, VOCABULARY), (4, MAX_INSERTED)):
        hidden, scores, never = torch.randn(1, width, WIDTH), torch.zeros(1, width), torch.tensor([0])
        assert ready.best(hidden, scores, most, never) is not None
        assert ready.best(hidden, scores, most + 1, never) is None
