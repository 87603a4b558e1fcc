"""A `RunConfig` from a TOML file and a few `--set key=value`.

Values are checked when the file is read, before anything is written; a wrong one gives one sentence with its key.
"""

import copy
import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lfs.budget import Budget
from lfs.config import (
    ExecutorConfig,
    FinalsConfig,
    FixedListConfig,
    NamedLoss,
    NumericsConfig,
    PopulationConfig,
    RandomConfig,
    ReinforceConfig,
    ReleasedConfig,
    RunConfig,
    SamplerConfig,
    SelectionConfig,
    TrackingConfig,
)
from lfs.errors import UserError
from lfs.methods import METHODS
from lfs.samplers import Objective
from lfs.tracker_uri import anchored
from search_space.frozen import FrozenModel
from search_space.spaces import SPACES
from trainers.data import DataConfig
from trainers.recipe import Augmentation, Recipe, Sampling


class ConfigError(UserError):
    """The configuration cannot be used; the message is one sentence with the key, the value and what is right."""


def load_config(
    path: Path | None, overrides: Sequence[str] = (), *, data_path: Path | None = None, method: str | None = None
) -> RunConfig:
    """The config in a TOML file (None: all defaults), with `key=value` overrides and a data path on top.

    A named `method` lies beneath the file. `data.path` in the file resolves against the file's folder. Raises
    `ConfigError`.
    """
    values = read_values(path, overrides, data_path=data_path, method=method)
    _fill_discriminators(values)
    return validated(values)


def read_values(
    path: Path | None, overrides: Sequence[str] = (), *, data_path: Path | None = None, method: str | None = None
) -> dict[str, Any]:
    """What `load_config` validates, before it does: tables of plain values, their paths absolute."""
    values = {} if path is None else _read_toml(path)
    if method is not None:
        _lay_beneath(values, method)
    if path is not None and isinstance(values.get("data"), dict) and isinstance(values["data"].get("path"), str):
        values["data"]["path"] = str(path.parent / Path(values["data"]["path"]).expanduser())
    _anchor(values, Path.cwd() if path is None else path.absolute().parent)
    for override in overrides:
        _set(values, override)
    _anchor(values, Path.cwd())
    if data_path is not None:
        _set(values, f"data.path={json.dumps(str(data_path), ensure_ascii=False)}")
    data = values.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), str):
        data["path"] = str(Path(data["path"]).expanduser().absolute())
    return values


def _lay_beneath(values: dict[str, Any], method: str) -> None:
    """Fill the tables of a named method where the config does not say otherwise."""
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(METHODS)}"
        raise ConfigError(f"unknown method '{method}'; {hint}")
    for table, settings in METHODS[method].items():
        own = values.setdefault(table, {})
        if isinstance(own, dict):
            values[table] = {**copy.deepcopy(dict(settings)), **own}


def overridden(values: Mapping[str, Any], overrides: Sequence[str]) -> RunConfig:
    """A stored config with `key=value` overrides. Raises `ConfigError`."""
    return validated(laid_under(values, overrides))


def laid_under(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Stored values with `key=value` overrides, not validated. Raises `ConfigError`."""
    changed = copy.deepcopy(dict(values))
    for override in overrides:
        _set(changed, override)
    _anchor(changed, Path.cwd())
    return changed


def validated(values: Mapping[str, Any]) -> RunConfig:
    """The config of these values. Raises `ConfigError`."""
    try:
        # JSON's strict mode takes a list for a tuple and 1 for 1.0, but neither "1" nor true for 1
        return RunConfig.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(sentence(error, values)) from None


def _anchor(values: Mapping[str, Any], folder: Path) -> None:
    """Make the path of a tracking database absolute."""
    tracking = values.get("tracking")
    if isinstance(tracking, dict) and isinstance(tracking.get("uri"), str):
        tracking["uri"] = anchored(tracking["uri"], folder)


def _fill_discriminators(values: dict[str, Any]) -> None:
    """A table that sets parameters only means the default kind."""
    for table, key, default in (("space", "kind", "combined_margin"), ("search", "method", "reinforce")):
        if isinstance(values.get(table), dict):
            values[table].setdefault(key, default)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the config {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config {path} is not valid TOML: {error}") from None


def _set(values: dict[str, Any], override: str) -> None:
    """Put one `a.b=value` in its place. The value is read as TOML, as a bare word if it is none."""
    key, equals, text = override.partition("=")
    *tables, last = parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set needs key=value, such as search.batch=8, but got '{override}'")
    for table in tables:
        inner = values.setdefault(table, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: '{table}' is a value, not a table")
        values = inner
    try:
        values[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[last] = text


_MUST_BE = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "too_long": "a list of {max_length} at most",
    "too_short": "a list of {min_length} or more",
    "union_tag_invalid": "one of {expected_tags}",
    "bool": "true or false",
    "dict": "a table",
    "finite": "a finite number",
    "float": "a number",
    "int": "a whole number",
    "mapping": "a table",
    "model": "a table",
    "path": "a text",
    "string": "a text",
    "tuple": "a list",
}
"""What is right, by pydantic's error type or its first word."""

_TABLES: Mapping[str, type[FrozenModel]] = {
    "": RunConfig,
    "baselines": NamedLoss,
    "budget": Budget,
    "baselines.recipe": Recipe,
    "data": DataConfig,
    "executor": ExecutorConfig,
    "finals": FinalsConfig,
    "numerics": NumericsConfig,
    "recipe": Recipe,
    "recipe.augmentation": Augmentation,
    "recipe.sampling": Sampling,
    "search.fixed_list": FixedListConfig,
    "search.fixed_list.losses": NamedLoss,
    "search.fixed_list.losses.recipe": Recipe,
    "search.random": RandomConfig,
    "search.population": PopulationConfig,
    "search.reinforce": ReinforceConfig,
    "search.released": ReleasedConfig,
    "search.sampler": SamplerConfig,
    "search.selection": SelectionConfig,
    "search.selection.loss": NamedLoss,
    "search.selection.loss.recipe": Recipe,
    "search.sampler.objectives": Objective,
    "tracking": TrackingConfig,
    **{f"space.{kind}": space for kind, space in SPACES.items()},
}
"""The tables of a config by pydantic's location of them."""


def sentence(error: ValidationError, values: object, tables: Mapping[str, type[FrozenModel]] = _TABLES) -> str:
    """The first complaint of a validation as one sentence: the key, what is right, and what it was.

    `tables` are those of the config by pydantic's location of them.
    """
    errors = error.errors()
    first = next((each for each in errors if each["type"] == "finite_number"), errors[0])  # NaN is no 'text' either
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    keys, rest, inside = _split(first["loc"], values)
    if kind == "extra_forbidden":
        return _unknown_key(first["loc"], keys, tables)
    if kind == "missing" and isinstance(inside, Mapping):
        return f"the config lacks '{'.'.join([*keys, *map(str, rest)])}'"
    if kind == "value_error":
        said = "but got" in str(context["error"]) or isinstance(value, Mapping | FrozenModel)
        where = f"{'.'.join(keys)}: " if keys else ""  # two tables that do not fit together
        return f"{where}{context['error']}{'' if said else _but_got(value)}"
    if kind == "union_tag_invalid":
        keys, value = [*keys, context["discriminator"].strip("'")], context["tag"]
    right = _what_is_right(kind, context, first["msg"])
    if rest and isinstance(inside, Mapping):  # a part of what this table makes: name the key that gave the value
        place = next(_places(inside, value), None)
        keys, right = (keys + place, right) if place else (keys, f"{rest[-1]} {right}")
    elif rest and kind != "finite_number" and not isinstance(inside, str):  # a text with several numbers is a list
        right = "must be a longer list" if kind == "missing" else "must be a single value"
    return f"{'.'.join(keys)}{': ' if keys else ''}{right}{_but_got(value)}"


def _split(location: Sequence[int | str], values: object) -> tuple[list[str], Sequence[int | str], object]:
    """The parts of a location that are keys of the file, those behind them, and what the file has at these keys."""
    keys: list[str] = []
    for index, part in enumerate(location):
        inner = dict(enumerate(values)) if isinstance(values, list | tuple) else values
        if not isinstance(inner, Mapping):
            return keys, location[index:], values
        tells_apart = part in (inner.get("kind"), inner.get("method"))  # members of a union
        goes_on = index + 1 < len(location) and not isinstance(inner.get(part), Mapping | list | tuple)
        if tells_apart and (part not in inner or goes_on):  # 'sampler' is a method and a key of it
            continue
        if part not in inner:
            return keys, location[index:], values
        keys.append(str(part))
        values = inner[part]
    return keys, (), values


def _unknown_key(location: Sequence[int | str], keys: Sequence[str], tables: Mapping[str, type[FrozenModel]]) -> str:
    *table, key = [part for part in location if isinstance(part, str)]
    known = list(tables[".".join(table)].model_fields)
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
    return f"unknown key '{'.'.join(keys)}' in the config; {hint}"


def _what_is_right(kind: str, context: Mapping[str, Any], message: str) -> str:
    right = _MUST_BE.get(kind) or _MUST_BE.get(kind.split("_")[0])
    if right is None:
        return f"{message[:1].lower()}{message[1:]}"
    limits = {name: f"{limit:.6g}" if isinstance(limit, float) else limit for name, limit in context.items()}
    return f"must be {right.format(**limits)}"


def _places(table: Mapping[str, Any], wanted: object) -> Iterator[list[str]]:
    """The keys that lead to a value, or to a list with it."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from ([key, *place] for place in _places(value, wanted))
        elif value == wanted or (isinstance(value, list | tuple) and wanted in value):
            yield [key]


def _but_got(value: object) -> str:
    if isinstance(value, Mapping):
        return ", but got a table"
    shown = str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)
    return f", but got {shown}"
