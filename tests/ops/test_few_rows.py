"""Products of a few rows against PyTorch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.ops import native
from seq2seq.ops.alone import computing_rows_alone
from seq2seq.ops.few_rows import FEW, PANEL, FewRows
from seq2seq.ops.quantized_linear import quantized_linear_reference, rounded_rows

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
FORMATS = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)]


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_int8(weight: Tensor, bias: Tensor, levels: int = 127) -> FewRows:
    rounded, scales = rounded_rows(weight.double(), 127)
    as_int8 = rounded.to(torch.int8)
    return FewRows(as_int8, bias, len(bias), scales.float(), as_int8.sum(1, dtype=torch.int32), levels)


@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
@pytest.mark.parametrize("rows", range(1, 10))
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (16, PANEL), (48, PANEL + 1), (100, 5 * PANEL - 3)])
@pytest.mark.parametrize("rectify", [False, True])
def test_it_is_the_linear_layer(
    rows: int, inputs: int, outputs: int, rectify: bool, dtype: torch.dtype, tolerance: float
) -> None:
    x, weight, bias = (x.to(dtype) for x in (drawn(rows, inputs), drawn(outputs, inputs, seed=2), drawn(outputs)))
    for own in (None, bias):
        found = FewRows.of(weight, own)(x, rectify=rectify)
        assert found.dtype == dtype
        expected = F.linear(x.double(), weight.double(), None if own is None else own.double())
        expected = expected.clamp(min=0) if rectify else expected
        torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("rows", range(1, 10))
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (48, 33), (200, 70)])
@pytest.mark.parametrize("levels", [127, 63])
def test_in_int8_only_the_roundings_are_not_exact(rows: int, inputs: int, outputs: int, levels: int) -> None:
    x, weight, bias = drawn(rows, inputs), drawn(outputs, inputs, seed=2), drawn(outputs, seed=3)
    expected = quantized_linear_reference(x, weight, bias, levels)
    torch.testing.assert_close(in_int8(weight, bias, levels)(x).double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [FewRows.of(drawn(70, 48), drawn(70)), in_int8(drawn(70, 48), drawn(70))])
def test_a_row_depends_on_no_other_and_a_copy_on_its_own_weights(layer: FewRows) -> None:
    x = drawn(9, 48, seed=2)
    whole = layer(x)
    for rows in (slice(0, 1), slice(2, 5), slice(1, 8)):
        assert torch.equal(layer(x[rows]), whole[rows])
    other = copy.deepcopy(layer)
    assert other.numbers[1] != layer.numbers[1]
    assert torch.equal(other(x), whole)


@pytest.mark.parametrize("make", [FewRows.of, in_int8])
def test_with_several_threads_it_is_the_same_to_the_last_bit(make: Callable[[Tensor, Tensor], FewRows]) -> None:
    threads = torch.get_num_threads()
    layer, x, found = make(drawn(2048, 300), drawn(2048)), drawn(3, 300, seed=2), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(layer(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_it_is_for_few_rows_that_need_not_be_alone() -> None:
    layer = FewRows.of(drawn(8, 8), None)
    assert layer.takes(drawn(FEW, 8)) and not layer.takes(drawn(FEW + 1, 8))
    assert not layer.takes(drawn(1, 8).double())
    with computing_rows_alone(True):
        assert not layer.takes(drawn(1, 8))


def test_what_is_not_a_number_stays_so() -> None:
    x = drawn(3, 16)
    x[1, 3] = torch.nan
    for layer in (FewRows.of(drawn(9, 16), None), in_int8(drawn(9, 16), drawn(9))):
        finite = layer(x).isfinite()
        assert not finite[1].any() and finite[0].all() and finite[2].all()
