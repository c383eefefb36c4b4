"""That Triton compiles our kernels for a GPU, which its interpreter, as the other tests run it, does not show."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed here")


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "kibibytes"), [(90, 227), (80, 163), (86, 99)])
def test_all_kernels_are_compiled_and_fit_into_a_multiprocessor(
    capability: int, kibibytes: int, tmp_path: Path
) -> None:
    from seq2seq.ops import gpu_kernels, gpu_search_kernels

    found = subprocess.run(
        [sys.executable, "-m", "tests.ops.compile_kernels", str(capability)],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    compiled = [line.split() for line in found.stdout.splitlines()]
    assert all(int(size) <= kibibytes << 10 for _, size in compiled)
    source = "".join(map(inspect.getsource, (gpu_kernels, gpu_search_kernels)))
    functions = re.findall(r"^def (\w+)\(", source, re.MULTILINE)
    # The others are called by these.
    launched = {name for name in functions if len(re.findall(rf"\b{name}\(", source)) == 1}
    assert {name for name, _ in compiled} == launched
