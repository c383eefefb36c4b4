"""Whether a GPU runs our own kernels (`ops.gpu_kernels`)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from seq2seq.support.devices import capability
from seq2seq.support.errors import first_line
from seq2seq.support.progress import say


def runs_kernels(device: torch.device) -> bool:
    """Whether kernels in Triton run there; where they should and fail, one line on stderr says why."""
    return (capability(device) or (0, 0)) >= (8, 0) and _works(device)


def can_compute(*tensors: Tensor) -> bool:
    """Whether our kernels for search are there for tensors of this kind: on a GPU, of one format, without gradients."""
    first = tensors[0]
    if first.device.type != "cuda" or not first.dtype.is_floating_point:
        return False
    wants_gradients = torch.is_grad_enabled()
    for x in tensors:
        if x.dtype is not first.dtype or x.device != first.device or (wants_gradients and x.requires_grad):
            return False
    return runs_kernels(first.device)


def power_of_two(count: int) -> int:
    """The least power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()


@functools.cache
def _works(device: torch.device) -> bool:
    """Try one: that Triton is missing, or the C compiler that it needs, shows only then."""
    try:
        # Imported here because a computer without a GPU need not have it.
        from seq2seq.ops import gpu_kernels

        logits = torch.zeros(1, 16, device=device)
        target, out = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(2, 1, device=device)
        gpu_kernels.logits_to_gradients[(1,)](logits, target, out[0], out[1], 16, 1.0, V=16, BLOCK=16)
        # An error of the device is heard where its result is read.
        logits.sum().item()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        say(f"no kernels of our own on {device} ({first_line(error)}); going on with PyTorch's, which are slower")
        return False
    return True
