"""Products from weights in panels against PyTorch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.ops import native
from seq2seq.ops.panel_linear import GROUPS, PANEL, PanelLinear, laid_out
from seq2seq.ops.quantized_linear import in_int8, quantized_linear_reference
from seq2seq.ops.topk import best_continuations_reference

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
ROWS = [*range(1, 10), 11, 12, 15, 16, 17, 31, 32, 33, 40, 64, 300]
SHAPES = [(1, 1), (16, PANEL), (48, PANEL + 1), (100, 5 * PANEL - 3)]


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("relu", [False, True])
def test_it_is_the_linear_layer(
    rows: int, inputs: int, outputs: int, relu: bool, dtype: torch.dtype, tolerance: float
) -> None:
    x, weight, bias = (x.to(dtype) for x in (drawn(rows, inputs), drawn(outputs, inputs, seed=2), drawn(outputs)))
    for own in (None, bias):
        found = PanelLinear.of(weight, own)(x, relu=relu)
        assert found.dtype == dtype
        expected = F.linear(x.double(), weight.double(), None if own is None else own.double())
        expected = expected.clamp(min=0) if relu else expected
        torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (48, 33), (200, 70)])
def test_in_int8_only_the_roundings_are_not_exact(rows: int, inputs: int, outputs: int) -> None:
    x, weight, bias = drawn(rows, inputs), drawn(outputs, inputs, seed=2), drawn(outputs, seed=3)
    expected = quantized_linear_reference(x, weight, bias, native.levels_of_rows())
    torch.testing.assert_close(in_int8(weight, bias)(x).double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_weights_lie_output_beside_output_and_as_many_inputs_as_fit_into_32_bits(dtype: torch.dtype) -> None:
    group = 4 // torch.empty(0, dtype=dtype).element_size()
    weight = (drawn(PANEL + 5, 70) * 50).to(dtype)
    words = laid_out(weight)
    assert words.shape[0] == 2 and words.shape[2:] == (PANEL, group)
    assert words.shape[1] == (70 if group == 1 else -(-70 // (GROUPS * group)) * GROUPS)
    assert words[1, 7, 3, group - 1] == weight[PANEL + 3, 7 * group + group - 1]
    assert words.double().abs().sum() == weight.double().abs().sum()


def in_bfloat16(weight: Tensor, bias: Tensor) -> PanelLinear:
    return PanelLinear.of(weight.bfloat16(), bias)


Make = Callable[[Tensor, Tensor], PanelLinear]
MAKERS: list[Make] = [PanelLinear.of, in_bfloat16, in_int8]


@pytest.mark.parametrize("make", MAKERS)
def test_a_row_depends_on_no_other_and_a_copy_on_its_own_weights(make: Make) -> None:
    layer, x = make(drawn(70, 48), drawn(70)), drawn(300, 48, seed=2)
    whole = layer(x)
    for rows in (slice(0, 1), slice(2, 5), slice(1, 8), slice(3, 20), slice(7, 200)):
        assert torch.equal(layer(x[rows]), whole[rows])
    other = copy.deepcopy(layer)
    assert other.numbers[1] != layer.numbers[1]
    assert torch.equal(other(x), whole)


def test_rows_of_any_layout_will_do() -> None:
    x = drawn(2, 48, 6).transpose(1, 2)
    for make in MAKERS:
        layer = make(drawn(70, 48), drawn(70))
        assert torch.equal(layer(x), layer(x.contiguous())) and layer(x).shape == (2, 6, 70)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("rows", [3, 300])
def test_with_several_threads_it_is_the_same_to_the_last_bit(make: Make, rows: int) -> None:
    threads = torch.get_num_threads()
    layer, x, found = make(drawn(2048, 300), drawn(2048)), drawn(rows, 300, seed=2), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(layer(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_what_is_not_a_number_stays_so() -> None:
    for strange in (torch.nan, torch.inf, -torch.inf):
        x = drawn(3, 48)
        x[1, 3] = strange
        for make in MAKERS:
            finite = make(drawn(70, 48), drawn(70))(x).isfinite()
            assert not finite[1].any() and finite[0].all() and finite[2].all()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("slots", "width"), [(1, 1), (1, 4), (3, 2), (40, 1), (90, 4)])
@pytest.mark.parametrize("count", [1, 8])
def test_as_an_output_layer_it_finds_the_best_continuations(make: Make, slots: int, width: int, count: int) -> None:
    layer = make(drawn(70, 48), drawn(70))
    hidden, scores = drawn(slots, width, 48, seed=4), drawn(slots, width, seed=5)
    scores[slots // 2, width - 1] = scores[0, 0] if slots * width == 1 else -torch.inf
    never = torch.tensor([0, 3, 69])
    found, places, tokens = layer.best(hidden, scores, count, never)
    log_probs = layer(hidden).double().log_softmax(-1).index_fill(2, never, -torch.inf)
    wanted = best_continuations_reference(log_probs, scores.double(), count)
    torch.testing.assert_close(found.double(), wanted[0], atol=1e-5, rtol=1e-5)
    there = found > -torch.inf
    assert there.any() and torch.equal(places[there], wanted[1][there]) and torch.equal(tokens[there], wanted[2][there])
    assert ((tokens >= 0) & (tokens < 70) & (places >= 0) & (places < width)).all(), "also where there is none"


def test_hypotheses_of_any_layout_will_do() -> None:
    layer, never = PanelLinear.of(drawn(70, 48), drawn(70)), torch.tensor([0])
    hidden, scores = drawn(3, 48, 8).transpose(1, 2)[:, ::2], drawn(3, 8)[:, ::2]
    found = layer.best(hidden, scores, 4, never)
    assert all(map(torch.equal, found, layer.best(hidden.contiguous(), scores.contiguous(), 4, never)))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("slots", [1, 30, 200])
def test_it_finds_the_same_bits_with_several_threads_and_in_any_company(make: Make, slots: int) -> None:
    threads, layer = torch.get_num_threads(), make(drawn(2000, 48), drawn(2000))
    given, never = (drawn(slots, 2, 48, seed=4), drawn(slots, 2, seed=5), 4), torch.tensor([0])
    found = layer.best(*given, never)
    try:
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            assert all(map(torch.equal, layer.best(*given, never), found))
    finally:
        torch.set_num_threads(threads)
    alone = layer.best(given[0][-1:], given[1][-1:], 4, never)
    assert all(torch.equal(own[0], of_all[-1]) for own, of_all in zip(alone, found, strict=True))


def test_the_best_of_equal_logits_are_the_first_and_of_what_is_no_number_there_are_none() -> None:
    layer = PanelLinear.of(torch.zeros(600, 48))
    hidden = drawn(2, 1, 48)
    hidden[1] = torch.nan
    scores, places, tokens = layer.best(hidden, torch.zeros(2, 1), 4, torch.tensor([1]))
    assert tokens[0].tolist() == [0, 2, 3, 4] and places[0].tolist() == [0] * 4
    torch.testing.assert_close(scores[0], torch.full((4,), 1 / 600).log())
    assert (scores[1] == -torch.inf).all()


def test_of_sums_that_are_equal_when_rounded_the_higher_logit_comes_first() -> None:
    weight, threads = torch.zeros(600, 16), torch.get_num_threads()
    weight[[3, 500], 0] = torch.tensor([10.0, 10.00001])
    layer, hidden, scores = PanelLinear.of(weight), torch.eye(1, 16)[None], torch.full((1, 1), -4096.0)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found, _, tokens = layer.best(hidden, scores, 2, torch.tensor([0]))
            assert found[0, 0] == found[0, 1] and tokens.tolist() == [[500, 3]]
    finally:
        torch.set_num_threads(threads)
