"""Compiled regions: the numbers of the plain code, made once for all shapes, left aside where they cannot be had."""

from __future__ import annotations

import copy
import random
import re
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from seq2seq.config.schema import ModelConfig, TransformerConfig
from seq2seq.data.batches import Batch
from seq2seq.model.translation import TranslationModel, build_model
from seq2seq.ops import attention, native
from seq2seq.ops.batch_invariance import is_batch_invariant
from seq2seq.ops.compiled import compile_regions
from seq2seq.ops.linear import Linear
from seq2seq.ops.packing import Layout
from seq2seq.support.errors import Stopped

VOCABULARY = 50
COMPILES = bool(shutil.which("g++")) and Path(sysconfig.get_paths()["include"], "Python.h").is_file()


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def build(dropout: float = 0.0) -> TranslationModel:
    layers = TransformerConfig(num_layers=2, num_heads=2, d_ff=32, dropout=dropout)
    return build_model(ModelConfig(d_model=16, dropout=dropout, encoder=layers, decoder=layers), VOCABULARY, 1)


def batch(source: list[int], target: list[int]) -> Batch:
    layouts = Layout.of(source), Layout.of(target)
    tokens = torch.randint(4, VOCABULARY, (sum(source) + sum(target),), generator=torch.Generator().manual_seed(1))
    source_tokens, target_tokens = tokens.split([sum(source), sum(target)])
    return Batch(source_tokens, layouts[0], target_tokens, target_tokens.roll(1), layouts[1])


def batches(count: int) -> list[Batch]:
    """Of all kinds, those first whose sizes coincide: five sentences, at most five long, equally many tokens."""
    rng = random.Random(1)
    found = [
        batch([5, 1, 2, 5, 2], [1, 5, 5, 2, 2]),
        batch([1], [1]),
        batch([3, 3], [3, 3]),
        batch([1, 1, 1], [2, 1, 4]),
        # Longer than what some ways of attention in translation are for.
        batch([300, 2], [3, 260]),
    ]
    while len(found) < count:
        sentences = rng.randint(1, 9)
        found.append(batch(*([rng.randint(1, 20) for _ in range(sentences)] for _ in range(2))))
    return found


def gradients(model: nn.Module, data: Batch, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = model(data).float()
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    return [out, *torch.autograd.grad(out, list(model.parameters()), upstream)]


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    ("backend", "dtype", "count", "near"),
    [
        pytest.param("aot_eager", torch.float32, 30, 1e-4, id="aot_eager"),
        pytest.param("aot_eager", torch.bfloat16, 10, 0.1, id="bfloat16"),
        pytest.param(
            *("inductor", torch.float32, 20, 1e-3),
            id="inductor",
            marks=[pytest.mark.slow, pytest.mark.skipif(not COMPILES, reason="no C++ compiler or Python.h here")],
        ),
    ],
)
def test_one_graph_for_each_region_serves_all_shapes(
    backend: str,
    dtype: torch.dtype,
    count: int,
    near: float,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is not compiled must round where compiled code does.
    monkeypatch.setattr(native, "supports", lambda _: False)
    plain, compiled = build(), build()
    compile_regions(compiled, backend)
    torch._dynamo.utils.counters.clear()
    for data in batches(count):
        for own, expected in zip(gradients(compiled, data, dtype), gradients(plain, data, dtype), strict=True):
            torch.testing.assert_close(own, expected, atol=near, rtol=near)
        assert graphs() == 3  # of both kinds of layers, and of their input
    assert capsys.readouterr().err == ""


def test_only_training_is_compiled() -> None:
    model = build()
    compile_regions(model, "aot_eager")
    torch._dynamo.utils.counters.clear()
    model.eval()(batches(1)[0])
    with torch.no_grad():
        model.train()(batches(1)[0])
    assert graphs() == 0


def test_a_copy_computes_with_its_own_weights() -> None:
    model = build()
    compile_regions(model, "eager")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    data = batches(1)[0]
    assert model(data).any()
    assert not other(data).any()


def test_dropout_follows_the_seed_and_the_share() -> None:
    model = build(dropout=0.5)
    compile_regions(model, "eager")
    data = batches(1)[0]
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model(data))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


def broken(*_: object) -> None:
    raise RuntimeError("no C++ compiler found\nand much more")


@pytest.mark.parametrize(
    "backend",
    [broken, aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=broken)],
    ids=["forward", "backward"],
)
def test_where_the_compiler_fails_one_line_says_why_and_the_code_runs_as_it_is(
    backend: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    plain, model = build(), build()
    compile_regions(model, backend)
    for data in batches(4):
        for own, expected in zip(gradients(model, data), gradients(plain, data), strict=True):
            assert torch.equal(own, expected)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "no C++ compiler found" in lines[0] and "trainer.compile=false" in lines[0]


def test_a_signal_during_compilation_is_no_failure_of_the_compiler(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*_: object) -> None:
        raise Stopped(15, "stopped at once")

    model = build()
    compile_regions(model, stopped)
    with pytest.raises(Stopped, match="stopped at once"):
        model(batches(1)[0])
    assert capsys.readouterr().err == ""


def test_where_the_compiler_cannot_trace_the_code_its_place_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "prefers_rows", lambda *_: is_batch_invariant())
    model = build()
    compile_regions(model, "eager")
    model(batches(1)[0])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"compiling failed \(.+, .+batch_invariance\.py:\d+\)", line)


def test_an_error_of_the_code_itself_is_not_taken_for_one_of_the_compiler(capsys: pytest.CaptureFixture[str]) -> None:
    model = build()
    compile_regions(model, "aot_eager")
    model.get_submodule("encoder.layers.0.feed_forward").inner = Linear(7, 32)
    with pytest.raises(RuntimeError, match="shapes"):
        model(batches(1)[0])
    assert capsys.readouterr().err == ""


def test_models_of_any_number_of_shapes_are_compiled_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    # In a multirun they are in one process, and PyTorch compiles a function at most eight times.
    for d_ff in range(8, 8 * 11, 8):
        layers = TransformerConfig(num_layers=1, num_heads=1, d_ff=d_ff, dropout=0.0)
        model = build_model(ModelConfig(d_model=8, dropout=0.0, encoder=layers, decoder=layers), VOCABULARY, 1).train()
        compile_regions(model, "eager")
        model(batch([5, 2], [3, 4])).sum().backward()
    assert "compiling failed" not in capsys.readouterr().err
