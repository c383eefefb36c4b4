"""Ranks join one another, or say why they cannot."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from seq2seq.config.compose import compose
from seq2seq.support.errors import RunError, UserError
from seq2seq.train.distributed import World, _start, joined
from tests.ports import free_port


def place(monkeypatch: pytest.MonkeyPatch, port: int = 1) -> None:
    """Be rank 1 of 2."""
    names = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for name, value in names.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.devices=3", r"^trainer\.devices=3: the launcher started 2 ranks; leave it out$"),
        ("data.micro_batches=3", r"^2 ranks cannot share the 3 micro-batches of an update evenly"),
    ],
)
def test_a_launcher_that_does_not_fit_the_settings(
    monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    place(monkeypatch)
    with (
        pytest.raises(UserError, match=message),
        joined(compose(["+recipe=files", "trainer.timeout_minutes=0.01", override])),
    ):
        pass


def test_what_a_launcher_has_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    place(monkeypatch)
    for name in ("RANK", "MASTER_PORT"):
        monkeypatch.delenv(name)
    with (
        pytest.raises(
            UserError, match=r"^WORLD_SIZE is set, but not RANK, MASTER_PORT; start the ranks with torchrun$"
        ),
        joined(compose(["+recipe=files", "trainer.timeout_minutes=0.01"])),
    ):
        pass


def test_a_rank_that_meets_nobody_says_where_it_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    place(monkeypatch, port)
    monkeypatch.setattr("seq2seq.support.progress._silent", False)
    config = compose(["+recipe=files", "trainer.device=cpu", "trainer.timeout_minutes=0.01"])
    with (
        pytest.raises(RunError, match=rf"^rank 1 did not meet the other ranks at localhost:{port}: .*all 2 started\?$"),
        joined(config),
    ):
        pass


def test_restarts_by_torchrun_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert _start() == "start-2"
    # Of several machines, each counts only its own.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert _start() == "start"


def test_who_waits_patiently_waits_for_the_patient_group(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(dist, "barrier", lambda group: waited.append(group))
    world = World(0, 2, 0, "control", "patient")
    world.wait(patiently=True)
    world.wait()
    assert waited == ["patient", "control"]
