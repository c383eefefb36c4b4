"""Products of large matrices in C++ against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seq2seq.ops import native
from seq2seq.ops import product as module
from seq2seq.ops.product import add_product, prefers_cpp, product, product_and_sums, product_reference

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
SHAPES = [
    *((1, 1, 1), (40, 1, 60), (40, 50, 1), (1, 50, 60), (5, 3, 2), (12, 300, 70), (97, 256, 64)),
    *((200, 17, 513), (130, 600, 1100), (31, 1024, 48)),
]


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch, native_calls: list[str]) -> list[str]:
    """Products of all sizes are in C++, on all processors; the calls are noted."""
    monkeypatch.setattr(module, "LEAST", 1)
    monkeypatch.setattr(module, "FEWEST_SUMMED", 1)
    monkeypatch.setattr(native, "has_fast_large_matmul", lambda dtype: dtype in native.FORMATS)
    return native_calls


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def operands(
    rows: int, inner: int, columns: int, lying: str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    x = drawn(inner, rows).t() if lying[0] == "t" else drawn(rows, inner)
    y = drawn(columns, inner, seed=2).t() if lying[1] == "t" else drawn(inner, columns, seed=2)
    return x.to(dtype), y.to(dtype)


def in_bfloat16(x: Tensor) -> Tensor:
    """The same numbers, which lie as those do."""
    there = torch.empty_strided(x.shape, x.stride(), dtype=torch.bfloat16)
    return there.copy_(x) if 0 not in x.stride() else x.bfloat16()


def into_float32(x: Tensor, y: Tensor) -> Tensor:
    """x·y, not rounded to bfloat16."""
    out = torch.full((x.shape[0], y.shape[1]), torch.nan)
    add_product(out, x, y, first=True)
    return out


def assert_near(found: Tensor, expected: Tensor, inner: int) -> None:
    # Sums are in float32; half a step of bfloat16 is 1/256.
    rtol = 1e-5 if found.dtype is torch.float32 else 1 / 250
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=4e-6 * inner**0.5)


@pytest.mark.parametrize("lying", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize(("rows", "inner", "columns"), SHAPES)
def test_it_is_the_product_of_matrices_with_rows_or_columns_together(
    rows: int, inner: int, columns: int, lying: str, calls: list[str]
) -> None:
    x, y = operands(rows, inner, columns, lying)
    bias = drawn(columns, seed=3)
    for own in (None, bias):
        for relu in (False, True):
            expected = product_reference(x.double(), y.double(), own if own is None else own.double(), relu=relu)
            assert_near(product(x, y, own, relu=relu), expected, inner)
    out = drawn(rows, columns, seed=4)
    expected = out.double() + x.double() @ y.double()
    add_product(out, x, y)
    assert_near(out, expected, inner)
    assert_near(into_float32(x, y), x.double() @ y.double(), inner)
    assert calls == ["product"] * 6


@pytest.mark.parametrize("lying", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize(
    ("rows", "inner", "columns"),
    [(1, 2, 1), (40, 2, 60), (5, 4, 2), (12, 300, 70), (97, 256, 64), (130, 2100, 600), (31, 1024, 48), (200, 18, 513)],
)
def test_in_bfloat16_two_products_at_a_time_are_summed_in_float32(
    rows: int, inner: int, columns: int, lying: str, calls: list[str]
) -> None:
    x, y = operands(rows, inner, columns, lying, torch.bfloat16)
    bias = drawn(columns, seed=3).bfloat16()
    expected = x.double() @ y.double()
    assert_near(product(x, y), expected, inner)
    assert_near(product(x, y, bias, relu=True), (expected + bias.double()).relu(), inner)
    assert_near(into_float32(x, y), expected, inner)
    out = drawn(rows, columns, seed=4)
    expected = out.double() + expected
    add_product(out, x, y)
    assert_near(out, expected, inner)
    assert calls == ["product", "product", "product_of_bfloat16", "product_of_bfloat16"]


@pytest.mark.parametrize("inner", [1, 7, 1025, 2049])
def test_an_odd_number_of_products_is_for_matrices_whose_words_lie_below_each_other(
    inner: int, calls: list[str]
) -> None:
    for lying in ("tn", "nn", "tt", "nt"):
        x, y = operands(40, inner, 60, lying, torch.bfloat16)
        found = into_float32(x, y)
        torch.testing.assert_close(found, x.float() @ y.float(), rtol=1e-2, atol=1e-2 * inner**0.5)
        if lying == "tn":
            assert_near(found, x.double() @ y.double(), inner)
    own = ["product_of_bfloat16"]
    assert calls == (own if inner > 1 else own * len(calls)) and calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "inner", "columns"), [(5, 3, 2), (97, 256, 64), (300, 2100, 600), (40, 1, 9)])
def test_sums_of_rows_come_with_the_product(
    rows: int, inner: int, columns: int, dtype: torch.dtype, calls: list[str]
) -> None:
    for lying in ("tn", "nn"):
        x, y = operands(rows, inner, columns, lying, dtype)
        found, sums = product_and_sums(x, y, torch.float32)
        assert found.dtype is sums.dtype is torch.float32
        assert_near(sums, x.double().sum(1), inner)
        if lying == "tn":
            assert_near(found, x.double() @ y.double(), inner)
            assert len(calls) == 1


def test_matrices_and_bias_may_lie_anywhere(calls: list[str]) -> None:
    wide, bias = drawn(40, 150), drawn(60, 3)[:, 1]
    for x in (wide[:, 7:57], wide[:, ::3], wide[:1, :50].expand(40, 50), wide[:, :1].expand(40, 50)):
        for y in (drawn(50, 90)[:, 20:80], drawn(90, 50).t()[:, 20:80], drawn(20, 5, 60).flatten(0, 1)[::2]):
            assert_near(product(x, y, bias), x.double() @ y.double() + bias.double(), 50)
    one = drawn(40, 7)[:, :1].t().contiguous().t()
    assert_near(product(one, drawn(1, 60)), one.double() @ drawn(1, 60).double(), 1)
    assert calls == ["product"] * 13
    for x in (wide[:, 7:57], wide[:, ::3], drawn(40, 151)[:, 1:51], wide[:1, :50].expand(40, 50)):
        for y in (drawn(50, 90)[:, 21:81], drawn(61, 151)[:60, 1:51].t()):
            narrow_x, narrow_y = in_bfloat16(x), in_bfloat16(y)
            assert_near(into_float32(narrow_x, narrow_y), narrow_x.double() @ narrow_y.double(), 50)
    assert calls[13:] == ["product_of_bfloat16"] * 8


def test_what_is_not_for_it_is_computed_by_pytorch(calls: list[str]) -> None:
    x, y = operands(40, 50, 60, "nt")
    assert torch.equal(product(x.double(), y.double()), x.double() @ y.double())
    into_bfloat16 = torch.ones(40, 60).bfloat16()
    add_product(into_bfloat16, x.bfloat16(), y.bfloat16())
    assert torch.equal(into_bfloat16, 1 + (x.bfloat16() @ y.bfloat16()))
    add_product(into_bfloat16, x.bfloat16(), y.bfloat16(), first=True)
    assert torch.equal(into_bfloat16, x.bfloat16() @ y.bfloat16())
    transposed = torch.zeros(60, 40).t()
    add_product(transposed, x, y)
    assert torch.equal(transposed, x @ y)
    assert product(drawn(0, 5), drawn(5, 3)).shape == (0, 3)
    assert product(drawn(4, 0), drawn(0, 3)).tolist() == [[0.0] * 3] * 4
    assert product(drawn(4, 5), drawn(5, 0)).shape == (4, 0)
    assert calls == []


def test_shapes_and_devices_that_do_not_fit_are_refused(calls: list[str]) -> None:
    x, y, others = drawn(40, 50), drawn(50, 60), (torch.float64, torch.bfloat16)
    for given in [(x, y[:49], drawn(60)), (x, y, drawn(59)), *((x, y.to(dtype), drawn(60)) for dtype in others)]:
        with pytest.raises(RuntimeError):
            product(*given)
    assert not prefers_cpp(x, y.to("meta"), None)
    for out in (drawn(39, 60), drawn(40, 59)):
        with pytest.raises(RuntimeError):
            add_product(out, x, y)
    assert calls == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lying", ["nt", "tn"])
@pytest.mark.parametrize("rows", [130, 700])
def test_bits_do_not_depend_on_the_number_of_threads(
    rows: int, lying: str, dtype: torch.dtype, calls: list[str]
) -> None:
    threads, (x, y), found = torch.get_num_threads(), operands(rows, 600, 300, lying, dtype), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            found.append((product(x, y), *product_and_sums(x, y, torch.float32)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for more in found[1:] for one, other in zip(found[0], more, strict=True))
    assert len(calls) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_a_number_or_infinite_stays_so(dtype: torch.dtype) -> None:
    x, y = operands(40, 50, 60, "nt", dtype)
    x[3, 4], x[7, 8] = torch.nan, torch.inf
    finite = product(x, y).isfinite().all(1)
    assert not finite[3] and not finite[7] and finite.sum() == 38
    assert product(x, y, relu=True)[3].isnan().all()
