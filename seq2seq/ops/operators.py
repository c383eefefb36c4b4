"""Functions registered as operators, `torch.ops.seq2seq.NAME`: PyTorch's compiler does not look inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("seq2seq", "DEF")


def register(
    schema: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    on_cpu: Callable[..., Any] | None = None,
    gradients: Callable[..., Any] | None = None,
    save: Callable[..., None] | None = None,
) -> None:
    """Register `function`, or `on_cpu` for CPUs, as the operator `NAME(ARGUMENTS) -> RESULTS` of this schema.

    `fake` makes results of the right shapes and dtypes. `save` keeps in its context what `gradients` needs in the
    backward pass (`torch.library.register_autograd`).
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, function, "CUDA")
    _library.impl(name, on_cpu or function, "CPU")
    torch.library.register_fake(f"seq2seq::{name}", fake, lib=_library)
    if gradients:
        torch.library.register_autograd(f"seq2seq::{name}", gradients, setup_context=save, lib=_library)
