"""Averages of weight files."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from seq2seq.support.errors import UserError
from seq2seq.train.averaging import average_weights, update_ema


def written(folder: Path, *models: dict[str, Tensor]) -> list[Path]:
    paths = [folder / f"{index}.safetensors" for index in range(len(models))]
    for path, model in zip(paths, models, strict=True):
        safetensors.torch.save_file(model, path)
    return paths


def test_the_mean_by_hand(tmp_path: Path) -> None:
    files = written(
        tmp_path,
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.0]])},
        {"a": torch.tensor([3.0, -2.0]), "b": torch.tensor([[1.0]])},
        {"a": torch.tensor([5.0, 6.0]), "b": torch.tensor([[0.5]])},
    )
    average = average_weights(files)
    assert {name: tensor.tolist() for name, tensor in average.items()} == {"a": [3.0, 2.0], "b": [[0.5]]}
    assert all(tensor.dtype == torch.float32 for tensor in average.values())


def test_sums_do_not_lose_small_weights(tmp_path: Path) -> None:
    # In float32, 2^24 + 1 is 2^24.
    files = written(tmp_path, *({"a": torch.tensor([value])} for value in (2.0**24, 1.0, 1.0, -(2.0**24))))
    assert average_weights(files)["a"].tolist() == [0.5]


def test_one_file_is_its_own_average(tmp_path: Path) -> None:
    weights = torch.randn(50)
    assert torch.equal(average_weights(written(tmp_path, {"a": weights}))["a"], weights)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(3)},
        {"b": torch.zeros(2)},
        {"a": torch.zeros(2), "b": torch.zeros(2)},
        {"a": torch.zeros(2, 1)},
    ],
)
def test_another_model_is_refused(tmp_path: Path, other: dict[str, Tensor]) -> None:
    first, second = written(tmp_path, {"a": torch.zeros(2)}, other)
    with pytest.raises(UserError, match=r"1\.safetensors.*0\.safetensors"):
        average_weights([first, second])


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    (first,) = written(tmp_path, {"a": torch.zeros(2)})
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(first.read_bytes()[:-1])
    for path in (damaged, tmp_path / "missing.safetensors"):
        with pytest.raises(UserError, match=path.name):
            average_weights([first, path])


def test_a_moving_average_by_hand() -> None:
    average, model = (nn.Linear(1, 1, bias=False) for _ in range(2))
    for module, value in ((average, 1.0), (model, 2.0)):
        nn.init.constant_(module.weight, value)
    # (1 + 1) / (10 + 1) at the first step, 0.9 once that is the smaller
    for step, expected in ((1, 2 - 2 / 11), (1000, 2 - 0.9 * 2 / 11)):
        update_ema(average, model, 0.9, step)
        assert average.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 2.0
