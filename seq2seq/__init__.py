"""seq2seq: train, run and score encoder-decoder translation models after "Attention Is All You Need" (2017)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seq2seq.translate.translator import Translator

try:
    __version__ = version("seq2seq")
except PackageNotFoundError:
    __version__ = "0+unknown"

__all__ = ["Translator", "__version__"]


def __getattr__(name: str) -> Any:
    # Importing the translator imports torch (over a second): `--help` and `--version` should not wait for it.
    if name == "Translator":
        from seq2seq.translate.translator import Translator

        return Translator
    raise AttributeError(f"module 'seq2seq' has no attribute {name!r}")
