"""Compiled regions: methods over packed rows that PyTorch's compiler fuses, each once for all layers and all shapes.

A module lists such methods in `regions`. Their arguments are tensors and layouts, so that the numbers of tokens,
sentences and positions can stay variables in the compiled code. TorchInductor still distinguishes a few size classes
(on the CPU, sums over more than 4,096 rows): it recompiles once when the first batch of a new class comes.
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

from seq2seq.ops.attention import supports_packed_rows
from seq2seq.ops.feed_forward import supports_rectified_product
from seq2seq.ops.gpu import supports_triton
from seq2seq.ops.packing import Layout
from seq2seq.ops.short_attention import supports_short_sentences
from seq2seq.support.errors import ReportedError, first_line
from seq2seq.support.progress import say

PACKAGE = Path(__file__).parent.parent
OPTIONS: dict[str, Any] = {"triton.mix_order_reduction": False}
"""With this off, the norms' backward pass is faster on a GPU (docs/log.md, 2026-11-26)."""


def compile_regions(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """In training, run the methods that the modules of `model` list in `regions` as compiled code.

    Elsewhere (validation, search), and after a compiler failure, which one line on stderr reports, they run uncompiled.
    Nothing is compiled before its first use.
    """
    # These find out by trial whether a kernel works: compiled code must take the result, not trace the trial.
    torch.compiler.assume_constant_result(supports_packed_rows)
    torch.compiler.assume_constant_result(supports_short_sentences)
    torch.compiler.assume_constant_result(supports_triton)
    torch.compiler.assume_constant_result(supports_rectified_product)
    # Models before this one (multirun) may have used up the number of times that a function is compiled.
    torch.compiler.reset()
    compiler = Compiler(backend)
    for module in model.modules():
        for name in getattr(module, "regions", ()):
            setattr(module, name, Region(module, name, compiler))


class Compiler:
    """Compiles functions; `works` is False after the first failure."""

    def __init__(self, backend: str | Callable[..., Any]) -> None:
        self.backend = backend
        self.works = True
        self._compiled: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}

    def __call__(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """`function(*arguments)`, compiled, or uncompiled where compilation fails."""
        if function not in self._compiled:
            options = OPTIONS if self.backend == "inductor" else None
            self._compiled[function] = torch.compile(
                function, backend=self.backend, dynamic=True, fullgraph=True, options=options
            )
        try:
            # Sizes that happen to be equal in the first batch must stay separate variables. And a backward pass that
            # cannot be compiled must fail now, while the plain code can still take its place.
            with shapes.patch(use_duck_shape=False), passes.patch(force_non_lazy_backward_lowering=True):  # type: ignore[attr-defined]
                return self._compiled[function](*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # No failure of the compiler: a signal that ends the run.
            if isinstance(cause := _cause(error), ReportedError):
                raise cause from None
            # If the error is the function's own, it is raised again here.
            result = function(*arguments)
            self.works = False
            say(f"compiling failed ({_told(cause)}): the model runs uncompiled; trainer.compile=false skips this")
            return result


class Region:
    """A method of a module, compiled where that pays."""

    is_of_class = True
    """It computes what the method of the module's class does."""

    def __init__(self, module: nn.Module, name: str, compiler: Compiler) -> None:
        self.module, self.compiler = module, compiler
        self.function: Callable[..., Tensor] = getattr(type(module), name)

    def __call__(self, *arguments: Tensor | Layout) -> Tensor:
        layouts = [argument for argument in arguments if isinstance(argument, Layout)]
        # A size of 1 would become a constant in the compiled code.
        variable = all(layout.batch_size > 1 and layout.max_length > 1 for layout in layouts)
        variable = variable and all(len(argument) > 1 for argument in arguments if isinstance(argument, Tensor))
        if not (variable and self.compiler.works and self.module.training and torch.is_grad_enabled()):
            return self.function(self.module, *arguments)
        for layout in layouts:
            layout.precompute()
        return self.compiler(self.function, self.module, *arguments)


def _cause(error: BaseException) -> BaseException:
    """The root cause of the compiler's error."""
    while cause := getattr(error, "inner_exception", None) or error.__cause__:
        error = cause
    return error


def _told(error: BaseException) -> str:
    """An error in one line, and where in our code it lies, if that is given."""
    places = re.findall(rf'File "({re.escape(str(PACKAGE))}.+)", line (\d+)', str(error))
    return first_line(error) + "".join(f", {path}:{line}" for path, line in places[-1:])
