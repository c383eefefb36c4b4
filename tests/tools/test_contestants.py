"""The peers are the same Transformer: as many weights, the same function, dropout at the same places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from seq2seq.config.compose import compose
from seq2seq.config.schema import ModelConfig
from seq2seq.data.batches import Batch
from seq2seq.data.tokenizer import BOS
from seq2seq.model.translation import count_parameters
from seq2seq.ops import dropout, native
from seq2seq.ops.packing import Layout
from tools.contestants import CONTESTANTS, RANKS, Contestant

VOCAB_SIZE = 50
INNER = {"ours": "feed_forward.inner", "nn.Transformer": "linear1", "Marian, sdpa": "fc1", "Marian, eager": "fc1"}
"""The first linear layer of a feed-forward network, by contestant."""


@pytest.fixture
def config(tiny: list[str]) -> ModelConfig:
    return compose(["run_dir=run", *tiny, "model.encoder.num_layers=2", "model.dropout=0.1"]).model


@pytest.fixture(params=[name for name in CONTESTANTS if name not in RANKS])
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    if found.startswith("Marian"):
        pytest.importorskip("transformers")
    return found


def batch() -> Batch:
    """Three pairs of different lengths: 12 source tokens in a grid of 18, 9 target tokens in a grid of 15."""
    source, target = Layout.of([6, 2, 4]), Layout.of([3, 5, 1])
    target_out = torch.randint(4, VOCAB_SIZE, (target.total,))
    target_in = target_out.roll(1)
    target_in[target.starts] = BOS
    return Batch(torch.randint(4, VOCAB_SIZE, (source.total,)), source, target_in, target_out, target)


def test_as_many_weights(name: str, config: ModelConfig) -> None:
    ours = count_parameters(CONTESTANTS["ours"](config, VOCAB_SIZE).model)
    assert count_parameters(CONTESTANTS[name](config, VOCAB_SIZE).model) == ours


def test_rows_are_those_that_enter_linear_layers(name: str, config: ModelConfig) -> None:
    contestant = CONTESTANTS[name](config, VOCAB_SIZE)
    seen: list[int] = []

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].numel() // inputs[0].shape[-1])

    for path, module in contestant.model.named_modules():
        if path.endswith(f"coder.layers.0.{INNER[name]}"):
            module.register_forward_pre_hook(count)
    pairs = batch()
    contestant.loss(pairs)
    assert len(seen) == 2
    assert sum(seen) == contestant.rows(pairs) == (21 if name == "ours" else 33)


def test_dropout_is_where_the_paper_has_it(name: str, config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = 0

    class Count(TorchFunctionMode):
        def __torch_function__(
            self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            nonlocal sites
            given = kwargs or {}
            p = given.get("p", args[1] if len(args) > 1 else None)
            sites += function is F.dropout and bool(p)
            if function is F.scaled_dot_product_attention:
                assert not given.get("dropout_p")
            return function(*args, **given)

    # Ours draws its own masks on a CPU, one for each site; what is in C++ nobody could count.
    monkeypatch.setattr(native, "supports", lambda _: False)
    monkeypatch.setattr(dropout, "mask", lambda like, p: F.dropout(torch.ones_like(like), p))
    contestant = CONTESTANTS[name](config, VOCAB_SIZE)
    contestant.model.train()
    with Count():
        contestant.loss(batch())
    embeddings, encoder, decoder = 2, 2 * config.encoder.num_layers, 3 * config.decoder.num_layers
    assert sites == embeddings + encoder + decoder


def test_plain_computes_what_ours_does(config: ModelConfig) -> None:
    ours, plain = (CONTESTANTS[name](config, VOCAB_SIZE) for name in ("ours", "nn.Transformer"))
    weights, given = ours.model.state_dict(), plain.model.state_dict()
    names = {
        "embedding": "target_embedding",
        "transformer.": "",
        "self_attn": "self_attention",
        "multihead_attn": "cross_attention",
        "out_proj": "output",
        "linear1": "feed_forward.inner",
        "linear2": "feed_forward.outer",
    }
    residuals = {
        "encoder": ("attention_residual", "feed_forward_residual"),
        "decoder": ("self_residual", "cross_residual", "feed_forward_residual"),
    }
    for theirs in given:
        own = theirs
        for old, new in names.items():
            own = own.replace(old, new)
        for number, residual in enumerate(residuals[own.partition(".")[0]] if "norm" in own else (), start=1):
            own = own.replace(f"norm{number}", f"{residual}.norm")
        if "in_proj_" in own:
            parts = (own.replace("in_proj_", f"{part}.") for part in ("query", "key_value"))
            given[theirs] = torch.cat([weights[part] for part in parts])
        else:
            given[theirs] = weights[own]
    plain.model.load_state_dict(given)
    pairs = batch()

    def loss(contestant: Contestant) -> Tensor:
        contestant.model.eval()
        return contestant.loss(pairs)

    torch.testing.assert_close(loss(plain), loss(ours))
