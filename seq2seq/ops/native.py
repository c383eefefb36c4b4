"""C++ functions (`kernels.cpp`) for training and translation on CPUs, compiled when they are first needed.

They are compiled for the CPU at hand, once, in half a minute: the library is kept in `$XDG_CACHE_HOME/seq2seq`
(`~/.cache/seq2seq`), under a name derived from the source, the compiler and the CPU. Where there is no compiler
(`$CXX`, else `c++`), one line says so, and all callers of these functions fall back to PyTorch's operations.
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
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from seq2seq.support.devices import alike
from seq2seq.support.progress import say

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"),
    *("-shared", "-fPIC"),
]
FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
NAMES = FORMATS | {torch.int32: "int32", torch.int64: "int64"}
WEIGHTS = (torch.float32, torch.bfloat16, torch.int8)
"""Weight formats, in the order of their numbers in C++."""
SECONDS = 300
"""Time limit for the compiler."""
UNUSED = 90 * 24 * 3600
"""Seconds after which a library that nobody has loaded, of older sources or another compiler, is deleted."""
_functions: dict[tuple[str, torch.dtype], Callable[..., None]] = {}
"""Functions called so far: looking one up again would double the time of a call."""


def supports(x: Tensor) -> bool:
    """Whether the functions can take tensors of this dtype and device; code compiled by PyTorch has its own."""
    if torch.compiler.is_compiling():
        return False
    return x.dtype in FORMATS and x.device.type == "cpu" and library() is not None


def supports_inference(*tensors: Tensor) -> bool:
    """Whether the functions can take these tensors: on the CPU, of one dtype, needing no gradients."""
    first = tensors[0]
    return first.dtype in FORMATS and first.device.type == "cpu" and alike(tensors) and library() is not None


def call(name: str, *arguments: Tensor | float) -> None:
    """Call a function of `kernels.cpp`, for the dtype of the first tensor, with numbers and addresses of tensors.

    Tensors must be contiguous; strides are passed as numbers (`product`). An argument that is a float in C++ must be a
    float here.
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


def has_fast_matmul() -> bool:
    """Whether the library is available and its matmuls are faster here than PyTorch's (`panel_linear`)."""
    loaded = library()
    return loaded is not None and bool(loaded.has_fast_matmul())


@functools.cache
def has_fast_large_matmul(dtype: torch.dtype) -> bool:
    """Whether the library is available and its matmuls of large matrices of this dtype are faster (`product`)."""
    loaded = library()
    return loaded is not None and dtype in FORMATS and bool(loaded[f"has_fast_large_matmul_{FORMATS[dtype]}"]())


def levels_of_rows() -> int:
    """The steps on each side of zero to which rows must be rounded for int8 weights; the library must be available."""
    return int(cast(ctypes.CDLL, library()).levels_of_rows())


def _declared(name: str, kind: torch.dtype, values: list[float]) -> Callable[..., None]:
    """The function of this name, for arguments of these types: integers, including addresses, and floats."""
    types = [ctypes.c_float if isinstance(x, float) else ctypes.c_int64 for x in (*values, 0)]
    address = ctypes.c_void_p.in_dll(cast(ctypes.CDLL, library()), f"{name}_{NAMES[kind]}").value
    function = ctypes.CFUNCTYPE(None, *types)(cast(int, address))
    _functions[name, kind] = cast(Callable[..., None], function)
    return function


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where they are not available, which one line on stderr reports."""
    given = os.environ.get("CXX", "").strip() or "c++"
    try:
        name, *words = shlex.split(given)
        compiler = shutil.which(name)
        if compiler is None:
            say(f"no C++ compiler ({name}), so this CPU will compute more slowly; install g++ or set CXX")
            return None
        for runtime in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
            # One thread pool for PyTorch and these functions: a second would compete with it.
            ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
        # Such as the compiler's name after ccache; options come after ours, so that they may undo them.
        before = list(takewhile(lambda word: not word.startswith("-"), words))
        command = [compiler, *before, *FLAGS, *words[len(before) :]]
        folder, identity = _folder(), _identity(command)
        return (folder and _kept(folder, identity)) or _compiled(command, folder, identity)
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip().partition("\n")[0]
        say(f"{given} cannot compile {SOURCE.name} ({why}), so this CPU will compute more slowly")
        return None


def _kept(folder: Path, identity: str) -> ctypes.CDLL | None:
    """The library of this identity, if it is intact and nobody else can have written it."""
    for path in folder.glob(f"{identity}-*.so"):
        if _is_ours(path) and path.stem == f"{identity}-{_digest(path.read_bytes())}":
            with contextlib.suppress(FileNotFoundError):
                # Those that are no longer in use can be told by this time.
                os.utime(path)
                return ctypes.CDLL(str(path))
    return None


def _compiled(command: list[str], folder: Path | None, identity: str) -> ctypes.CDLL:
    how_often = "once" if folder else "at each start, as there is no folder of this user's own to keep it in"
    say(f"compiling {SOURCE.name} for this processor, {how_often}: up to half a minute")
    with tempfile.TemporaryDirectory(dir=folder) as building:
        path = Path(building) / "kernels.so"
        subprocess.run(
            [*command, "-o", str(path), str(SOURCE)], check=True, capture_output=True, text=True, timeout=SECONDS
        )
        loaded = ctypes.CDLL(str(path))
        if folder:
            path.chmod(0o700)
            with contextlib.suppress(OSError):
                path.replace(folder / f"{identity}-{_digest(path.read_bytes())}.so")
                for other in folder.glob("*.so"):
                    if time.time() - other.stat().st_mtime > UNUSED:
                        other.unlink(missing_ok=True)
        return loaded


def _folder() -> Path | None:
    """Where libraries are kept; as they are code, None where this user cannot write, or others can."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seq2seq"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _is_ours(folder) and os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):
        return None


def _is_ours(path: Path) -> bool:
    state = path.stat()
    return state.st_uid == os.getuid() and not state.st_mode & 0o022


def _identity(command: list[str]) -> str:
    """A name for the compiled library: the same only for the same source, compiler, options and CPU."""
    programs = [Path(found).resolve().stat() for word in command if (found := shutil.which(word))]
    about = (command, *((state.st_size, state.st_mtime_ns) for state in programs), _processor())
    sources = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
    return _digest(b"".join(source.read_bytes() for source in sources) + repr(about).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _processor() -> str:
    """The CPU's model and instruction sets, as the system reports them."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            of_first = list(takewhile(str.strip, lines))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "".join(line for line in of_first if line.startswith(("flags", "Features", "model name")))
