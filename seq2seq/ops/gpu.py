"""Whether a GPU runs our own kernels (`ops.gpu_kernels`)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from seq2seq.support.devices import alike, capability
from seq2seq.support.errors import ReportedError, first_line
from seq2seq.support.progress import say


def supports_triton(device: torch.device) -> bool:
    """Whether Triton kernels run on this device; if they should but fail, one line on stderr says why."""
    return capability(device) >= (8, 0) and _works(device)


def supports_inference(*tensors: Tensor) -> bool:
    """Whether our search kernels can take these tensors: on one GPU, of one dtype, needing no gradients."""
    first = tensors[0]
    on_gpu = first.device.type == "cuda" and first.dtype.is_floating_point
    return on_gpu and alike(tensors) and supports_triton(first.device)


def next_power_of_2(count: int) -> int:
    """The least power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()


@functools.cache
def _works(device: torch.device) -> bool:
    """Try one: if Triton or the C compiler that it needs is missing, that only shows up this way."""
    try:
        # Imported here because a machine without a GPU need not have Triton.
        from seq2seq.ops import gpu_kernels

        logits = torch.zeros(1, 16, device=device)
        target, out = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(2, 1, device=device)
        gpu_kernels.logits_to_gradients[(1,)](logits, target, out[0], out[1], 16, 1.0, V=16, BLOCK=16)
        # A device error surfaces only when the result is read.
        logits.sum().item()
    except (torch.OutOfMemoryError, ReportedError):
        raise
    except Exception as error:
        say(f"seq2seq's kernels do not run on {device} ({first_line(error)}); PyTorch's are used, which are slower")
        return False
    return True
