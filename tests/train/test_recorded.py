"""Recorded passes: the gradients of plain ones, in the shapes that come again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from seq2seq.config.schema import Config, ModelConfig, TrainerConfig, TransformerConfig
from seq2seq.data.batches import Batch, MicroBatch
from seq2seq.model.translation import TranslationModel, build_model
from seq2seq.ops import linear_cross_entropy, native, residual_norm, short_attention
from seq2seq.ops.graphs import GraphMemoryPool, Recorded
from seq2seq.ops.packing import Layout
from seq2seq.support.errors import UserError
from seq2seq.train import recorded as module
from seq2seq.train.distributed import World
from seq2seq.train.loss import batch_loss
from seq2seq.train.recorded import RecordedPasses, bucketed
from seq2seq.train.updater import Updater
from tests.kernels import DEVICE, HAS_GPU, distance, model_and_search

pytest.importorskip("triton", reason="Triton is not installed here")


def batch_to_train(generator: torch.Generator, source: list[int], target: list[int]) -> Batch:
    layouts = Layout.of(source), Layout.of(target)
    tokens = [torch.randint(4, 150, (sum(side),), generator=generator) for side in (source, target)]
    return Batch(tokens[0], layouts[0], tokens[1].roll(1), tokens[1], layouts[1])


@pytest.fixture
def kernels_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    if not HAS_GPU:
        monkeypatch.setattr(short_attention, "supports_short_sentences", lambda *_: True)
        for operation in (linear_cross_entropy, residual_norm):
            monkeypatch.setattr(operation, "supports_triton", lambda _: True)
        monkeypatch.setattr(native, "supports", lambda _: False)


def gradients_of(model: TranslationModel) -> list[Tensor]:
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.usefixtures("kernels_in_training")
def test_recorded_passes_give_the_gradients_of_plain_ones() -> None:
    model, _ = model_and_search()
    model.train()
    generator = torch.Generator().manual_seed(1)
    # Of three shapes; the last two are met once, too seldom to be recorded.
    shapes: list[Any] = [([5, 7, 40], [2, 3, 36])] * 4 + [([5, 7, 1], [9, 1, 1]), ([2], [3])]
    batches = [batch_to_train(generator, *shape) for shape in shapes]

    def loss_of(batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=HAS_GPU):
            loss, nll = batch_loss(model, batch.to(DEVICE), 0.1)
        return loss, torch.stack((loss.detach(), nll))

    def plain(batch: Batch) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        loss, figures = loss_of(batch)
        (loss * 0.25).backward()
        return figures, gradients_of(model)

    expected = list(map(plain, batches))
    recorded = RecordedPasses(loss_of, model, DEVICE)
    for batch, (figures, wanted) in zip(batches, expected, strict=True):
        for weight in model.parameters():
            assert weight.grad is not None
            weight.grad.zero_()
        found = recorded(bucketed(batch), 0.25, adds=True)
        torch.testing.assert_close(found, figures, rtol=1e-2 if HAS_GPU else 1e-5, atol=1e-3)
        for own, gradient in zip(gradients_of(model), wanted, strict=True):
            assert distance(own, gradient.double()) <= (3e-2 if HAS_GPU else 1e-4)
    assert len(recorded.graphs) == 1


def test_a_regular_shape_has_learned_positions() -> None:
    side = TransformerConfig(num_layers=1, num_heads=2, d_ff=32, positions="learned", max_positions=20)
    model = build_model(ModelConfig(d_model=16, encoder=side, decoder=side, dropout=0.0), 150, 1).eval()
    batch = batch_to_train(torch.Generator().manual_seed(1), [18, 3], [17, 20])
    made = bucketed(batch, (20, 20))
    assert (made.source_layout.max_length, made.target_layout.max_length) == (20, 20)
    assert int(made.source_layout.lengths.max()) <= 20
    torch.testing.assert_close(batch_loss(model, made, 0.1), batch_loss(model, batch, 0.1))
    with pytest.raises(UserError, match="max_positions=20"):
        batch_loss(model, bucketed(batch), 0.1)


@pytest.mark.usefixtures("kernels_in_training")
def test_dropout_of_a_recorded_pass_follows_the_seed() -> None:
    model, _ = model_and_search(dropout=0.5)
    model.train()
    batch = bucketed(batch_to_train(torch.Generator().manual_seed(1), [5, 7, 14], [2, 3, 12]))

    def loss_of(batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=HAS_GPU):
            loss, _ = batch_loss(model, batch.to(DEVICE), 0.1)
        return loss, loss.detach()

    recorded = RecordedPasses(loss_of, model, DEVICE)
    losses = []
    # The first is computed as it is written, the second recorded, the others replayed.
    for seed in (1, 1, 1, 2, 2):
        torch.manual_seed(seed)
        losses.append(float(recorded(batch, 1.0, adds=True)))
    assert losses[1:3] == pytest.approx([losses[0]] * 2, rel=1e-6)
    assert losses[3] == losses[4] and abs(losses[3] - losses[0]) > 1e-3 * losses[0]


def test_of_each_shape_the_second_batch_is_recorded_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHAPES", 1)
    layer = torch.nn.Linear(1, 1, bias=False).to(DEVICE)
    recorded = RecordedPasses(lambda batch: (layer.weight.sum(), 0.5 * batch.source.sum()), layer, DEVICE)
    generator = torch.Generator().manual_seed(1)
    for lengths in ([3, 4], [300], [5], [3, 4], [5], [5], [300], [2, 5]):
        batch = bucketed(batch_to_train(generator, lengths, lengths))
        assert float(recorded(batch, 0.5, adds=True)) == 0.5 * int(batch.source.sum())
    # [3, 4] and [2, 5] have one shape; [300] is too long, [5] had no room.
    ((shape, adds),) = recorded.graphs
    assert shape == batch.shape and adds


def test_gradients_are_added_or_take_the_place_of_those_before() -> None:
    layer = torch.nn.Linear(1, 1, bias=False).to(DEVICE)
    recorded = RecordedPasses(lambda batch: (3 * layer.weight.sum(), batch.source.sum()), layer, DEVICE)
    batch = bucketed(batch_to_train(torch.Generator().manual_seed(1), [3], [4]))
    found = []
    for adds in (False, False, False, True, True, False, True):
        recorded(batch, 1.0, adds=adds)
        assert layer.weight.grad is not None
        found.append(layer.weight.grad.item())
    assert found == [3, 3, 3, 6, 9, 3, 6]


def test_updates_of_several_parts_are_those_of_passes_that_are_not_recorded() -> None:
    layers = TransformerConfig(num_layers=1, num_heads=1, d_ff=16, dropout=0.0)
    model = ModelConfig(d_model=16, dropout=0.0, encoder=layers, decoder=layers)
    config = Config(model=model, trainer=TrainerConfig(compile=False))
    generator = torch.Generator().manual_seed(1)
    parts = [MicroBatch(number, batch_to_train(generator, [3, 4], [2, 5]).to(DEVICE), 1.0) for number in range(2)]
    found = []
    for records in (False, True):
        updater = Updater(build_model(config.model, 150, 1).to(DEVICE), config, World())
        updater.start()
        updater._recorded = RecordedPasses(updater._loss_of, updater.model, DEVICE) if records else None
        norms = []
        for step, tokens in enumerate((14, 14, 1e-38, 14, 14), 1):
            updater.gradients(parts, tokens, step)  # type: ignore[arg-type]
            norms.append(updater.apply(1e-2, step))
        # The third had no finite gradients, and nothing of them stayed.
        assert torch.stack(norms).isfinite().tolist() == [True, True, False, True, True]
        found.append([torch.stack(norms)[[0, 1, 3, 4]], *(weight.detach() for weight in updater.model.parameters())])
    for recorded, plain in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(recorded, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU here")
def test_passes_take_turns_in_one_memory() -> None:
    layer = torch.nn.Linear(1, 1, bias=False).to(DEVICE)

    def loss_of(batch: Batch) -> tuple[Tensor, Tensor]:
        # 256 MiB, kept for the backward pass
        return layer.weight.expand(2**13, 2**13).exp().sum(), batch.source.sum()

    recorded = RecordedPasses(loss_of, layer, DEVICE)
    torch.cuda.empty_cache()
    before, taken = torch.cuda.memory_reserved(), []
    generator = torch.Generator().manual_seed(1)
    for lengths in ([3], [3], [300], [40], [40], [40]):
        recorded(bucketed(batch_to_train(generator, lengths, lengths)), 1.0, adds=True)
        taken.append(torch.cuda.memory_reserved() - before)
    assert len(recorded.graphs) == 2
    assert 2**28 <= taken[-1] <= 1.2 * taken[0]


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU here")
def test_passes_find_room_in_what_is_reserved_for_them() -> None:
    layer = torch.nn.Linear(1, 1, bias=False).to(DEVICE)

    def loss_of(batch: Batch) -> tuple[Tensor, Tensor]:
        # Of another size for each shape: at most 210 MiB, kept for the backward pass
        return layer.weight.expand(len(batch.source), 2**20).exp().sum(), batch.source.sum()

    recorded = RecordedPasses(loss_of, layer, DEVICE)
    generator = torch.Generator().manual_seed(1)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    recorded.reserve(batch_to_train(generator, [52], [52]))
    before, taken = torch.cuda.memory_reserved(), torch.cuda.memory_reserved() - before
    assert 2 * 52 * 2**22 <= taken <= 4 * 52 * 2**22 + 2**26
    for lengths in ([20], [20], [30], [30], [40], [40], [50], [50]):
        recorded(bucketed(batch_to_train(generator, lengths, lengths)), 1.0, adds=True)
    assert len(recorded.graphs) == 4
    assert torch.cuda.memory_reserved() - before <= 2**24


def test_where_memory_runs_out_graphs_are_let_go_and_the_pass_is_made_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def full(memory: GraphMemoryPool) -> Iterator[None]:
        if memory.id is not None:
            raise torch.OutOfMemoryError("of this much")
        yield

    layer = torch.nn.Linear(1, 1, bias=False).to(DEVICE)
    recorded = RecordedPasses(lambda batch: (3 * layer.weight.sum(), batch.source.sum()), layer, DEVICE)
    generator = torch.Generator().manual_seed(1)
    short, long = (bucketed(batch_to_train(generator, lengths, lengths)) for lengths in ([3], [40]))
    for _ in range(2):
        recorded(short, 1.0, adds=True)
    assert recorded.graphs
    recorded._memory.id = recorded._memory.id or (0, 1)
    monkeypatch.setattr(GraphMemoryPool, "used", full)
    for batch in (long, long, short):
        assert float(recorded(batch, 1.0, adds=True)) == int(batch.source.sum())
    assert not recorded.graphs
    assert layer.weight.grad is not None and layer.weight.grad.item() == 15
    (line,) = capsys.readouterr().err.splitlines()
    assert "too little memory" in line


def test_a_pass_made_again_draws_the_same_random_numbers() -> None:
    layer = torch.nn.Linear(1, 1, bias=False).to(DEVICE)
    drawn: list[float] = []

    def loss(batch: Batch) -> tuple[Tensor, Tensor]:
        drawn.append(float(torch.rand((), device=DEVICE)))
        if len(drawn) == 1:
            raise torch.OutOfMemoryError("of this much")
        return layer.weight.sum(), batch.source.sum()

    recorded = RecordedPasses(loss, layer, DEVICE)
    recorded._memory.id = recorded._memory.id or (0, 1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(GraphMemoryPool, "used", lambda _: contextlib.nullcontext())
        torch.manual_seed(5)
        recorded(batch_to_train(torch.Generator().manual_seed(1), [3], [3]), 1.0, adds=False)
    assert drawn[0] == drawn[1]
    assert not recorded.end(), "nothing is held any more"


@pytest.mark.parametrize("tie", ["all", "target", "none"])
def test_no_weight_of_a_model_is_left_without_a_gradient(tie: str) -> None:
    layers = TransformerConfig(num_layers=2, num_heads=1, d_ff=16, norm="pre", positions="learned", max_positions=16)
    model = build_model(ModelConfig(d_model=16, tie_embeddings=tie, encoder=layers, decoder=layers), 150, 1).to(DEVICE)

    def loss_of(batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=HAS_GPU):
            loss, _ = batch_loss(model, batch.to(DEVICE), 0.1)
        return loss, loss.detach()

    batch = batch_to_train(torch.Generator().manual_seed(1), [5, 7], [2, 3])
    RecordedPasses(loss_of, model, DEVICE)(batch, 1.0, adds=True)
    assert all(gradient.any() for gradient in gradients_of(model))


def test_what_is_frozen_gets_no_gradient_and_gradients_must_stay_where_they_are() -> None:
    used, frozen = (torch.nn.Linear(1, 1, bias=False).to(DEVICE) for _ in range(2))
    frozen.weight.requires_grad_(False)
    model = torch.nn.ModuleList((used, frozen))
    recorded = RecordedPasses(lambda batch: (3 * used.weight.sum(), batch.source.sum()), model, DEVICE)
    batch = bucketed(batch_to_train(torch.Generator().manual_seed(1), [3], [4]))
    for _ in range(3):
        recorded(batch, 0.5, adds=True)
    assert used.weight.grad is not None and frozen.weight.grad is None
    assert used.weight.grad.item() == 4.5
    model.zero_grad(set_to_none=True)
    with pytest.raises(AssertionError):
        recorded(batch, 0.5, adds=True)


def test_graphs_of_before_are_left_where_a_recording_parted_them_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Recorded[Tensor]):
        """The third is not recorded; nor are the others, in truth: a GPU knows no such pool."""

        made = 0

        def __init__(self, function: Callable[[], Tensor], *_: Any, **__: Any) -> None:
            super().__init__(function, torch.device("cpu"))
            Failing.made += 1
            self.parts_generator = Failing.made == 3

        @property
        def is_recorded(self) -> bool:
            return not self.parts_generator

    monkeypatch.setattr(module, "Recorded", Failing)
    layer = torch.nn.Linear(1, 1, bias=False)
    recorded = RecordedPasses(lambda batch: (layer.weight.sum(), batch.source.sum()), layer, torch.device("cpu"))
    recorded.device, recorded._memory.id = torch.device("cuda"), (0, 1)
    monkeypatch.setattr(GraphMemoryPool, "used", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(Batch, "to", lambda batch, _: batch)
    generator = torch.Generator().manual_seed(1)
    batches = [bucketed(batch_to_train(generator, lengths, lengths)) for lengths in ([3], [20], [40], [70])]
    for batch in [each for each in batches for _ in range(2)]:
        assert float(recorded(batch, 1.0, adds=True)) == int(batch.source.sum())
    # The fourth had no chance.
    assert not recorded.graphs and recorded._memory.id is None
