"""Layers in one call against the same layers one part at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from seq2seq.config.schema import ModelConfig, TransformerConfig
from seq2seq.model.decoder import TransformerDecoder
from seq2seq.model.decoder_layer import DecoderLayer
from seq2seq.model.embedding import Embedding
from seq2seq.model.encoder import TransformerEncoder
from seq2seq.model.interfaces import Memory
from seq2seq.model.layers import FeedForward
from seq2seq.model.native_layers import NativeDecoder
from seq2seq.model.row_cache import RowCache
from seq2seq.model.translation import build_model
from seq2seq.ops import native
from seq2seq.ops.batch_invariance import batch_invariant
from seq2seq.ops.compiled import compile_regions
from seq2seq.ops.linear import Linear, replace_linears
from seq2seq.ops.packing import Layout
from seq2seq.ops.panel_linear import PanelLinear
from seq2seq.ops.quantized_linear import in_int8
from seq2seq.ops.row_attention import SHORT
from seq2seq.support.errors import UserError

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
WIDTH, VOCABULARY = 24, 31
Randomise = Callable[[nn.Module], None]
FORMATS = [(torch.float32, PanelLinear.of, 2e-5), (torch.bfloat16, PanelLinear.of, 6e-2), (torch.float32, in_int8, 0.3)]


def finished(
    side: type[TransformerDecoder] | type[TransformerEncoder],
    randomise: Randomise,
    norm: str,
    d_k: int | None,
    dtype: torch.dtype,
    make: Callable[..., nn.Module] = PanelLinear.of,
    sizes: tuple[int, int] = (WIDTH, 40),
    **others: Any,
) -> TransformerDecoder | TransformerEncoder:
    config = TransformerConfig(num_layers=3, num_heads=4, d_k=d_k, d_ff=sizes[1], norm=norm, dropout=0.0, **others)
    found = side(config, Embedding(VOCABULARY, sizes[0]))
    randomise(found)
    found.to(dtype).eval()
    replace_linears(found, make)
    found.finish()
    return found


def decoder_of(randomise: Randomise, norm: str = "post", d_k: int | None = None, *others: object) -> TransformerDecoder:
    return cast(TransformerDecoder, finished(TransformerDecoder, randomise, norm, d_k, *(others or (torch.float32,))))  # type: ignore[arg-type]


def steps(
    decoder: TransformerDecoder, dtype: torch.dtype, sentences: int = 3, width_of_model: int = WIDTH
) -> list[Tensor]:
    """The rows of some steps of three sentences, of which one goes away, with more and fewer hypotheses of each."""
    generator = torch.Generator().manual_seed(2)
    layout = Layout.of([1 + number * 2 % 7 for number in range(sentences)])
    found = []
    with torch.no_grad():
        state = decoder.start(Memory(torch.randn(layout.total, width_of_model, generator=generator).to(dtype), layout))
        assert isinstance(state, RowCache)
        slots, before = sentences, 1
        for number, width in enumerate([1, 4, 4, 2, 5, 1, 3]):
            tokens = torch.randint(VOCABULARY, (slots, width), generator=generator)
            parents = torch.randint(before, (slots, width), generator=generator)
            found.append(decoder.step(state, tokens, parents))
            before = width
            if number == 3:
                decoder.keep(state, torch.tensor([slots - 1, *range(slots - 2)]))
                slots -= 1
    return found


def assert_near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.dtype == wanted.dtype
    scale = wanted.float().abs().amax()
    torch.testing.assert_close(found.float() / scale, wanted.float() / scale, atol=tolerance, rtol=0)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("d_k", [None, 5])
@pytest.mark.parametrize("sentences", [3, 70])
@pytest.mark.parametrize(("dtype", "make", "tolerance"), FORMATS)
def test_a_step_is_that_of_the_layers_one_part_at_a_time(
    norm: str,
    d_k: int | None,
    sentences: int,
    dtype: torch.dtype,
    make: Callable[..., nn.Module],
    tolerance: float,
    randomise: Randomise,
    native_calls: list[str],
) -> None:
    decoder, calls = decoder_of(randomise, norm, d_k, dtype, make), native_calls
    calls.clear()
    found = steps(decoder, dtype, sentences)
    assert calls.count("decoder_step") == len(found)
    decoder._native = None
    expected = steps(decoder, dtype, sentences)
    assert calls.count("decoder_step") == len(found)
    for own, wanted in zip(found, expected, strict=True):
        assert_near(own, wanted, tolerance)


@pytest.mark.parametrize(("positions", "length"), [("sinusoidal", 700), ("learned", 20)])
def test_steps_are_the_rows_of_the_whole_at_all_positions(
    positions: str, length: int, randomise: Randomise, native_calls: list[str]
) -> None:
    settings: dict[str, Any] = {"positions": positions, "max_positions": 20}
    decoder = cast(TransformerDecoder, finished(TransformerDecoder, randomise, "post", None, torch.float32, **settings))
    native_calls.clear()
    generator = torch.Generator().manual_seed(2)
    memory = Memory(torch.randn(3, WIDTH, generator=generator), Layout.of([3]))
    tokens = torch.randint(VOCABULARY, (length,), generator=generator)
    with torch.no_grad():
        state, parents = decoder.start(memory), torch.zeros(1, 1, dtype=torch.int64)
        found = torch.cat([decoder.step(state, token.view(1, 1), parents)[0] for token in tokens])
        assert native_calls.count("decoder_step") == length
        assert_near(found, decoder(tokens, Layout.of([length]), memory), 2e-5)
        if positions == "learned":
            with pytest.raises(UserError, match=f"a sequence of {length + 1} pieces"):
                decoder.step(state, tokens[:1].view(1, 1), parents)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("d_k", [None, 5])
@pytest.mark.parametrize("lengths", [[1], [3, 1, 7], [1 + number % 9 for number in range(60)]])
@pytest.mark.parametrize(("dtype", "make", "tolerance"), FORMATS)
def test_an_encoder_is_its_layers_one_part_at_a_time(
    norm: str,
    d_k: int | None,
    lengths: list[int],
    dtype: torch.dtype,
    make: Callable[..., nn.Module],
    tolerance: float,
    randomise: Randomise,
    monkeypatch: pytest.MonkeyPatch,
    native_calls: list[str],
) -> None:
    encoder, calls = finished(TransformerEncoder, randomise, norm, d_k, dtype, make), native_calls
    calls.clear()
    layout = Layout.of(lengths)
    tokens = torch.randint(VOCABULARY, (layout.total,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = encoder(tokens, layout).rows
        assert calls == ["embed", "encoder_layers"]
        monkeypatch.setattr(encoder, "_native", None)
        assert_near(found, encoder(tokens, layout).rows, tolerance)
        assert calls.count("encoder_layers") == 1


@pytest.mark.parametrize(("dtype", "make"), [(dtype, make) for dtype, make, _ in FORMATS])
@pytest.mark.parametrize(("sizes", "sentences"), [((WIDTH, 40), 100), ((512, 2048), 3)])
def test_with_several_threads_it_is_the_same_to_the_last_bit(
    sizes: tuple[int, int], sentences: int, dtype: torch.dtype, make: Callable[..., nn.Module], randomise: Randomise
) -> None:
    decoder = decoder_of(randomise, "post", None, dtype, make, sizes)
    encoder = finished(TransformerEncoder, randomise, "post", None, dtype, make, sizes)
    layout, tokens = Layout.of([3] * sentences), torch.arange(3 * sentences) % VOCABULARY
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with torch.no_grad():
                found.append([*steps(decoder, dtype, sentences, sizes[0]), encoder(tokens, layout).rows])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(own, wanted) for own, wanted in zip(other, found[0], strict=True))


def test_a_copy_has_weights_of_its_own(randomise: Randomise) -> None:
    decoder = decoder_of(randomise)
    expected = steps(decoder, torch.float32)
    other = copy.deepcopy(decoder)
    own, of_other = cast(NativeDecoder, decoder._native), cast(NativeDecoder, other._native)
    assert all(one is layer for one, layer in zip(of_other.layers, other.layers, strict=True))
    assert of_other.embedding is other.input and of_other.norm is other.norm
    assert not set(own._structs.flatten().tolist()) & {x for x in of_other._structs.flatten().tolist() if x > 1 << 20}
    del decoder, own
    assert all(torch.equal(one, wanted) for one, wanted in zip(steps(other, torch.float32), expected, strict=True))


def test_an_encoder_of_longer_sentences_attends_by_a_grid_but_where_batches_must_not_matter(
    randomise: Randomise, native_calls: list[str]
) -> None:
    encoder, calls = finished(TransformerEncoder, randomise, "post", None, torch.float32), native_calls
    calls.clear()
    layout = Layout.of([SHORT[torch.float32] + 1])
    tokens = torch.arange(layout.total) % VOCABULARY
    with torch.no_grad():
        found = encoder(tokens, layout).rows
        assert "encoder_layers" not in calls
        with batch_invariant(True):
            assert_near(encoder(tokens, layout).rows, found, 2e-5)
        assert "encoder_layers" in calls


def test_it_is_for_layers_that_are_laid_out_for_it(randomise: Randomise) -> None:
    decoder = decoder_of(randomise)
    assert decoder._native
    layer = cast(DecoderLayer, decoder.layers[1])
    linear = layer.self_attention.query
    layer.self_attention.query = Linear(WIDTH, WIDTH)
    decoder.finish()
    assert decoder._native is None
    layer.self_attention.query = linear
    decoder.finish()
    assert decoder._native


@pytest.mark.parametrize(
    "name",
    [
        *("layers.1", "layers.1.feed_forward", "layers.1.self_attention", "layers.1.cross_residual"),
        *("layers.1.self_residual.norm", "input", "norm"),
    ],
)
def test_a_derived_class_is_computed_as_it_says_itself(randomise: Randomise, name: str) -> None:
    decoder = decoder_of(randomise, "pre")
    assert decoder._native
    changed = decoder.get_submodule(name)
    changed.__class__ = type("Changed", (type(changed),), {})
    decoder.finish()
    assert decoder._native is None


@pytest.mark.parametrize("side", [TransformerEncoder, TransformerDecoder])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_layers_that_were_changed_are_computed_as_they_say_and_a_line_tells(
    side: type[TransformerDecoder] | type[TransformerEncoder],
    norm: str,
    randomise: Randomise,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for dtype, make, _ in FORMATS:
        assert finished(side, randomise, norm, None, dtype, make)._native
    assert not capsys.readouterr().err
    monkeypatch.setattr(FeedForward, "forward", lambda layer, x: layer.outer(functional.gelu(layer.inner(x))))
    assert not finished(side, randomise, norm, None, torch.float32)._native
    (line,) = capsys.readouterr().err.splitlines()
    assert "not what the layers in Python compute" in line


def test_a_model_in_training_is_made_ready_without_dropout(capsys: pytest.CaptureFixture[str]) -> None:
    side = TransformerConfig(num_layers=2, num_heads=4, d_ff=40, dropout=0.5)
    model = build_model(ModelConfig(d_model=WIDTH, dropout=0.5, encoder=side, decoder=side), VOCABULARY, 1).train()
    model.place(torch.device("cpu"), torch.float32)
    sides = cast(TransformerEncoder, model.encoder), cast(TransformerDecoder, model.decoder)
    assert [bool(side._native) for side in sides] == [native.has_fast_matmul()] * 2
    assert not capsys.readouterr().err


def test_a_module_that_is_watched_is_called(randomise: Randomise) -> None:
    decoder = decoder_of(randomise)
    block = cast(DecoderLayer, decoder.layers[1]).feed_forward
    for module in (block, decoder.layers[0], decoder.norm, decoder.input.embedding):
        with module.register_forward_hook(lambda *_: None):
            decoder.finish()
            assert decoder._native is None
    block.forward = lambda x: 0 * x  # type: ignore[method-assign]
    decoder.finish()
    assert decoder._native is None
    del block.forward
    decoder.finish()
    assert decoder._native


def test_a_block_with_one_more_linear_layer_is_not_for_cpp(randomise: Randomise) -> None:
    decoder = decoder_of(randomise)
    block = cast(DecoderLayer, decoder.layers[1]).feed_forward
    block.gate = PanelLinear.of(torch.ones(WIDTH, WIDTH))
    decoder.finish()
    assert decoder._native is None


def test_a_linear_layer_of_ones_own_stays() -> None:
    class Adapted(Linear):
        pass

    module = nn.ModuleList((Adapted(2, 2), Linear(2, 2), nn.Linear(2, 2), Linear(2, 2)))
    module[3].register_forward_pre_hook(lambda *_: None)
    replace_linears(module, PanelLinear.of)
    assert [*map(type, module)] == [Adapted, PanelLinear, PanelLinear, Linear]


def test_a_layer_compiled_for_training_is_none_of_ones_own() -> None:
    side = TransformerConfig(num_layers=2, num_heads=4, d_ff=40)
    model = build_model(ModelConfig(d_model=WIDTH, encoder=side, decoder=side), VOCABULARY, 1)
    compile_regions(model)
    model.place(torch.device("cpu"), torch.float32)
    assert bool(cast(TransformerEncoder, model.encoder)._native) == native.has_fast_matmul()
    cast(TransformerEncoder, model.encoder).layers[0].forward = lambda x, _: x
    model.encoder.finish()
    assert cast(TransformerEncoder, model.encoder)._native is None


def test_weights_that_are_not_finite_are_no_difference(
    randomise: Randomise, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = decoder_of(randomise)
    native_of = decoder._native
    with torch.no_grad():
        cast(DecoderLayer, decoder.layers[0]).self_residual.norm.weight.fill_(torch.nan)
    decoder.finish()
    assert native_of and decoder._native and not capsys.readouterr().err


@pytest.mark.parametrize("name", ["norm", "layers.1.self_residual.norm"])
def test_norms_without_a_bias_or_with_another_epsilon_are_computed_by_themselves(
    randomise: Randomise, name: str
) -> None:
    decoder = decoder_of(randomise, "pre")
    norm = cast(nn.LayerNorm, decoder.get_submodule(name))
    bias, norm.bias = norm.bias, None  # type: ignore[assignment]
    decoder.finish()
    assert decoder._native is None
    norm.bias, norm.eps = bias, 1e-3
    decoder.finish()
    assert decoder._native is None
    norm.eps = 1e-5
    decoder.finish()
    assert decoder._native


def test_layers_of_which_some_normalise_first_are_computed_by_themselves(randomise: Randomise) -> None:
    decoder = decoder_of(randomise)
    cast(DecoderLayer, decoder.layers[1]).self_residual.normalise_first = True
    decoder.finish()
    assert decoder._native is None


def test_rows_of_another_format_than_the_weights_take_another_way(randomise: Randomise) -> None:
    decoder = decoder_of(randomise)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            state = decoder.start(Memory(torch.zeros(3, WIDTH, dtype=dtype), Layout.of([3])))
        assert isinstance(state, RowCache)
        assert (state.native is not None) == (dtype is torch.float32)
