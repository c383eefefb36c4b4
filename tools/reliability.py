"""Put the figures of docs/reliability/*.json, which the tools of tests/soak wrote, into docs/reliability.md.

    python -m tools.reliability

The text between `<!-- NAME -->` and `<!-- end -->` is rendered from docs/reliability/NAME.json; a test checks it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.pages import fill

ROOT = Path(__file__).resolve().parent.parent
PAGE, FOLDER = ROOT / "docs" / "reliability.md", ROOT / "docs" / "reliability"


def kills(figures: dict[str, Any]) -> str:
    """How often trainings were killed, and what came of it."""
    found = figures["kills"]
    return (
        f"{found['of one rank'] + found['of two ranks']} kills, {found['of one rank']} in trainings of one rank and "
        f"{found['of two ranks']} of two; {found['inside a save']} inside a save, of which "
        f"{found['of them with a torn directory left']} left a torn directory behind. "
        f"All {figures['trainings_bit_equal']} trainings of {figures['updates_of_each']} updates ended byte by byte as "
        "the unbroken one; at most "
        f"{figures['most_updates_lost']} updates were lost to a kill, with a save every {figures['save_every']}."
    )


def stops(figures: dict[str, Any]) -> str:
    """How soon trainings stopped when they were told to, and the restart by torchrun."""
    told = figures["signals"]
    return (
        f"{told['stops']} signals: at most {told['most_updates_after_the_signal']} updates were made after one, and "
        f"the last of them saved; the end came within {told['most_seconds_to_the_end']:.1f} seconds. torchrun's "
        f"{figures['torchrun']['restarts']} restarts after a killed rank, and {figures['two_torchruns']['restarts']} "
        "by two torchruns together, led to the bytes of the unbroken training."
    )


def memory(figures: dict[str, Any]) -> str:
    """The memory of a long training."""
    samples = figures["resident_MiB"]
    first, *_, last = samples.items()
    middle = list(samples.items())[len(samples) // 2 - 1]
    shown = ", ".join(f"{value:,.0f} MiB at update {int(step):,}" for step, value in (first, middle, last))
    return (
        f"{figures['steps']:,} updates of {figures['shapes']:,} shapes: {shown}; "
        f"{figures['grown_in_the_last_half_MiB']:+.1f} MiB in the last half."
    )


def translating(figures: dict[str, Any]) -> str:
    """The memory of a long translation."""
    return (
        f"{figures['lines']:,} lines: {figures['mib_from_20_to_40_percent']:,.1f} MiB from 20 to 40 % of them, "
        f"{figures['mib_from_75_to_100_percent']:,.1f} MiB in the last quarter, {figures['mib_most']:,.1f} at most "
        "(resident, added up over the command and its workers)."
    )


def rendered(name: str) -> str:
    """The Markdown of docs/reliability/NAME.json."""
    figures = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    text = {"kills": kills, "stops": stops, "memory": memory, "translating": translating}[name](figures)
    return f"{text}\n\n`{figures['command']}`, {figures['date']}; {figures['machine']}.\n"


if __name__ == "__main__":
    fill(PAGE, rendered)
