"""Embeddings with positions: the function in C++ against PyTorch's operations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from seq2seq.ops import native
from seq2seq.ops.embed import embed, embed_reference, look_up

VOCABULARY, LONGEST, WIDTH = 31, 9, 24


def tables(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight, table = (torch.randn(count, WIDTH, generator=generator).to(dtype) for count in (VOCABULARY, LONGEST))
    return weight, table


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (0, 4), (500,)])
@pytest.mark.parametrize("same", [True, False])
def test_rows_are_those_of_the_reference(
    same: bool, shape: tuple[int, ...], dtype: torch.dtype, native_calls: list[str]
) -> None:
    weight, table = tables(dtype)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(VOCABULARY, shape, generator=generator)
    positions = 5 if same else torch.randint(LONGEST, shape, generator=generator)
    found = embed(weight, tokens, table, positions)
    assert native_calls == ["embed"] and found.dtype == dtype
    # Rounded once, where the reference rounds after each operation.
    wanted = embed_reference(weight.float(), tokens, table.float(), positions)
    torch.testing.assert_close(found, wanted.to(dtype), atol=1e-5, rtol=1e-5 if dtype is torch.float32 else 2**-8)


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
@pytest.mark.parametrize(("token", "position"), [(VOCABULARY, 0), (-1, 0), (1, LONGEST), (1 << 40, 0)])
def test_what_is_in_no_table_is_not_read(token: int, position: int) -> None:
    weight, table = tables(torch.float32)
    found = embed(weight, torch.tensor([3, token]), table, torch.tensor([2, position]))
    assert found[0].isfinite().all() and found[1].isnan().all()


def test_positions_may_be_those_of_each_row() -> None:
    weight, table = tables(torch.float32)
    tokens, positions = torch.tensor([[3, 0, 7], [8, 1, 30]]), torch.tensor([2, 0, 8])
    found = embed(weight, tokens, table, positions)
    torch.testing.assert_close(found, embed_reference(weight, tokens, table, positions.expand(2, 3)))


def test_numbers_of_tokens_may_have_32_bits() -> None:
    weight, table, tokens = torch.randn(9, 8), torch.randn(5, 8), torch.tensor([[3, 0], [8, 1]], dtype=torch.int32)
    positions = torch.tensor([[0, 1], [4, 2]], dtype=torch.int32)
    torch.testing.assert_close(
        embed(weight, tokens, table, positions), embed_reference(weight, tokens, table, positions)
    )


@pytest.mark.parametrize("learnt", [True, False])
def test_what_is_looked_up_in_training_has_pytorch_s_gradient_also_compiled(learnt: bool) -> None:
    weight, _ = tables(torch.float32)
    weight.requires_grad_(learnt)
    tokens, upstream = torch.tensor([[4, 9, 4], [0, 30, 4]]), torch.randn(2, 3, WIDTH)
    expected = functional.embedding(tokens, weight)
    compiled = torch.compile(look_up, backend="aot_eager", fullgraph=True, dynamic=True)
    for function in (look_up, compiled):
        found = function(weight, tokens)
        assert torch.equal(found, expected) and found.requires_grad == learnt
        if learnt:
            wanted = torch.autograd.grad(expected, weight, upstream, retain_graph=True)
            torch.testing.assert_close(torch.autograd.grad(found, weight, upstream), wanted)


def test_gradients_are_those_of_pytorch(native_calls: list[str]) -> None:
    weight, table = (x.requires_grad_() for x in tables(torch.float32))
    tokens, positions = torch.tensor([4, 9, 4]), torch.tensor([0, 1, 0])
    embed(weight, tokens, table, positions).sum().backward()
    assert not native_calls and weight.grad is not None and table.grad is not None
    torch.testing.assert_close(weight.grad[:, 0].nonzero()[:, 0], torch.tensor([4, 9]))
    assert table.grad[:3, 0].tolist() == [2, 1, 0]
