"""Pages with measured figures: Markdown between `<!-- NAME -->` and `<!-- end -->`, and pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECTION = re.compile(r"(<!-- ([a-z][a-z0-9-]*) -->\n).*?(<!-- end -->)", re.DOTALL)


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(*cells: str) -> list[str]:
    """The first two lines of a table."""
    return [row(*cells), "|---" * len(cells) + "|"]


def filled(page: Path, rendered: Callable[[str], str]) -> str:
    """The text of a page with each section NAME as `rendered(NAME)`."""
    text, sections = SECTION.subn(
        lambda found: f"{found[1]}{rendered(found[2])}{found[3]}", page.read_text(encoding="utf-8")
    )
    if not sections:
        raise SystemExit(f"{page}: no <!-- NAME --> and <!-- end --> lines")
    return text


def fill(page: Path, rendered: Callable[[str], str]) -> None:
    """Write each section of a page anew."""
    page.write_text(filled(page, rendered), encoding="utf-8")


@contextmanager
def picture(path: Path, **options: Any) -> Iterator[Any]:
    """Axes as `plt.subplots` makes them, saved as SVG: the same figures give the same picture, byte for byte."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    with plt.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"svg.hashsalt": "seq2seq", "svg.fonttype": "none"})
        figure, axes = plt.subplots(layout="constrained", **options)
        yield axes
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
