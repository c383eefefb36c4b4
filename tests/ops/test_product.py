"""Products of large matrices in C++ against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seq2seq.ops import native
from seq2seq.ops import product as module
from seq2seq.ops.product import add_product, multiplies, product, product_reference

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
    monkeypatch.setattr(native, "multiplies_large", lambda: True)
    return native_calls


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def operands(rows: int, inner: int, columns: int, lying: str) -> tuple[Tensor, Tensor]:
    x = drawn(inner, rows).t() if lying[0] == "t" else drawn(rows, inner)
    y = drawn(columns, inner, seed=2).t() if lying[1] == "t" else drawn(inner, columns, seed=2)
    return x, y


def assert_near(found: Tensor, expected: Tensor, inner: int) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6 * inner**0.5)


@pytest.mark.parametrize("lying", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize(("rows", "inner", "columns"), SHAPES)
def test_it_is_the_product_of_matrices_with_rows_or_columns_together(
    rows: int, inner: int, columns: int, lying: str, calls: list[str]
) -> None:
    x, y = operands(rows, inner, columns, lying)
    bias = drawn(columns, seed=3)
    for own in (None, bias):
        for rectify in (False, True):
            expected = product_reference(x.double(), y.double(), own if own is None else own.double(), rectify=rectify)
            assert_near(product(x, y, own, rectify=rectify), expected, inner)
    out = drawn(rows, columns, seed=4)
    expected = out.double() + x.double() @ y.double()
    add_product(out, x, y)
    assert_near(out, expected, inner)
    assert calls == ["product"] * 5


def test_matrices_and_bias_may_lie_anywhere(calls: list[str]) -> None:
    wide, bias = drawn(40, 150), drawn(60, 3)[:, 1]
    for x in (wide[:, 7:57], wide[:, ::3], wide[:1, :50].expand(40, 50), wide[:, :1].expand(40, 50)):
        for y in (drawn(50, 90)[:, 20:80], drawn(90, 50).t()[:, 20:80], drawn(20, 5, 60).flatten(0, 1)[::2]):
            assert_near(product(x, y, bias), x.double() @ y.double() + bias.double(), 50)
    one = drawn(40, 7)[:, :1].t().contiguous().t()
    assert_near(product(one, drawn(1, 60)), one.double() @ drawn(1, 60).double(), 1)
    assert calls == ["product"] * 13


def test_what_is_not_for_it_is_computed_by_pytorch(calls: list[str]) -> None:
    x, y = operands(40, 50, 60, "nt")
    for dtype in (torch.bfloat16, torch.float64):
        assert torch.equal(product(x.to(dtype), y.to(dtype)), x.to(dtype) @ y.to(dtype))
    into_float32 = torch.ones(40, 60)
    add_product(into_float32, x.bfloat16(), y.bfloat16())
    assert torch.equal(into_float32, 1 + (x.bfloat16() @ y.bfloat16()).float())
    transposed = torch.zeros(60, 40).t()
    add_product(transposed, x, y)
    assert torch.equal(transposed, x @ y)
    assert product(drawn(0, 5), drawn(5, 3)).shape == (0, 3)
    assert product(drawn(4, 0), drawn(0, 3)).tolist() == [[0.0] * 3] * 4
    assert product(drawn(4, 5), drawn(5, 0)).shape == (4, 0)
    assert calls == []


def test_shapes_and_devices_that_do_not_fit_are_refused(calls: list[str]) -> None:
    x, y = drawn(40, 50), drawn(50, 60)
    for given in [(x, y[:49], drawn(60)), (x, y, drawn(59)), (x, y.double(), drawn(60))]:
        with pytest.raises(RuntimeError):
            product(*given)
    assert not multiplies(x, y.to("meta"), None)
    for out in (drawn(39, 60), drawn(40, 59)):
        with pytest.raises(RuntimeError):
            add_product(out, x, y)
    assert calls == []


@pytest.mark.parametrize("lying", ["nt", "tn"])
@pytest.mark.parametrize("rows", [130, 700])
def test_bits_do_not_depend_on_the_number_of_threads(rows: int, lying: str, calls: list[str]) -> None:
    threads, (x, y), found = torch.get_num_threads(), operands(rows, 600, 300, lying), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            found.append(product(x, y))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert calls == ["product"] * 4


def test_what_is_not_a_number_or_infinite_stays_so() -> None:
    x, y = operands(40, 50, 60, "nt")
    x[3, 4], x[7, 8] = torch.nan, torch.inf
    finite = product(x, y).isfinite().all(1)
    assert not finite[3] and not finite[7] and finite.sum() == 38
    assert product(x, y, rectify=True)[3].isnan().all()
