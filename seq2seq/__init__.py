"""seq2seq: train, run and score encoder-decoder translation models after "Attention Is All You Need" (2017)."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seq2seq.support.errors import RunError, UserError
    from seq2seq.translate.glossary import Glossary
    from seq2seq.translate.scoring import Scorer
    from seq2seq.translate.translator import Translator

try:
    __version__ = version("seq2seq")
except PackageNotFoundError:
    __version__ = "0+unknown"

__all__ = ["Glossary", "RunError", "Scorer", "Translator", "UserError", "__version__"]

_PLACES = {
    "Glossary": "seq2seq.translate.glossary",
    "RunError": "seq2seq.support.errors",
    "Scorer": "seq2seq.translate.scoring",
    "Translator": "seq2seq.translate.translator",
    "UserError": "seq2seq.support.errors",
}


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]


def __getattr__(name: str) -> Any:
    # Importing the translator imports torch (over a second): `--help` and `--version` should not wait for it.
    if name not in _PLACES:
        raise AttributeError(f"module 'seq2seq' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
