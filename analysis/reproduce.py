"""The report's last section: what is needed to run the same search again."""

import json
from collections.abc import Mapping

import pandas as pd

from analysis import page
from analysis.ledger import Ledger
from analysis.page import Section
from lfs.journal import Started


def reproduce_section(ledger: Ledger, *, journal_digest: str) -> Section:
    """Config, command, seeds, data, versions, numerics, and the digest of the journal that all this was read from."""
    started = ledger.started
    identity = page.paragraph(f"SHA-256 of the journal: {journal_digest}")
    if started is None:
        return Section(key="reproduce", title="Reproduce", pieces=(identity,))
    seeds = sorted({trial.seed for trial in ledger.trials.values()})
    shown_seeds = ", ".join(map(str, seeds[:20])) + (f" and {len(seeds) - 20} more" if len(seeds) > 20 else "")
    pieces = (
        identity,
        page.paragraph(f"Seeds of the trials: {shown_seeds or 'none yet'}."),
        page.paragraph("Save the configuration below as run.toml, then:"),
        page.code("lossearch search run.toml"),
        page.heading("Configuration"),
        page.code(as_toml(_to_repeat(started))),
        page.heading("Data"),
        page.table(_pairs(started.data)),
        page.heading("Versions"),
        page.table(_pairs(started.versions)),
    )
    return Section(key="reproduce", title="Reproduce", pieces=pieces)


def _to_repeat(started: Started) -> dict[str, object]:
    """The config with the numerics that were used, and without `tracking`, whose address may hold a password."""
    numerics = {name: value for name, value in started.numerics.items() if name != "threads"}
    kept = {name: value for name, value in started.config.items() if name != "tracking"}
    return {**kept, "numerics": numerics}


def _pairs(values: Mapping[str, object]) -> pd.DataFrame:
    return pd.DataFrame([{"name": name, "value": page.text(value)} for name, value in values.items()])


def as_toml(config: Mapping[str, object]) -> str:
    """A nested config as TOML; keys without a value are left out, as TOML has no null.

    >>> print(as_toml({"search": {"method": "random"}, "seed": 0}), end="")
    seed = 0
    <BLANKLINE>
    [search]
    method = "random"
    """
    return "\n".join(_lines(config, ())).strip() + "\n"


def _lines(config: Mapping[str, object], path: tuple[str, ...]) -> list[str]:
    values = {key: value for key, value in config.items() if value is not None and not _tables(value)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in values.items()]
    for key, value in config.items():
        inner = (*path, key)
        name = ".".join(map(_key, inner))
        opening = f"[{name}]" if isinstance(value, dict) else f"[[{name}]]"
        for table in _tables(value):
            lines += ["", opening, *_lines(table, inner)]
    return lines


def _tables(value: object) -> list[dict[str, object]]:
    """The tables that a value is written as: one for a mapping, one each for a list of mappings, else none."""
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list | tuple) and all(isinstance(item, dict) for item in value):
        return list(value)
    return []


def _key(key: str) -> str:
    is_bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if is_bare else json.dumps(key, ensure_ascii=False)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value if item is not None) + "]"
    return json.dumps(value, ensure_ascii=False)
