"""A step of few hypotheses in one call against the same layers one part at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from seq2seq.config.schema import TransformerConfig
from seq2seq.model.decoder import TransformerDecoder
from seq2seq.model.embedding import Embedding
from seq2seq.model.few_rows import FEW, FewRowsDecoder
from seq2seq.model.interfaces import Memory
from seq2seq.model.row_cache import RowCache
from seq2seq.ops import native
from seq2seq.ops.alone import computing_rows_alone
from seq2seq.ops.few_rows import FewRows
from seq2seq.ops.packed_linear import PackedLinear, can_pack, replace_linears
from seq2seq.ops.packing import Layout
from seq2seq.ops.quantized_linear import QuantizedLinear

pytestmark = pytest.mark.skipif(
    native.library() is None or not can_pack(torch.ones(8, 8)), reason="no C++ compiler here, or no oneDNN"
)
WIDTH, VOCABULARY = 24, 31
Randomise = Callable[[nn.Module], None]


def packed(weight: Tensor, bias: Tensor | None) -> nn.Module:
    return PackedLinear(weight, bias, few=True)


class OfFewAlone(nn.Module):
    """A layer without oneDNN's weights, which cannot be copied."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.few = FewRows.of(weight, bias)

    def forward(self, x: Tensor, *, rectify: bool = False) -> Tensor:
        return self.few(x.reshape(-1, x.shape[-1]), rectify=rectify).view(*x.shape[:-1], -1)


def decoder_of(
    randomise: Randomise, norm: str, d_k: int | None, dtype: torch.dtype, make: Callable[..., nn.Module]
) -> TransformerDecoder:
    config = TransformerConfig(num_layers=3, num_heads=4, d_k=d_k, d_ff=40, norm=norm, dropout=0.0)
    decoder = TransformerDecoder(config, Embedding(VOCABULARY, WIDTH))
    randomise(decoder)
    decoder.to(dtype).eval()
    replace_linears(decoder, make)
    decoder.finish()
    return decoder


def steps(decoder: TransformerDecoder, dtype: torch.dtype) -> list[Tensor]:
    """The rows of some steps of three sentences, of which one goes away, with more and fewer hypotheses of each."""
    generator = torch.Generator().manual_seed(2)
    layout = Layout.of([3, 1, 7])
    found = []
    with torch.no_grad():
        state = decoder.start(Memory(torch.randn(layout.total, WIDTH, generator=generator).to(dtype), layout))
        assert isinstance(state, RowCache)
        slots, before = 3, 1
        for number, width in enumerate([1, 4, 4, 2, 5, 1, 3]):
            tokens = torch.randint(VOCABULARY, (slots, width), generator=generator)
            parents = torch.randint(before, (slots, width), generator=generator)
            found.append(decoder.step(state, tokens, parents))
            before = width
            if number == 3:
                decoder.keep(state, torch.tensor([2, 0]))
                slots = 2
    return found


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("d_k", [None, 5])
@pytest.mark.parametrize(
    ("dtype", "make", "tolerance"),
    [(torch.float32, packed, 2e-5), (torch.bfloat16, packed, 6e-2), (torch.float32, QuantizedLinear, 0.3)],
)
def test_it_is_the_layers_one_part_at_a_time(
    norm: str,
    d_k: int | None,
    dtype: torch.dtype,
    make: Callable[..., nn.Module],
    tolerance: float,
    randomise: Randomise,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = decoder_of(randomise, norm, d_k, dtype, make)
    calls: list[str] = []
    call = native.call

    def counted(name: str, *arguments: Tensor | int) -> None:
        calls.append(name)
        call(name, *arguments)

    monkeypatch.setattr(native, "call", counted)
    found = steps(decoder, dtype)
    assert calls.count("decoder_step") == len(found)
    monkeypatch.setattr(FewRowsDecoder, "takes", lambda *_: False)
    expected = steps(decoder, dtype)
    assert calls.count("decoder_step") == len(found)
    for own, wanted in zip(found, expected, strict=True):
        assert own.dtype == dtype
        scale = wanted.float().abs().amax()
        torch.testing.assert_close(own.float() / scale, wanted.float() / scale, atol=tolerance, rtol=0)


def test_a_copy_has_weights_of_its_own(randomise: Randomise) -> None:
    decoder = decoder_of(randomise, "post", None, torch.float32, OfFewAlone)
    expected = steps(decoder, torch.float32)
    other = copy.deepcopy(decoder)
    few, of_other = cast(FewRowsDecoder, decoder._few), cast(FewRowsDecoder, other._few)
    assert all(own is layer for own, layer in zip(of_other.layers, other.layers, strict=True))
    assert not set(few._structs.flatten().tolist()) & {x for x in of_other._structs.flatten().tolist() if x > 1 << 20}
    del decoder, few
    assert all(torch.equal(own, wanted) for own, wanted in zip(steps(other, torch.float32), expected, strict=True))


def test_it_is_for_few_hypotheses_that_need_not_be_alone_in_layers_laid_out_for_it(randomise: Randomise) -> None:
    decoder = decoder_of(randomise, "post", None, torch.float32, packed)
    few, most = cast(FewRowsDecoder, decoder._few), FEW[torch.float32]
    assert few.takes(torch.zeros(1, most, WIDTH)) and not few.takes(torch.zeros(1, most + 1, WIDTH))
    with computing_rows_alone(True):
        assert not few.takes(torch.zeros(1, 1, WIDTH))
    assert decoder_of(randomise, "post", None, torch.float32, PackedLinear)._few is None
    decoder.layers[1].self_residual.norm.eps = 1e-3  # type: ignore[union-attr]
    decoder.finish()
    assert decoder._few is None
