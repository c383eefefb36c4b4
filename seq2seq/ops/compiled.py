"""Compiled regions: methods over packed rows that PyTorch's compiler fuses, each once for all layers and all shapes.

A module names such methods in `regions`. What they take are tensors and layouts, so that the numbers of tokens, of
sentences and of positions can stay variables of the compiled code. TorchInductor yet tells a few sizes apart (on the
CPU sums over more than 4,096 rows): it compiles anew, once, when the first batch of another such class comes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config as passes
import torch.fx.experimental._config as shapes
from torch import Tensor, nn

from seq2seq.ops.attention import takes_packed_rows
from seq2seq.ops.gpu import runs_kernels
from seq2seq.ops.packing import Layout
from seq2seq.ops.short_attention import takes_short_sentences
from seq2seq.support.errors import first_line
from seq2seq.support.progress import say

PACKAGE = Path(__file__).parent.parent
OPTIONS: dict[str, Any] = {"triton.mix_order_reduction": False}
"""Without it the norms' backward pass takes a GPU less time (docs/log.md, 2026-11-26)."""


def compile_regions(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Run the methods that modules of `model` name in `regions` as compiled code, in training.

    Elsewhere (validation, search), and after a failure of the compiler, which one line on stderr tells of, they run as
    they are written. Nothing is compiled before its first use.
    """
    # Whether a kernel is there is tried out: a result that compiled code takes over, not code for it to trace.
    torch.compiler.assume_constant_result(takes_packed_rows)
    torch.compiler.assume_constant_result(takes_short_sentences)
    torch.compiler.assume_constant_result(runs_kernels)
    compiler = Compiler(backend)
    for module in model.modules():
        for name in getattr(module, "regions", ()):
            setattr(module, name, Region(module, name, compiler))


class Compiler:
    """Compiles functions; after a first failure it `works` no more."""

    def __init__(self, backend: str | Callable[..., Any]) -> None:
        self.backend = backend
        self.works = True
        self._compiled: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}

    def __call__(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """`function(*arguments)`, compiled, or plain where compiling it fails."""
        if function not in self._compiled:
            options = OPTIONS if self.backend == "inductor" else None
            self._compiled[function] = torch.compile(
                function, backend=self.backend, dynamic=True, fullgraph=True, options=options
            )
        try:
            # Sizes that are equal in the first batch are not the same size for that. And a backward pass that cannot be
            # compiled must be known of now, while the plain code can still take its place.
            with shapes.patch(use_duck_shape=False), passes.patch(force_non_lazy_backward_lowering=True):  # type: ignore[attr-defined]
                return self._compiled[function](*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # An error of the function itself comes again here.
            result = function(*arguments)
            self.works = False
            say(f"this model runs uncompiled: the compiler fails ({_cause(error)}); trainer.compile=false omits it")
            return result


class Region:
    """A method of a module, compiled where that pays."""

    def __init__(self, module: nn.Module, name: str, compiler: Compiler) -> None:
        self.module, self.compiler = module, compiler
        self.function: Callable[..., Tensor] = getattr(type(module), name)

    def __call__(self, *arguments: Tensor | Layout) -> Tensor:
        layouts = [argument for argument in arguments if isinstance(argument, Layout)]
        # A size of 1 would be a constant of the compiled code.
        variable = all(layout.batch_size > 1 and layout.max_length > 1 for layout in layouts)
        if not (variable and self.compiler.works and self.module.training and torch.is_grad_enabled()):
            return self.function(self.module, *arguments)
        for layout in layouts:
            layout.complete()
        return self.compiler(self.function, self.module, *arguments)


def _cause(error: BaseException) -> str:
    """What went wrong at the bottom of the compiler's errors, in one line, and where in our code if that is told."""
    while cause := getattr(error, "inner_exception", None) or error.__cause__:
        error = cause
    places = re.findall(rf'File "({re.escape(str(PACKAGE))}.+)", line (\d+)', str(error))
    return first_line(error) + "".join(f", {path}:{line}" for path, line in places[-1:])
