"""Choosing the device and the number format to compute in."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from typing import cast

import torch

from seq2seq.support.errors import UserError
from seq2seq.support.progress import say

FORMATS = ("float32", "bfloat16", "int8")
SHAPES_OF_TRAINING = 64
"""Matrix multiplication shapes for which oneDNN keeps compiled code; more were no faster and took more memory
(docs/log.md, 2026-11-25)."""


def choose_device(name: str, index: int | None = None) -> torch.device:
    """The device called `name` (`auto`, `cpu`, `cuda`, `cuda:1`); the CPU, with a notice, for a GPU that is not there.

    `index` is the GPU to take if the name does not say which. Raises UserError for a name that is no device.
    """
    if name == "auto" and not _has_gpu():
        return torch.device("cpu")
    if name in ("auto", "cuda"):
        name = "cuda" if index is None else f"cuda:{index}"
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name}: no such device; type auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        say(f"no device {name} here (GPUs found: {torch.cuda.device_count()}); falling back to the CPU")
        return torch.device("cpu")
    return device


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU, such as (9, 0); (0, 0) for the CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def alike(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Whether tensors are on one device and of one dtype, and need no gradients."""
    first, wants_gradients = tensors[0], torch.is_grad_enabled()
    for x in tensors:
        if x.dtype is not first.dtype or x.device != first.device or (wants_gradients and x.requires_grad):
            return False
    return True


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix multiplications run in hardware, and so faster than in float32."""
    if device.type == "cuda":
        return capability(device) >= (8, 0)
    return any(map(processor_has, ("avx512_bf16", "amx_bf16", "sve_bf16")))


def processor_has(instructions: str) -> bool:
    """Whether the CPU has these instructions, by PyTorch's name for them, such as `amx_bf16`.

    PyTorch reports this after version 2.11; before that the answer is no, as code that needs none of them always works.
    """
    return bool(torch.cpu.get_capabilities().get(instructions)) if hasattr(torch.cpu, "get_capabilities") else False


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The number format for matrix multiplications: bfloat16 for `auto` where the hardware has it, else float32.

    `tf32` is float32 of which a GPU multiplies only the first ten bits of the mantissa; the choice between this and
    full `float32` multiplication is set for the whole process. What the hardware lacks is reported on stderr.
    """
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    native = has_native_bfloat16(device)
    if name == "auto" and device.type == "cuda" and not native:
        say(f"{device} has no bfloat16; computing in float32 (to choose that yourself: trainer.precision=float32)")
    if name == "bfloat16" and not native:
        say(f"this {device.type} has no bfloat16: it is emulated, slower than trainer.precision=float32")
    return torch.bfloat16 if name == "bfloat16" or (name == "auto" and native) else torch.float32


def choose_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The number format for translation, by its name or as it is. Raises UserError for any other."""
    name = str(dtype).removeprefix("torch.")
    if name not in FORMATS:
        raise UserError(f"dtype={name}: must be one of {', '.join(FORMATS)}")
    return cast(torch.dtype, getattr(torch, name))


def _has_gpu() -> bool:
    """Whether PyTorch can compute on a GPU; if it found one that it cannot use, its reason is reported on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = torch.cuda.is_available()
    for warning in caught:
        say(f"{str(warning.message).partition(chr(10))[0].partition(' (Triggered')[0]}; falling back to the CPU")
    return found


def choose_compiling(setting: bool | str, device: torch.device) -> bool:
    """Whether to compile the regions of a model: for `auto`, only on GPUs."""
    return device.type == "cuda" if setting == "auto" else bool(setting)


def compute_deterministically(wanted: bool) -> None:
    """Let PyTorch use only bitwise reproducible operations in this process or, unless `wanted`, all of them again.

    To be called before any runs on a GPU. An operation that has no such form raises RuntimeError.
    """
    if wanted:
        # cuBLAS reads this when it starts: without it, its results may differ between two streams.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    # Otherwise all new memory is filled first; nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """The context in which matrix multiplications are computed in `precision`."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The format in which matrix multiplications of `x` are computed: that of `autocast` if active, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next tensor: returning it costs a page fault for every 4 KiB of it.

    Does nothing on systems without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        for parameter, value in ((m_mmap_max, 0), (m_trim_threshold, (1 << 31) - 1), (m_top_pad, 1 << 26)):
            mallopt(parameter, value)


def limit_compiled_shapes(count: int) -> None:
    """Let oneDNN keep its code for only `count` matrix multiplication shapes, unless the user has set a number.

    To be called before the first multiplication. By default it keeps up to four megabytes for each of a thousand shapes
    that it has met: sentences of all lengths took gigabytes.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(count))
    # What PyTorch caches on top of that.
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
