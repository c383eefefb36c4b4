"""The recurrent kind: against the formulas of Bahdanau et al. (2015), and in every pairing with the Transformer."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from seq2seq.config.compose import compose
from seq2seq.config.schema import Config, ModelConfig, RecurrentConfig, TransformerConfig
from seq2seq.config.search import SearchConfig
from seq2seq.data.batches import Batch
from seq2seq.data.tokenizer import EOS, Tokenizer, train_tokenizer
from seq2seq.model.directory import load_model_directory, save_model_directory
from seq2seq.model.embedding import Embedding
from seq2seq.model.interfaces import Memory
from seq2seq.model.recurrent import AdditiveAttention, RecurrentDecoder, RecurrentEncoder
from seq2seq.model.translation import TranslationModel, build_model
from seq2seq.model.weights import own_weights
from seq2seq.ops.packing import Layout
from seq2seq.search.beam import BeamSearch
from seq2seq.support.errors import UserError
from seq2seq.train.loss import batch_loss

VOCABULARY = 40
PAIRINGS = list(itertools.product(("transformer", "recurrent"), repeat=2))
SOURCE, TARGET = Layout.of([3, 6, 4]), Layout.of([5, 2, 7])


def model_of(encoder: str, decoder: str) -> TranslationModel:
    kinds = {
        "transformer": TransformerConfig(num_layers=2, num_heads=4, d_ff=64, dropout=0.0),
        "recurrent": RecurrentConfig(num_layers=2, dropout=0.0),
    }
    config = ModelConfig(d_model=32, dropout=0.0, encoder=kinds[encoder], decoder=kinds[decoder])
    return build_model(config, VOCABULARY, 1)


def batch() -> Batch:
    tokens = torch.randint(4, VOCABULARY, (SOURCE.total + TARGET.total,), generator=torch.Generator().manual_seed(2))
    source, target_out = tokens[: SOURCE.total], tokens[SOURCE.total :]
    return Batch(source, SOURCE, target_out.roll(1), target_out, TARGET)


def test_the_encoder_reads_each_sentence_as_a_plain_lstm_reads_it_alone() -> None:
    torch.manual_seed(0)
    encoder = RecurrentEncoder(RecurrentConfig(num_layers=2, dropout=0.0), Embedding(VOCABULARY, 16)).eval()
    data = batch()
    rows = encoder(data.source, SOURCE).rows.split([3, 6, 4])
    for tokens, found in zip(data.source.split([3, 6, 4]), rows, strict=True):
        expected, _ = encoder.lstm(encoder.embedding(tokens)[None])
        torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-6)


def test_additive_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    attention = AdditiveAttention(8)
    states, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    found, weights = attention(states, attention.key(memory), memory, mask)
    for slot, length in ((0, 5), (1, 2)):
        for place in range(3):
            energies = torch.stack(
                [
                    attention.energy((attention.query(states[slot, place]) + attention.key(memory[slot, j])).tanh())[0]
                    for j in range(length)
                ]
            )
            expected = energies.softmax(0) @ memory[slot, :length]
            torch.testing.assert_close(found[slot, place], expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(weights[slot, place, :length], energies.softmax(0), rtol=0, atol=1e-6)
            assert not weights[slot, place, length:].any()


def test_the_decoder_reads_a_token_and_what_the_state_before_it_attended_to() -> None:
    torch.manual_seed(0)
    decoder = RecurrentDecoder(RecurrentConfig(num_layers=2, dropout=0.0), Embedding(VOCABULARY, 8)).eval()
    memory, tokens = torch.randn(5, 8), torch.tensor([4, 9, 4])
    found = decoder(tokens, Layout.of([3]), Memory(memory, Layout.of([5])))
    hidden = [initial(memory.mean(0, keepdim=True)).tanh() for initial in decoder.initial]
    cell = [torch.zeros(1, 8) for _ in hidden]
    keys, mask = decoder.attention.key(memory)[None], torch.ones(1, 5, dtype=torch.bool)
    for token, row in zip(tokens, found, strict=True):
        x = decoder.embedding(token)[None]
        context = decoder.attention(hidden[-1][None], keys, memory[None], mask)[0][0]
        below = torch.cat((x, context), 1)
        for layer, unit in enumerate(decoder.cells):
            hidden[layer], cell[layer] = unit(below, (hidden[layer], cell[layer]))
            below = hidden[layer]
        expected = decoder.output(torch.cat((below, context, x), 1)).tanh()
        torch.testing.assert_close(row, expected[0], rtol=0, atol=1e-6)


def test_attention_comes_with_the_rows_and_there_is_one() -> None:
    model, data = model_of("recurrent", "recurrent").eval(), batch()
    for layer in (None, 1):
        rows, found = model.with_attention(data, layer)
        torch.testing.assert_close(rows, model(data))
        for own, target, source in zip(found, TARGET.lengths.tolist(), SOURCE.lengths.tolist(), strict=True):
            assert own.shape == (target, source)
            torch.testing.assert_close(own.sum(1), torch.ones(target))
    with pytest.raises(UserError, match="attention of layer 2: a recurrent decoder has one"):
        model.with_attention(data, 2)
    assert all(own.dtype == torch.float32 for own in model.bfloat16().with_attention(data)[1])


def test_dropout_falls_on_what_is_read_and_on_what_comes_out() -> None:
    torch.manual_seed(0)
    config, embedding = RecurrentConfig(num_layers=2, dropout=0.5), Embedding(VOCABULARY, 64)
    encoder, decoder = RecurrentEncoder(config, embedding), RecurrentDecoder(config, embedding)
    tokens, layout = torch.arange(30), Layout.of([30])
    read: list[torch.Tensor] = []
    encoder.lstm.register_forward_pre_hook(lambda _, given: read.append(given[0].data))
    for part in (*decoder.cells, decoder.output):
        part.register_forward_pre_hook(lambda _, given: read.append(given[0].flatten(0, -2)[:, :64]))
    memory = encoder(tokens, layout)
    rows = decoder(tokens, layout, memory)
    steps = [torch.cat(read[1 + part :: 3]) for part in range(3)]
    for dropped in (read[0], memory.rows, *steps, rows):
        assert dropped.shape == (30, 64)
        assert float((dropped == 0).float().mean()) == pytest.approx(0.5, abs=0.06)
    memory = encoder.eval()(tokens, layout)
    assert memory.rows.all() and decoder.eval()(tokens, layout, memory).all()


@pytest.mark.parametrize(("encoder", "decoder"), PAIRINGS)
def test_stepping_is_the_whole_pass(encoder: str, decoder: str) -> None:
    model, data = model_of(encoder, decoder).eval(), batch()
    with torch.no_grad():
        whole = TARGET.unpack(nn.functional.linear(model(data), model.output_weight))
        state = model.start(model.encode(data.source, SOURCE))
        tokens = TARGET.unpack(data.target_in)
        for step in range(TARGET.max_length):
            logits = model.logits(model.step(state, tokens[:, step : step + 1], torch.zeros(3, 1, dtype=torch.int64)))[
                :, 0
            ]
            there = TARGET.mask[:, step]
            torch.testing.assert_close(logits[there], whole[there, step], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("encoder", "decoder"), PAIRINGS)
def test_every_pairing_learns_and_search_does_not_see_the_batch(encoder: str, decoder: str) -> None:
    model, data = model_of(encoder, decoder), batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        loss, _ = batch_loss(model, data, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    search = BeamSearch(SearchConfig(beam_size=3, n_best=2, max_length_offset=6), 2, EOS, [0, 1, 2])
    together = search(model, data.source, SOURCE)
    for tokens, found in zip(data.source.split([3, 6, 4]), together, strict=True):
        (alone,) = search(model, tokens, Layout.of([len(tokens)]))
        assert [hypothesis.tokens for hypothesis in alone] == [hypothesis.tokens for hypothesis in found]
        assert [one.score for one in alone] == pytest.approx([one.score for one in found], abs=1e-4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    lines = [f"the number {number} in words" for number in range(200)]
    return train_tokenizer(lines, compose_pairing("recurrent", "recurrent").tokenizer)


def compose_pairing(encoder: str, decoder: str) -> Config:
    return compose(
        ["+recipe=quickstart", f"model/encoder={encoder}", f"model/decoder={decoder}", "tokenizer.vocab_size=300"]
        + ["model.d_model=16", *(f"model.{side}.num_layers=1" for side in ("encoder", "decoder"))]
        + [
            f"model.{side}.{key}=4"
            for side, kind in (("encoder", encoder), ("decoder", decoder))
            if kind == "transformer"
            for key in ("num_heads", "d_ff")
        ]
    )


@pytest.mark.parametrize(("encoder", "decoder"), PAIRINGS)
def test_every_pairing_composes_and_survives_its_directory(
    encoder: str, decoder: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = compose_pairing(encoder, decoder)
    model = build_model(config.model, tokenizer.vocab_size, 1)
    save_model_directory(tmp_path / "model", config, tokenizer, own_weights(model), steps=0)
    loaded_config, _, loaded, _ = load_model_directory(tmp_path / "model")
    assert loaded_config == config
    weights, expected = own_weights(loaded), own_weights(model)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
