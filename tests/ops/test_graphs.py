"""Recorded functions: what they give, and what happens where they cannot be recorded."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from seq2seq.ops.graphs import Recorded
from tests.kernels import DEVICE, HAS_GPU

pytest.importorskip("triton", reason="Triton is not installed here")


def test_a_recorded_function_reads_what_its_tensors_hold_now() -> None:
    x = torch.ones(3, device=DEVICE)
    recorded = Recorded(lambda: 2 * x, DEVICE)
    x.fill_(5.0)
    assert recorded().tolist() == [10.0] * 3
    x.fill_(7.0)
    assert recorded().tolist() == [14.0] * 3
    assert recorded.is_recorded == HAS_GPU


def test_where_recording_fails_one_line_says_so_and_the_function_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    called = []

    def function() -> int:
        called.append(1)
        if HAS_GPU and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("no room\nat all")
        return len(called)

    recorded = Recorded(function, torch.device("cuda"), try_first=False)
    before = len(called)
    assert [recorded(), recorded()] == [before + 1, before + 2]
    (line,) = capsys.readouterr().err.splitlines()
    assert "graph capture failed on cuda" in line and "one by one" in line


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU here")
def test_random_numbers_are_those_of_the_seed_also_where_recording_fails() -> None:
    x = torch.ones(64, device=DEVICE)

    def function() -> torch.Tensor:
        out = F.dropout(x)
        # To wait for the device is what no recording can hold.
        return out * out.sum().item()

    torch.manual_seed(5)
    recorded = Recorded(function, DEVICE, try_first=False)
    found = recorded(), recorded()
    assert not recorded.is_recorded
    torch.manual_seed(5)
    assert all(torch.equal(one, function()) for one in found)
