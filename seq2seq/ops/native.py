"""Functions in C++ (`kernels.cpp`) for training and translation on a processor, compiled where they are first needed.

They are compiled for the processor at hand, once, in some seconds: the library stays in `$XDG_CACHE_HOME/seq2seq`
(`~/.cache/seq2seq`), under a name made of the source, the compiler and the processor. Where there is no compiler
(`$CXX`, else `c++`), one line says so, and all that calls these functions does the same with PyTorch's operations.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from seq2seq.support.progress import say

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"),
    *("-shared", "-fPIC"),
]
FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
NAMES = FORMATS | {torch.int32: "int32", torch.int64: "int64"}
WEIGHTS = (torch.float32, torch.bfloat16, torch.int8)
"""Formats of weights, as they are numbered in C++."""
SECONDS = 120
"""How long the compiler may take: it needs five."""
_functions: dict[tuple[str, torch.dtype], Callable[..., None]] = {}
"""What was called so far: to look it up again takes a call twice as long."""


def serves(x: Tensor) -> bool:
    """Whether the functions are there for tensors of this format on this device; code that is compiled has its own."""
    if torch.compiler.is_compiling():
        return False
    return x.dtype in FORMATS and x.device.type == "cpu" and library() is not None


def can_compute(*tensors: Tensor) -> bool:
    """The same for several of one format, that want no gradients."""
    kind = tensors[0].dtype
    if kind not in FORMATS:
        return False
    wants_gradients = torch.is_grad_enabled()
    for x in tensors:
        if x.dtype is not kind or x.device.type != "cpu" or (wants_gradients and x.requires_grad):
            return False
    return library() is not None


def call(name: str, *arguments: Tensor | float) -> None:
    """Call a function of `kernels.cpp`, in the format of the first tensor, with numbers and addresses of tensors.

    Tensors must be contiguous: strides are numbers of their own (`product`). What is a float there must be one here.
    """
    first = arguments[0]
    assert isinstance(first, Tensor)
    values: list[float] = []
    for x in arguments:
        if isinstance(x, Tensor):
            assert x.is_contiguous()
            values.append(x.data_ptr())
        else:
            values.append(x)
    function = _functions.get((name, first.dtype)) or _declared(name, first.dtype, values)
    function(*values, torch.get_num_threads())


def multiplies() -> bool:
    """Whether the library is there and its products are quicker here than PyTorch's (`panel_linear`)."""
    loaded = library()
    return loaded is not None and bool(loaded.multiplies())


@functools.cache
def multiplies_large(dtype: torch.dtype) -> bool:
    """Whether the library is there and its products of large matrices in this format are quicker than PyTorch's here
    (`product`)."""
    loaded = library()
    return loaded is not None and dtype in FORMATS and bool(loaded[f"multiplies_large_{FORMATS[dtype]}"]())


def levels_of_rows() -> int:
    """Steps on both sides of zero that rows must be rounded to for weights in int8, where there is a library."""
    return int(cast(ctypes.CDLL, library()).levels_of_rows())


def _declared(name: str, kind: torch.dtype, values: list[float]) -> Callable[..., None]:
    """The function of this name, for arguments like these: integers, of which addresses are some, and floats."""
    function = cast(ctypes.CDLL, library())[f"{name}_{NAMES[kind]}"]
    function.argtypes = [ctypes.c_float if isinstance(x, float) else ctypes.c_int64 for x in (*values, 0)]
    function.restype = None
    _functions[name, kind] = cast(Callable[..., None], function)
    return function


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where they cannot be had, which one line on stderr tells of."""
    given = os.environ.get("CXX", "").strip() or "c++"
    try:
        name, *options = shlex.split(given)
        compiler = shutil.which(name)
        if compiler is None:
            say(f"no C++ compiler ({name}): computing on this processor is slower without; install g++, or set CXX")
            return None
        for runtime in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
            # One pool of threads for PyTorch and these functions: a second would be in its way.
            ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
        folder, identity = _folder(), _identity(compiler, options)
        return (folder and _kept(folder, identity)) or _compiled(compiler, options, folder, identity)
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip().partition("\n")[0]
        say(f"{given} cannot compile {SOURCE.name} ({why}): computing on this processor is slower without")
        return None


def _kept(folder: Path, identity: str) -> ctypes.CDLL | None:
    """The library of this name, if it is whole and nobody else can have written it."""
    for path in folder.glob(f"{identity}-*.so"):
        if _is_ours(path) and path.stem == f"{identity}-{_digest(path.read_bytes())}":
            return ctypes.CDLL(str(path))
    return None


def _compiled(compiler: str, options: list[str], folder: Path | None, identity: str) -> ctypes.CDLL:
    how_often = "once" if folder else "at each start, as there is no folder of this user's own to keep it in"
    say(f"compiling {SOURCE.name} for this processor, {how_often}: some seconds")
    with tempfile.TemporaryDirectory(dir=folder) as building:
        path = Path(building) / "kernels.so"
        command = [compiler, *options, *FLAGS, "-o", str(path), str(SOURCE)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
        loaded = ctypes.CDLL(str(path))
        if folder:
            path.chmod(0o700)
            with contextlib.suppress(OSError):
                path.replace(folder / f"{identity}-{_digest(path.read_bytes())}.so")
        return loaded


def _folder() -> Path | None:
    """Where libraries are kept, which are code; None where this user cannot write, or others can."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seq2seq"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _is_ours(folder) and os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):
        return None


def _is_ours(path: Path) -> bool:
    state = path.stat()
    return state.st_uid == os.getuid() and not state.st_mode & 0o022


def _identity(compiler: str, options: list[str]) -> str:
    """A name for what comes out: the same only for the same source, compiler and processor."""
    state = Path(compiler).resolve().stat()
    about = (FLAGS, options, compiler, state.st_size, state.st_mtime_ns, _processor())
    sources = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
    return _digest(b"".join(source.read_bytes() for source in sources) + repr(about).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _processor() -> str:
    """What instructions the processor has, as the system tells it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            of_first = list(takewhile(str.strip, lines))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "".join(line for line in of_first if line.startswith(("flags", "Features", "model name")))
