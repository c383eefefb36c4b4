"""Devices by name, the CPU for one that is not there, and number formats."""

from __future__ import annotations

import platform
import subprocess
import sys
import warnings

import pytest
import torch

from seq2seq.support import devices
from seq2seq.support.devices import (
    FORMATS,
    autocast,
    choose_compiling,
    choose_device,
    choose_dtype,
    choose_precision,
    has_native_bfloat16,
)
from seq2seq.support.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=available: found)
        monkeypatch.setattr(torch.cuda, "device_count", lambda found=available: int(found))
        assert choose_device("auto").type == kind
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_missing_gpu_falls_to_the_cpu_and_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device(name) == CPU
    out, err = capsys.readouterr()
    assert out == ""
    assert name in err and "CPU" in err


def test_a_gpu_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cuda:2") == CPU


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "mps", "meta"])
def test_no_device_of_that_name(name: str) -> None:
    with pytest.raises(UserError, match=f"device={name}: no such device; type auto, cpu"):
        choose_device(name)


def test_a_gpu_that_cannot_be_used_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def old_driver() -> bool:
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).\nPlease update "
            "your GPU driver (Triggered internally at /c10/cuda/CUDAFunctions.cpp:109.)",
            stacklevel=1,
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    assert choose_device("auto") == CPU
    reason = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)."
    assert capsys.readouterr().err == f"{reason}; falling back to the CPU\n"


def test_what_the_hardware_lacks_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(devices, "has_native_bfloat16", lambda _: False)
    assert choose_precision("auto", CUDA) == torch.float32
    assert "cuda has no bfloat16; computing in float32" in capsys.readouterr().err
    assert choose_precision("bfloat16", CPU) == torch.bfloat16
    assert "this cpu has no bfloat16: it is emulated, slower than trainer.precision=float32" in capsys.readouterr().err
    assert choose_precision("auto", CPU) == choose_precision("float32", CUDA) == torch.float32
    assert capsys.readouterr().err == ""


def test_tf32_is_taken_when_asked_for_alone() -> None:
    for name, products in (("tf32", "high"), ("float32", "highest")):
        assert choose_precision(name, CPU) == torch.float32
        assert torch.get_float32_matmul_precision() == products


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (True, False):
        monkeypatch.setattr(devices, "has_native_bfloat16", lambda _, found=native: found)
        assert choose_precision("auto", CPU) == (torch.bfloat16 if native else torch.float32)
        assert choose_precision("bfloat16", CPU) == torch.bfloat16
        assert choose_precision("float32", CPU) == torch.float32


def test_compiling_is_for_gpus_where_nothing_is_said() -> None:
    assert choose_compiling("auto", CUDA) and not choose_compiling("auto", CPU)
    for setting in (True, False):
        assert choose_compiling(setting, CUDA) is choose_compiling(setting, CPU) is setting


def test_native_bfloat16_is_told_by_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    flags: dict[str, bool] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert not has_native_bfloat16(CPU)
    flags["avx512_bf16"] = True
    assert has_native_bfloat16(CPU)
    for capability, native in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert has_native_bfloat16(CUDA) == native


FAULTS = """
import resource, torch
from seq2seq.support.devices import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = min(faults() for _ in range(20))
keep_freed_memory()
kept = min(faults() for _ in range(20))
print(kept, given_back)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other settings")
def test_freed_memory_is_kept() -> None:
    """In a process of its own: it is set for the whole of it."""
    done = subprocess.run([sys.executable, "-c", FAULTS], text=True, capture_output=True, check=True)
    kept, given_back = map(int, done.stdout.split())
    assert kept * 4 < given_back


def test_a_training_may_be_held_to_operations_that_repeat() -> None:
    """In a process of its own: it is set for the whole of it."""
    code = (
        "import os, torch; from seq2seq.support.devices import compute_deterministically as set_it; set_it(True);"
        "assert torch.are_deterministic_algorithms_enabled() and os.environ['CUBLAS_WORKSPACE_CONFIG'];"
        "assert not torch.empty(1 << 20).isnan().all();"
        "set_it(False); assert not torch.are_deterministic_algorithms_enabled()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_formats_go_by_name_or_as_they_are() -> None:
    assert [choose_dtype(name) for name in FORMATS] == [torch.float32, torch.bfloat16, torch.int8]
    assert choose_dtype(torch.int8) is torch.int8
    for wrong in ("float64", torch.float16, "fp32"):
        with pytest.raises(UserError, match=r"^dtype=\w+: must be one of float32, bfloat16, int8$"):
            choose_dtype(wrong)


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_rank_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda"):
        assert [choose_device(name, index) for index in (0, 1)] == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert choose_device("cuda:1", 0) == torch.device("cuda:1")


def test_tf32_is_for_nobody_else() -> None:
    for name in ("auto", "bfloat16", "float32"):
        choose_precision(name, CPU)
        assert torch.get_float32_matmul_precision() == "highest"


def test_a_gpu_without_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(devices, "has_native_bfloat16", lambda _: False)
    choose_precision("bfloat16", CUDA)
    assert "this cuda has no bfloat16: it is emulated" in capsys.readouterr().err


def test_products_are_computed_in_the_format_that_was_chosen() -> None:
    x = torch.ones(2, 2)
    for precision in (torch.bfloat16, torch.float32):
        with autocast(CPU, precision):
            assert (x @ x).dtype == precision
