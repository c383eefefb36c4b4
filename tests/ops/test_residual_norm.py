"""Residual connection, dropout and norm in one, against the plain formula: in C++, and on a GPU or, without one, in
Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.ops import native
from seq2seq.ops import residual_norm as module
from seq2seq.ops.residual_norm import add_norm, residual_norm, residual_norm_reference
from tests.kernels import DEVICE, HAS_GPU, distance

FORMATS = [torch.float16, torch.float32, torch.bfloat16]
LIMITS = {torch.float16: 2e-3, torch.float32: 1e-6, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True, params=["gpu", "cpu"])
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Kernels in Triton, or functions in C++."""
    in_triton = request.param == "gpu"
    if in_triton:
        pytest.importorskip("triton", reason="Triton is not installed here")
    if not in_triton and (HAS_GPU or native.library() is None):
        pytest.skip("a GPU computes" if HAS_GPU else "no C++ compiler here")
    monkeypatch.setattr(module, "supports_triton", lambda _: in_triton)
    if in_triton:
        monkeypatch.setattr(native, "supports", lambda _: False)
    return str(request.param)


def norm_of(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width).to(DEVICE)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    nn.init.normal_(norm.bias)
    return norm


def kept(seed: int, rows: int, width: int, p: float) -> Tensor:
    """The mask [rows, width] that this seed of the device's generator draws."""
    torch.manual_seed(seed)
    drawn = torch.randint(1 << 31, (1,), device=DEVICE)
    x, ones = torch.zeros(rows, width, device=DEVICE), torch.ones(width, device=DEVICE)
    _, total = torch.ops.seq2seq.residual_norm(x, x + 1, ones, ones, drawn, p, 1e-5)
    torch.testing.assert_close(total, (total > 0) / (1 - p))
    return total > 0


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (7, 5), (21, 520), (300, 20)])
def test_outputs_and_gradients_are_the_formula_s(
    rows: int, width: int, p: float, dtype: torch.dtype, language: str
) -> None:
    if dtype == (torch.float16 if language == "cpu" else torch.bfloat16) and not HAS_GPU:
        pytest.skip("the interpreter has no bfloat16, the functions in C++ no float16")
    norm = norm_of(width)
    # Rows that do not lie one after another, as those of a joint projection.
    x, y, upstream = torch.randn(rows, 3, width, device=DEVICE).to(dtype).unbind(1)
    inputs = [x.detach().requires_grad_(), y.detach().requires_grad_(), norm.weight, norm.bias]
    mask = kept(3, rows, width, p)
    torch.manual_seed(3)
    own = residual_norm(inputs[0], inputs[1], norm, p)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    # The sum is rounded, as that of rows in this format is.
    total = exact[0] + exact[1] * mask / (1 - p)
    rounded = total + (total.to(dtype).double() - total).detach()
    expected = F.layer_norm(rounded, (width,), exact[2], exact[3], norm.eps)
    assert own.dtype == dtype
    assert distance(own, expected) <= LIMITS[dtype]
    gradients = torch.autograd.grad(own, inputs, upstream, retain_graph=True)
    again = torch.autograd.grad(own, inputs, upstream)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for found, twice, textbook, tensor in zip(gradients, again, wanted, inputs, strict=True):
        assert found.dtype == tensor.dtype
        assert distance(found, textbook) <= 2 * LIMITS[dtype]
        assert torch.equal(found, twice)


def test_without_dropout_it_is_the_reference() -> None:
    norm = norm_of(24)
    x, y = torch.randn(2, 9, 24, device=DEVICE)
    torch.testing.assert_close(residual_norm(x, y, norm, 0.0), residual_norm_reference(x, y, norm, 0.0))


def test_the_mask_is_as_often_kept_as_asked_and_drawn_anew_for_each_seed() -> None:
    rows, width, p = 200, 256, 0.25
    mask, other = (kept(seed, rows, width, p).float() for seed in (1, 2))
    assert torch.equal(mask, kept(1, rows, width, p).float())
    # Five standard deviations of means of so many independent draws.
    near = 5 * (p * (1 - p)) ** 0.5
    assert abs(mask.mean() - (1 - p)) <= near / (rows * width) ** 0.5
    assert (mask.mean(0) - (1 - p)).abs().max() <= near / rows**0.5
    assert (mask.mean(1) - (1 - p)).abs().max() <= near / width**0.5
    centred = mask - (1 - p)
    neighbours = [(centred[1:], centred[:-1]), (centred, other - (1 - p))]
    neighbours += [(centred[:, step:], centred[:, :-step]) for step in (1, 2, 4, 8, 64, width // 2)]
    assert all(abs((a * b).mean()) <= 5 * p * (1 - p) / a.numel() ** 0.5 for a, b in neighbours)


def test_rows_of_any_number_of_dimensions_and_of_two_formats_are_taken() -> None:
    norm = norm_of(24)
    x, y = torch.randn(2, 3, 5, 24, device=DEVICE)
    expected = residual_norm_reference(x, y, norm, 0.0)
    torch.testing.assert_close(residual_norm(x, y, norm, 0.0), expected)
    if not HAS_GPU and native.supports(x):
        own = residual_norm(x, y.bfloat16(), norm, 0.0)
        torch.testing.assert_close(own, residual_norm_reference(x, y.bfloat16(), norm, 0.0))


def test_weights_in_bfloat16_are_read_as_what_they_are(language: str) -> None:
    if language == "gpu":
        pytest.skip("kernels in Triton read any")
    norm = norm_of(24).bfloat16()
    x, y = torch.randn(2, 5, 24, device=DEVICE).bfloat16()
    torch.testing.assert_close(residual_norm(x, y, norm, 0.0), residual_norm_reference(x, y, norm, 0.0))


def test_threads_change_no_bit(language: str) -> None:
    if language == "gpu":
        pytest.skip("there are none")
    norm, before = norm_of(24), torch.get_num_threads()
    x, y, upstream = torch.randn(3, 700, 24).requires_grad_().unbind()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        out = residual_norm(x, y, norm, 0.3)
        found.append((out, *torch.autograd.grad(out, (x, y, norm.weight, norm.bias), upstream)))
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_no_rows_give_none() -> None:
    norm, x = norm_of(16), torch.zeros(0, 16, device=DEVICE, requires_grad=True)
    out = residual_norm(x, x, norm, 0.1)
    assert out.shape == (0, 16)
    gradients = torch.autograd.grad(out.sum(), (norm.weight, norm.bias))
    assert not torch.stack(gradients).any()


def test_it_is_compiled_once_for_all_numbers_of_rows(language: str) -> None:
    if language == "cpu":
        pytest.skip("compiled code draws and adds by itself on a processor")
    norm = norm_of(16)
    counted = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled, numbers = torch.compile(residual_norm, backend=counted, fullgraph=True, dynamic=True), set()
    for rows in (3, 7, 12, 20):
        inputs = [*torch.randn(2, rows, 16, device=DEVICE).unbind(), norm.weight]
        results = []
        for function in (compiled, residual_norm):
            torch.manual_seed(rows)
            x, y = (tensor.detach().requires_grad_() for tensor in inputs[:2])
            out = function(x, y, norm, 0.3)
            results.append((out, *torch.autograd.grad(out.square().sum(), (x, y, norm.weight))))
        torch.testing.assert_close(*results)
        numbers.add(counted.frame_count)
    assert len(numbers) == 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("shape", [(16,), (1, 16), (3, 4, 17), (70, 256)])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-2])
@torch.no_grad()
def test_it_is_layer_norm_of_the_sum(
    shape: tuple[int, ...], epsilon: float, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, *shape, generator=generator) + 0.5).to(dtype)
    norm = nn.LayerNorm(shape[-1], eps=epsilon)
    norm.weight.normal_(generator=generator)
    norm.bias.normal_(generator=generator)
    norm = norm.to(dtype)
    found = add_norm(x, y, norm)
    assert found.dtype == dtype
    expected = residual_norm_reference(x.double(), y.double(), norm.double(), 0.0)
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_in_translation_the_sum_is_rounded_as_the_reference_rounds_it() -> None:
    x, y = torch.randn(2, 70, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    norm = nn.LayerNorm(256, dtype=torch.bfloat16)
    other = add_norm(x, y, norm) != residual_norm_reference(x, y, norm, 0.0)
    # A quarter of them, if the sum were not rounded.
    assert float(other.float().mean()) < 0.01


@torch.no_grad()
def test_in_translation_rows_of_any_layout_will_do() -> None:
    x, y = torch.randn(2, 3, 24, 5).transpose(2, 3)
    expected = residual_norm_reference(x, y, nn.LayerNorm(24), 0.0)
    torch.testing.assert_close(add_norm(x, y, nn.LayerNorm(24)), expected)


def test_gradients_go_through_the_plain_form() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    norm = nn.LayerNorm(8)
    add_norm(x, x.detach(), norm).square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@torch.no_grad()
def test_what_is_not_a_number_stays_so_in_its_row() -> None:
    x = torch.randn(3, 8)
    x[1, 2] = torch.nan
    assert add_norm(x, x, nn.LayerNorm(8)).isnan().any(1).tolist() == [False, True, False]
