"""The memory of seq2seq-translate over many lines: it must not grow after the first fifth of them.

    python -m tests.soak.translate_memory --output docs/reliability/translating.json

Ends with 1 when it grew by more than `ALLOWED`. Memory is what is resident in the command and in its workers, added up
(Rss of /proc, Linux alone). Pages that they share count in each: when one of them first writes to such a page it
gets a copy, at some time or other, which is no growth of what it needs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import threading
from datetime import date
from pathlib import Path
from typing import IO

from seq2seq.translate.lines import WINDOW
from tests.conftest import toy
from tools.origin import give_out, machine

MODEL = Path(__file__).parent.parent / "fixtures" / "models" / "format-1" / "transformer"
ALLOWED = 1.05
MIB = 1 << 20


def memory_of(process: int) -> int:
    """The bytes of a process and its children."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    found = Path(f"/proc/{process}/smaps_rollup").read_text().partition("\nRss:")[2].split()[0]
    return (int(found) << 10) + sum(memory_of(int(child)) for child in children)


def feed(stdin: IO[bytes], count: int) -> None:
    """Write so many lines, from none to a few hundred words long."""
    rng = random.Random(5)
    sentences = [source for source, _ in toy(5000, 6)]
    with stdin:
        for _ in range(count):
            repeats = rng.choices((0, 1, 2, 20), (1, 90, 8, 1))[0]
            stdin.write(f"{' '.join(rng.choices(sentences, k=repeats))}\n".encode())


def measure(lines: int, flags: list[str]) -> list[tuple[int, int]]:
    """(lines translated, bytes of memory), a hundred times."""
    command = [sys.executable, "-m", "seq2seq.cli.translate", "--model", str(MODEL), "--device", "cpu", *flags]
    samples = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        threading.Thread(target=feed, args=(process.stdin, lines), daemon=True).start()
        for done in range(1, lines + 1):
            assert process.stdout.readline(), "fewer lines out than in"
            # With the last window the command and its workers may be gone already.
            if done % (lines // 100) == 0 and done < lines - WINDOW:
                samples.append((done, memory_of(process.pid)))
        assert not process.stdout.read(), "more lines out than in"
    assert process.returncode == 0
    return samples


def main() -> None:
    """The script."""
    options = argparse.ArgumentParser()
    options.add_argument("--lines", type=int, default=100_000)
    options.add_argument("--output", type=Path)
    arguments, flags = options.parse_known_args()
    samples = measure(arguments.lines, flags)
    early, late = (
        statistics.median(size for done, size in samples if low <= done / arguments.lines < high)
        for low, high in ((0.2, 0.4), (0.75, 1.0))
    )
    result = {
        "command": f"python -m tests.soak.translate_memory --lines {arguments.lines} {' '.join(flags)}".strip(),
        "date": date.today().isoformat(),
        "machine": machine(),
        "lines": arguments.lines,
        "mib_from_20_to_40_percent": round(early / MIB, 1),
        "mib_from_75_to_100_percent": round(late / MIB, 1),
        "mib_most": round(max(size for _, size in samples) / MIB, 1),
        "growth": round(late / early - 1, 4),
        "mib": [[done, round(size / MIB, 1)] for done, size in samples[::5]],
    }
    give_out(result, arguments.output)
    sys.exit(late > ALLOWED * early)


if __name__ == "__main__":
    main()
