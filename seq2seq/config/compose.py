"""From Hydra's composition to a checked `Config`: strict, with the nearest known name for a misspelt one."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seq2seq.config.schema import KINDS, Config
from seq2seq.support.errors import UserError, first_line, nearest

PACKAGE = Path(__file__).resolve().parent.parent
COMPOSING = (HydraException, ValueError)
"""What Hydra raises while it composes; `explained` turns it into a message."""
ADDED = ("recipe", "ablation")
"""The groups without a default, which are added with `+`."""
SHARED = ("norm", "dropout")
"""Keys of `model` that both sides take over."""
DEEPEST = 20
"""The most levels of a stored configuration; more cost the YAML reader time quadratic in the depth, then its stack."""
_OPENING = (
    *(yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken),
    *(yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken),
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


def conf_dir() -> Path:
    """The directory of Hydra groups, absolute: the wheel's, else the checkout's."""
    for place in (PACKAGE / "conf", PACKAGE.parent / "conf"):
        if (place / "config.yaml").is_file():
            return place
    raise UserError(f"no conf/ in {PACKAGE} or beside it; install the wheel or the checkout again")


def options_of(group: str) -> list[str]:
    """The names in a config group such as `recipe` or `model/encoder`."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def compose(overrides: Sequence[str]) -> Config:
    """Compose `conf/config.yaml` with Hydra overrides (`+recipe=quickstart`, `seed=2`), outside a Hydra application.

    Raises UserError for an unknown key, group, recipe, type or range.
    """
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return checked(hydra_compose("config", overrides=list(overrides)))
    except COMPOSING as error:
        raise explained(error, overrides) from None


def checked(composed: DictConfig) -> Config:
    """Merge a composed configuration strictly into the schema.

    Raises UserError for an unknown key, a missing value, a wrong type or a value out of range.
    """
    try:
        given = cast(dict[str, Any], OmegaConf.to_container(composed))
        _refuse_unknown("", given, asdict(Config()))
        if OmegaConf.is_missing(composed, "run_dir"):
            raise UserError(
                f"run_dir is not set; type +recipe=NAME (one of {', '.join(options_of('recipe'))}) or run_dir=DIR"
            )
        return from_plain(cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True)))
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from None


def from_plain(plain: dict[str, Any]) -> Config:
    """Build a `Config` from plain dictionaries, such as a model directory's config.yaml. Raises UserError."""
    _refuse_unknown("", plain, asdict(Config()))
    schema = OmegaConf.structured(Config)
    for side in ("encoder", "decoder"):
        settings = _keys_of(f"model.{side}", _keys_of("model", plain.get("model")).get(side))
        kind = settings.get("kind", "transformer")
        if not isinstance(kind, str) or kind not in KINDS:
            raise UserError(f"model.{side}.kind={kind}: no such kind{nearest(str(kind), KINDS)}")
        known = asdict(KINDS[kind]())
        if others := sorted((settings.keys() - known.keys()) & _keys_of_kinds()):
            raise _not_composed(f"model.{side}.{others[0]}")
        _refuse_unknown(f"model.{side}.", settings, known)
        schema.model[side] = OmegaConf.structured(KINDS[kind])
    try:
        config = OmegaConf.to_object(OmegaConf.merge(schema, plain))
    except OmegaConfBaseException as error:
        key, reason = getattr(error, "full_key", None), first_line(error)
        raise UserError(f"{key}: {reason}" if key else reason) from None
    assert isinstance(config, Config)
    return config


def load(path: Path) -> Config:
    """Read a resolved configuration; nothing in it is interpolated or instantiated. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
        depth = 0
        for token in yaml.scan(text):
            if isinstance(token, yaml.AliasToken):
                raise UserError(f"{path}: holds an alias (*name); a stored configuration must be written out")
            if isinstance(token, yaml.ScalarToken) and "${" in token.value:
                raise UserError(f"{path}: holds an interpolation (${{…}}); a stored configuration must be resolved")
            depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
            if depth > DEEPEST:
                raise UserError(f"{path}: nested more than {DEEPEST} deep; no configuration is")
        plain = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as a configuration: {' '.join(str(error).split())}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path}: not a configuration")
    try:
        return from_plain(plain)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `load` reads back."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """The dotted keys in which two plain configurations differ, each with its old and its new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [
            found for name in names for found in differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if old == new else [(key, old, new)]


def to_type(settings: dict[str, Any]) -> str:
    """What to type on the command line so that these keys have these values.

    An encoder or decoder of another kind is chosen first; its keys, which that kind may not have, are left out. What is
    the same on both sides is typed once, where the model has a key for both.
    """
    settings = dict(settings)
    for name in SHARED:
        sides_of = [f"model.{side}.{name}" for side in ("encoder", "decoder")]
        values = [settings.get(key) for key in sides_of]
        if values[0] is not None and values[0] == values[1]:
            settings = {key: value for key, value in settings.items() if key not in sides_of}
            settings[f"model.{name}"] = values[0]
    kinds = {key: kind for key, kind in settings.items() if key in ("model.encoder.kind", "model.decoder.kind")}
    sides = tuple(key.removesuffix("kind") for key in kinds)
    others = {key: value for key, value in settings.items() if not key.startswith(sides)}
    chosen = {f"model/{key.split('.')[1]}": kind for key, kind in kinds.items()} | others
    return " ".join(shlex.quote(f"{key}={_spelt(key, value)}") for key, value in chosen.items())


def _spelt(key: str, value: Any) -> str:
    """A value as an override of Hydra's spells it."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    with contextlib.suppress(HydraException):
        if OverridesParser.create().parse_override(f"{key}={value}").value() == value:
            return value
    # Hydra reads backslashes before a quote in pairs, others as they are.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), value) + "'"


def explained(error: Exception, overrides: Sequence[str]) -> UserError:
    """The error for `overrides` that Hydra refused, with what the user most likely meant."""
    reason = " ".join(str(error).partition("\nSee https:")[0].partition("\n\n")[0].split())
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return UserError(f"{error.override}: not a setting; type key=value")
    if isinstance(error, OverrideParseException):
        return UserError(f"{error.override}: {reason}; a value with special characters needs quotes: \"key='value'\"")
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        key = key.partition("@")[0]
        if (conf_dir() / key).is_dir():
            unknown = [name for name in value.strip("[]").split(",") if name not in options_of(key)]
            if unknown:
                return UserError(f"{key}={value}: no such {key}{nearest(unknown[0], options_of(key))}")
            if override.startswith("+") != (key in ADDED):
                return UserError(f"{override}: type {'+' if key in ADDED else ''}{key}={value}")
        elif key not in known_keys() and re.fullmatch(r"(?!hydra[./])[\w./]+", key):
            return unknown_key(key)
        elif reason.startswith(f"Could not override '{key}'."):
            return _not_composed(key)
    return UserError(reason)


def _not_composed(key: str) -> UserError:
    """The error for a key of the schema that the chosen groups do not have."""
    group, _, name = key.rpartition(".")
    if group in ("model.encoder", "model.decoder"):
        kinds = " and ".join(kind for kind, settings in KINDS.items() if name in asdict(settings()))
        choices = f"{group.replace('.', '/')}={'|'.join(KINDS)}"
        return UserError(f"{key}: not for the chosen kind, but for {kinds}; a kind is chosen by {choices}")
    return UserError(f"{key}: in no file of {conf_dir()}, as every key of the schema must be; add it there")


def unknown_key(key: str) -> UserError:
    """The error for a key that the schema does not have, with those of its name, else the nearest in its group."""
    group, _, name = key.rpartition(".")
    siblings = [known.rpartition(".")[2] for known in known_keys() if known.rpartition(".")[0] == group]
    named = [known for known in known_keys() if known.rpartition(".")[2] == name]
    below = [known for known in named if known.startswith(f"{group}.")]
    namesakes = below or [known for known in named if known.endswith(f".{key}")] or named
    if group and siblings and not namesakes:
        return UserError(f"{key}: no such key in {group}{nearest(name, siblings)}")
    if namesakes:
        return UserError(f"{key}: no such key; did you mean {' or '.join(namesakes)}?")
    return UserError(f"{key}: no such key{nearest(key, [*known_keys(), *_groups()])}")


def known_keys() -> list[str]:
    """Every key of the schema, dotted, including those of all kinds of encoder and decoder."""
    keys = list(_dotted(asdict(Config()), ""))
    keys += [f"model.{side}.{key}" for side in ("encoder", "decoder") for key in _keys_of_kinds()]
    return sorted(set(keys))


def _keys_of_kinds() -> set[str]:
    return {key for kind in KINDS.values() for key in asdict(kind())}


def _groups() -> list[str]:
    return [str(path.relative_to(conf_dir())) for path in conf_dir().rglob("*") if path.is_dir()]


def _dotted(plain: dict[str, Any], prefix: str) -> Iterable[str]:
    for key, value in plain.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def _refuse_unknown(prefix: str, plain: dict[str, Any], known: dict[str, Any]) -> None:
    for key, value in plain.items():
        if key not in known and prefix:
            raise UserError(f"{prefix}{key}: no such key in {prefix[:-1]}{nearest(str(key), known)}")
        if key not in known:
            raise unknown_key(str(key))
        if isinstance(known[key], dict) and f"{prefix}{key}" not in ("model.encoder", "model.decoder"):
            _refuse_unknown(f"{prefix}{key}.", _keys_of(f"{prefix}{key}", value), known[key])


def _keys_of(key: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{key}={value}: must hold keys, such as {key}.NAME=VALUE")
    return value or {}
