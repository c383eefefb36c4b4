"""Where measured figures come from, and where they go: JSON on stdout and in a file."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any


def origin(*packages: str) -> dict[str, Any]:
    """Where figures come from: date, machine, command, and the versions of these packages where installed."""
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "command": f"python -m tools.{Path(sys.argv[0]).stem} {shlex.join(sys.argv[1:])}".strip(),
        "versions": {name: version(name) for name in packages if importlib.util.find_spec(name)},
    }


def machine() -> str:
    """The CPU and its number of cores, and the number of threads where the environment limits it."""
    info = dict(re.findall(r"^(model name|cpu family)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    threads = os.environ.get("OMP_NUM_THREADS")
    limit = f", {threads} thread{'s' if threads != '1' else ''}" if threads else ""
    return f"{os.cpu_count()} cores, {info.get('model name', 'unknown')} (family {info.get('cpu family', '?')}){limit}"


def give_out(figures: dict[str, Any], output: Path | None) -> None:
    """Print figures as JSON on stdout, and also write them to `output` if given."""
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    print(text)
    if output:
        output.write_text(text + "\n", encoding="utf-8")
