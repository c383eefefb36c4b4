"""Checkpoints: everything comes back bit by bit, old ones go, and another configuration is refused by key.

Whatever fails inside a save, and whatever is damaged later, a whole checkpoint is left and is the one taken.
"""

from __future__ import annotations

import functools
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from seq2seq.config import compose as compose_module
from seq2seq.config.compose import compose
from seq2seq.config.schema import Config, OptimizerConfig
from seq2seq.support.errors import RunError, UserError
from seq2seq.support.files import remove_leftovers
from seq2seq.support.manifest import damage
from seq2seq.train import checkpoint as module
from seq2seq.train.checkpoint import Checkpoints, Progress, Snapshot, intact
from seq2seq.train.optimizer import build_optimizer
from tests.soak.faults import Dead, Faults, disk_fails, installed, process_dies

Training = tuple[nn.Module, torch.optim.Optimizer]


def config_of(*overrides: str) -> Config:
    return compose(["+recipe=files", "data.train.source=some.tsv", *overrides])


def training(seed: int) -> Training:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 1))
    return model, build_optimizer(model, OptimizerConfig())


def advance(trained: Training, steps: int) -> None:
    model, optimizer = trained
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        model(torch.full((3, 4), float(step))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_equal(one: Training, other: Training) -> None:
    for own, same in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(own, same)
        have, need = one[1].state[own], other[1].state[same]
        assert have.keys() == need.keys() >= {"step", "exp_avg", "exp_avg_sq"}
        for key, value in need.items():
            assert torch.equal(have[key], value), key
            assert have[key].dtype == value.dtype


def save(run_dir: Path, trained: Training, step: int, keep: int = 5) -> None:
    Checkpoints(run_dir).save(Snapshot.of(*trained, Progress(step=step), None), keeping(keep))


@functools.cache
def keeping(count: int) -> Config:
    return config_of("trainer.average_last=0", f"trainer.keep_checkpoints={count}")


def names(run_dir: Path) -> list[str]:
    return [path.name for path in Checkpoints(run_dir).all()]


def test_weights_and_optimizer_come_back_bit_by_bit(tmp_path: Path) -> None:
    saved, fresh = training(1), training(2)
    advance(saved, 3)
    progress = Progress(step=30, epoch=2, update=7, seconds=12.25, best_bleu=3.5, validations_since_best=1)
    Checkpoints(tmp_path).save(Snapshot.of(*saved, progress, None), config_of())
    assert Checkpoints(tmp_path).resume(*fresh, config_of(), None) == progress
    assert_equal(fresh, saved)
    # What is mapped still takes its disk space after it was deleted.
    if (maps := Path("/proc/self/maps")).exists():
        assert str(tmp_path) not in maps.read_text(encoding="utf-8")
    for trained in (saved, fresh):
        advance(trained, 2)
    assert_equal(fresh, saved)


def test_without_a_checkpoint_nothing_is_touched(tmp_path: Path) -> None:
    fresh, same = training(2), training(2)
    assert Checkpoints(tmp_path).resume(*fresh, config_of(), None) is None
    assert_equal_weights(fresh, same)


def assert_equal_weights(one: Training, other: Training) -> None:
    for own, same in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(own, same)


def test_the_newest_is_taken_by_number(tmp_path: Path) -> None:
    trained = training(1)
    for step in (8, 9, 10):
        advance(trained, 1)
        save(tmp_path, trained, step)
    assert names(tmp_path) == ["step-8", "step-9", "step-10"]
    fresh = training(2)
    found = Checkpoints(tmp_path).resume(*fresh, keeping(5), None)
    assert found is not None
    assert found.step == 10
    assert_equal(fresh, trained)


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    trained = training(1)
    advance(trained, 1)
    for step in (5, 90, 100, 110):
        save(tmp_path, trained, step, keep=2)
    assert names(tmp_path) == ["step-100", "step-110"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-100", "step-110"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=7", "type seed=1 to resume"),
        ("model.decoder.num_layers=2", "type model.decoder.num_layers=3 to resume"),
        ("data.train.source=other.tsv", "type data.train.source=some.tsv to resume"),
        ("data.micro_batches=2", "type data.micro_batches=null to resume"),
        ("schedule.peak=0.5", "type schedule.peak=null to resume"),
        ("trainer.label_smoothing=0", "type trainer.label_smoothing=0.1 to resume"),
    ],
)
def test_a_changed_key_is_refused_by_name(tmp_path: Path, override: str, message: str) -> None:
    trained = training(1)
    advance(trained, 1)
    Checkpoints(tmp_path).save(Snapshot.of(*trained, Progress(step=10), None), config_of())
    fresh, same = training(2), training(2)
    with pytest.raises(UserError) as refused:
        Checkpoints(tmp_path).resume(*fresh, config_of(override), None)
    assert message in str(refused.value)
    assert "run_dir=" in str(refused.value)
    assert_equal_weights(fresh, same)


def test_all_changed_keys_are_named(tmp_path: Path) -> None:
    trained = training(1)
    advance(trained, 1)
    Checkpoints(tmp_path).save(Snapshot.of(*trained, Progress(step=10), None), config_of())
    with pytest.raises(UserError, match=r"model\.d_model=256 .*seed=1 to resume"):
        Checkpoints(tmp_path).resume(*training(2), config_of("seed=2", "model.d_model=128"), None)


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.max_steps=77"],
        ["trainer.max_minutes=3", "trainer.save_every=5", "data.workers=1"],
        ["data.train.sha256=" + "1f" * 32],
        ["trainer.timeout_minutes=60", "trainer.log_seconds=1", "trainer.samples=0"],
        ["trainer.keep_checkpoints=9", "trainer.max_skipped=7", "trainer.devices=2", "trainer.patience=3"],
        ["data.prepared_dir=elsewhere", "run_dir=elsewhere"],
        ["data.valid.sha256=" + "1f" * 32, "data.test.sha256=" + "1f" * 32],
        ["trainer.on_full_disk=stop", "trainer.on_loss_spike=rollback"],
    ],
)
def test_what_only_says_how_far_to_go_or_what_to_show_may_change(tmp_path: Path, overrides: Sequence[str]) -> None:
    trained = training(1)
    advance(trained, 1)
    corpora = ["data.valid.source=valid.tsv", "data.test.source=test.tsv"]
    Checkpoints(tmp_path).save(Snapshot.of(*trained, Progress(step=10), None), config_of(*corpora))
    fresh = training(2)
    assert Checkpoints(tmp_path).resume(*fresh, config_of(*corpora, *overrides), None) is not None
    assert_equal(fresh, trained)


def test_leftovers_of_killed_saves_are_ignored_and_removed(tmp_path: Path) -> None:
    trained = training(1)
    advance(trained, 1)
    save(tmp_path, trained, 10)
    folder = tmp_path / "checkpoints"
    for name in (".step-20.a1b2.partial", ".step-10.c3d4.replaced"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"half")
    assert names(tmp_path) == ["step-10"]
    found = Checkpoints(tmp_path).resume(*training(2), keeping(5), None)
    assert found is not None
    assert found.step == 10
    remove_leftovers(folder)
    assert [path.name for path in folder.iterdir()] == ["step-10"]


def test_a_save_that_fails_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = training(1)
    advance(trained, 1)
    save(tmp_path, trained, 10)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, trained, 20, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-10"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    trained = training(1)
    advance(trained, 1)
    save(tmp_path, trained, 10)
    path = tmp_path / "checkpoints" / "step-10" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"step-10/{name}: damaged"):
        Checkpoints(tmp_path).resume(*training(2), keeping(5), None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations are composed and written once: in hundreds of saves they are what takes time."""
    to_yaml, load = compose_module.to_yaml, compose_module.load
    written = functools.cache(lambda keep: to_yaml(keeping(keep)))
    composed: dict[str, Config] = {}

    def loading(path: Path) -> Config:
        text = path.read_text(encoding="utf-8")
        return composed.get(text) or composed.setdefault(text, load(path))

    monkeypatch.setattr(compose_module, "to_yaml", lambda config: written(config.trainer.keep_checkpoints))
    monkeypatch.setattr(compose_module, "load", loading)


def loaded(run_dir: Path, states: dict[int, Training], keep: int = 5) -> int:
    """The step that a new process goes on from, which has the very state of that step."""
    checkpoints, fresh = Checkpoints(run_dir), training(2)
    remove_leftovers(checkpoints.directory)
    checkpoints.set_aside_damaged()
    assert not any(map(damage, checkpoints.all())), "half of one stands under its own name"
    found = checkpoints.resume(*fresh, keeping(keep), None)
    assert found is not None
    assert_equal(fresh, states[found.step])
    return found.step


def states_of(steps: Sequence[int]) -> dict[int, Training]:
    states = {}
    for step in steps:
        states[step] = training(step)
        advance(states[step], 2)
    return states


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("replaced", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("kind", [disk_fails, process_dies])
def test_wherever_a_save_ends_a_whole_checkpoint_is_left(
    tmp_path: Path, kind: Callable[[Faults], None], replaced: bool
) -> None:
    # Two are kept, so that the save that fails would also delete one; or it replaces one of the same step.
    states = states_of((10, 20, 30, 40))
    step = 20 if replaced else 30
    for saved in (10, 20):
        save(tmp_path / "whole", states[saved], saved, keep=2)
    with installed(Faults(None, lambda _: None, inside=str(tmp_path))) as counting:
        shutil.copytree(tmp_path / "whole", tmp_path / "counted")
        counting.seen.clear()
        save(tmp_path / "counted", states[step], step, keep=2)
    operations = counting.seen
    kinds = Counter(operation.split()[0] for operation in operations)
    assert kinds["fsync"] >= 8
    assert kinds["write"] == 2
    outcomes: Counter[int] = Counter()
    for at in range(len(operations)):
        run_dir = tmp_path / f"fault-{at}"
        shutil.copytree(tmp_path / "whole", run_dir)
        faults = Faults(at, lambda _: None, inside=str(run_dir))
        kind(faults)
        try:
            with installed(faults):
                save(run_dir, states[step], step, keep=2)
        except (OSError, Dead):
            pass
        assert faults.seen[: at + 1] == [
            operation.replace("counted", run_dir.name) for operation in faults.seen[: at + 1]
        ]
        if kind is disk_fails:
            # The same process goes on, past whatever was left behind.
            save(run_dir, states[40], 40, keep=2)
            shutil.rmtree(run_dir / "checkpoints" / "step-40")
        outcomes[loaded(run_dir, states, keep=2)] += 1
        save(run_dir, states[40], 40, keep=2)
        assert loaded(run_dir, states, keep=2) == 40
        assert {path.name[:5] for path in (run_dir / "checkpoints").iterdir()} == {"step-"}
        shutil.rmtree(run_dir)
    assert sum(outcomes.values()) == len(operations)
    assert set(outcomes) == {20, step}


def damaged_copies(whole: Path, count: int, change: Callable[[bytes, random.Random], bytes]) -> list[tuple[str, bytes]]:
    """Files of a checkpoint by name, damaged; each is taken as often as the others, whatever its size."""
    rng = random.Random(7)
    files = sorted(path.name for path in whole.iterdir())
    names = [files[number % len(files)] for number in range(count)]
    return [(name, change((whole / name).read_bytes(), rng)) for name in names]


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def with_a_bit_flipped(data: bytes, rng: random.Random) -> bytes:
    bit = rng.randrange(8 * len(data))
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("change", [truncated, with_a_bit_flipped])
def test_of_a_damaged_newest_checkpoint_the_one_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[bytes, random.Random], bytes]
) -> None:
    states = states_of((10, 20))
    for step in states:
        save(tmp_path, states[step], step)
    newest = tmp_path / "checkpoints" / "step-20"
    shutil.copytree(newest, tmp_path / "whole")
    for name, content in damaged_copies(newest, 100, change):
        (newest / name).write_bytes(content)
        capsys.readouterr()
        assert loaded(tmp_path, states) == 10
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{newest}/{name}: ")
        assert line.endswith("; renamed to step-20.damaged; using the checkpoint before it")
        shutil.copytree(tmp_path / "whole", newest)
    assert loaded(tmp_path, states) == 20


def test_several_damaged_ones_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = states_of((10, 20, 30, 40))
    for step in states:
        save(tmp_path, states[step], step)
    (tmp_path / "checkpoints" / "step-40" / "progress.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "step-30")
    (tmp_path / "checkpoints" / "step-30").mkdir()
    assert loaded(tmp_path, states) == 20
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert names(tmp_path) == ["step-10", "step-20"]


def test_when_none_is_whole_nothing_is_touched_and_all_are_named(tmp_path: Path) -> None:
    states = states_of((10, 20))
    for step in states:
        save(tmp_path, states[step], step)
        (tmp_path / "checkpoints" / f"step-{step}" / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"no checkpoint is intact \(step-20/optimizer\..*; step-10/optimizer\..*run_dir="
    ):
        Checkpoints(tmp_path).set_aside_damaged()
    assert names(tmp_path) == ["step-10", "step-20"]


def test_damaged_ones_are_left_out_of_an_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = states_of((10, 20, 30))
    for step in states:
        save(tmp_path, states[step], step)
    (tmp_path / "checkpoints" / "step-20" / "model.safetensors").write_bytes(b"")
    checkpoints = Checkpoints(tmp_path)
    assert [path.name for path in intact(checkpoints.all())] == ["step-10", "step-30"]
    assert (
        "step-20/model.safetensors: damaged, its SHA-256 is not that of the manifest; left out"
        in capsys.readouterr().err
    )


def test_a_disk_that_holds_something_else_keeps_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = states_of((10, 20))
    save(tmp_path, states[10], 10, keep=1)

    def rotten(folder: Path, *, from_disk: bool = False) -> str | None:
        assert from_disk
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"?")
        return damage(folder, from_disk=from_disk)

    with (
        monkeypatch.context() as patched,
        pytest.raises(RunError, match=r"not what was written \(model\.safetensors: "),
    ):
        patched.setattr(module, "damage", rotten)
        save(tmp_path, states[20], 20, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-10"]
    assert loaded(tmp_path, states, keep=1) == 10


def test_nothing_is_deleted_before_the_new_one_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = states_of((10, 20))
    save(tmp_path, states[10], 10, keep=1)

    def looked_at(folder: Path, *, from_disk: bool = False) -> str | None:
        assert names(tmp_path) == ["step-10"]
        return damage(folder, from_disk=from_disk)

    monkeypatch.setattr(module, "damage", looked_at)
    save(tmp_path, states[20], 20, keep=1)
    assert names(tmp_path) == ["step-20"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_thousand_saves_leave_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seq2seq.support.files._fsync", lambda _: None)  # only what is there counts here
    trained, keep = training(1), 3
    config = config_of("trainer.average_last=0", f"trainer.keep_checkpoints={keep}", "trainer.save_every=10")
    advance(trained, 1)
    rng = random.Random(3)
    saved, best = sorted(rng.sample(range(1, 2001), 1000)), 0
    for count, step in enumerate(saved, 1):
        best = step if rng.random() < 0.02 else best
        Checkpoints(tmp_path).save(Snapshot.of(*trained, Progress(step=step, best_step=best), None), config)
        regular = [number for number in saved[:count] if number % 10 == 0]
        expected = {*saved[:count][-keep:], *regular[-keep:], *([best] if best else [])}
        found = {path.name for path in (tmp_path / "checkpoints").iterdir()}
        assert found == {f"step-{number}" for number in expected}
    assert best not in saved[-keep:]
    assert best % 10


def test_the_size_is_that_of_the_files(tmp_path: Path) -> None:
    trained = training(1)
    advance(trained, 1)
    save(tmp_path, trained, 10)
    files = (tmp_path / "checkpoints" / "step-10").glob("*.safetensors")
    size = Snapshot.of(*trained, Progress(), None).size
    assert 0 < size < sum(path.stat().st_size for path in files) < size + 2 * 2000
