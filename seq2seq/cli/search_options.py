"""The search settings as command-line options: one for each key of `SearchConfig`, with its help."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from seq2seq.config.search import SAMPLING_ALONE, SearchConfig
from seq2seq.support.errors import UserError


def add_search_options(options: argparse.ArgumentParser) -> None:
    """Add `--beam-size`, `--length-penalty`, `--sampling` with `--no-sampling` and so on; one not given is None."""
    group = options.add_argument_group(
        "search", "Where nothing is given, the model's own settings (config.yaml) hold; --n-best is 1."
    )
    kinds = get_type_hints(SearchConfig)
    for key in fields(SearchConfig):
        flag, text = f"--{key.name.replace('_', '-')}", key.metadata["help"]
        kind = next(iter(get_args(kinds[key.name])), kinds[key.name])
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            group.add_argument(flag, type=kind, metavar={int: "N", float: "X"}.get(kind, "NAME"), help=text)


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given. One hypothesis per sentence is the default, whatever the model's own setting.

    `--no-sampling` also turns off the model's own sampling settings.
    """
    values = {key.name: getattr(arguments, key.name) for key in fields(SearchConfig)}
    given = {name: value for name, value in values.items() if value is not None}
    return {"n_best": 1, **(SAMPLING_ALONE if given.get("sampling") is False else {}), **given}


@contextlib.contextmanager
def settings_named_as_options() -> Iterator[None]:
    """Within it an error about the settings of search names them as options: `--top-p 2.0` for `search.top_p=2.0`."""
    try:
        yield
    except UserError as error:
        message = str(error)
        # One about a model's own settings begins with their file.
        if message.startswith("search."):
            message = re.sub(r"search\.(\w+)(=true\b|=false\b)?(=)?", _as_option, message)
        raise UserError(message) from None


def _as_option(setting: re.Match[str]) -> str:
    no = "no-" if setting[2] == "=false" else ""
    return f"--{no}{setting[1].replace('_', '-')}{' ' if setting[3] else ''}"
