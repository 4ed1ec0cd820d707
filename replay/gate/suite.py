"""SUITE.toml: the scenarios that the gate replays, and what each of them guards.

    baselines = "baselines"                  # folder of the accepted results, beside the file; this is the default

    [[scenario]]
    name = "outage"
    guards = "One provider fails for twenty minutes: its breakers open, and the window demotes it."
    ledger = "ledgers/outage"                # a slice's folder, a mirror (.duckdb), or a file with `source`
    settings = ["production-now"]            # presets or TOML files; this is the default
    since = "2026-03-03T12:00:00Z"           # optional, as is until; else those a slice was cut for
    policy = "balanced"                      # optional: a name or file; else each call's recorded one

    [[scenario.allow]]                       # optional: a difference that is not held against a change
    calls = [812]                            # in these calls, in every column; or columns = ["margin"]; or both
    reason = "Two peers of one price: their order is the provider's."

Paths are relative to the file. Nothing here imports more than the core, so that a test collector stays light.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replay import settings as settings_room
from replay.core import AdmissionError, Policy, Schema, admit, load_policy
from replay.core.library import SHIPPED_FIELDS, SHIPPED_POLICIES, read_json
from replay.durations import instant_ms, iso
from replay.errors import ReplayError
from replay.settings import PRESETS, Settings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Allowed:
    """Differences that a scenario puts up with: in these columns (none: all) of these calls (none: all)."""

    reason: str
    columns: tuple[str, ...] = ()
    calls: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """One ledger and how it is replayed. `source` is the mapping of a file that is imported when it is checked.

    `absent` says why the ledger may be missing (data that cannot be committed); None where it has to be there.
    """

    name: str
    guards: str
    ledger: Path
    settings: tuple[Settings, ...]
    baseline: Path
    source: str | None = None
    policy: Policy | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    allowed: tuple[Allowed, ...] = ()
    absent: str | None = None


@dataclass(frozen=True)
class Suite:
    """The scenarios of one file, in its order."""

    path: Path
    scenarios: tuple[Scenario, ...]

    def only(self, names: list[str]) -> Suite:
        """Return the suite with the named scenarios alone; no names: all of them."""
        known = [one.name for one in self.scenarios]
        for name in names:
            if name not in known:
                raise ReplayError(f"{self.path} has no scenario {name!r}; it has {', '.join(known)}: name one of these")
        return Suite(self.path, tuple(one for one in self.scenarios if not names or one.name in names))


def read_suite(path: str | Path) -> Suite:
    """Read a suite; raises ReplayError, with what was expected, for anything it does not know."""
    file = Path(path)
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReplayError(f"there is no suite {file}; expected a SUITE.toml that lists scenarios") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ReplayError(f"{file} cannot be read as TOML ({error}); correct it") from error
    table = _Table(data, str(file))
    folder = file.parent / table.text("baselines", "baselines")
    entries = table.tables("scenario")
    table.done()
    if not entries:
        raise ReplayError(f"{file} lists no scenario; expected at least one [[scenario]] with name, guards and ledger")
    scenarios = tuple(_scenario(entry, file.parent, folder) for entry in entries)
    names = [one.name for one in scenarios]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ReplayError(f"{file} lists the scenario {twice!r} more than once; give each its own name")
    return Suite(file, scenarios)


def _scenario(table: _Table, beside: Path, baselines: Path) -> Scenario:
    name = table.text("name")
    if not _NAME.fullmatch(name):
        raise ReplayError(f"{table.where}: the name {name!r} is a folder's too; expected letters, digits, - and _")
    table.where = f"{table.where} {name!r}"
    ledger = beside / table.text("ledger")
    cut_since, cut_until = _cut_for(ledger)
    since, until = table.instant("since", cut_since), table.instant("until", cut_until)
    if since is not None and until is not None and until <= since:
        raise ReplayError(f"{table.where} ends at {iso(until)}, not after its start {iso(since)}; swap the two")
    policy, declared = table.text("policy", ""), table.text("declared", "")
    scenario = Scenario(
        name=name,
        guards=table.text("guards"),
        ledger=ledger,
        settings=_settings(table, beside),
        baseline=baselines / name,
        source=_mapping(table.text("source", ""), beside),
        policy=_policy(policy, beside / declared if declared else None, beside, table.where) if policy else None,
        since_ms=since,
        until_ms=until,
        allowed=tuple(_allowed(entry) for entry in table.tables("allow")),
        absent=table.text("absent", "") or None,
    )
    table.done()
    return scenario


@contextmanager
def _said_of(where: str) -> Iterator[None]:
    """Say of what in the suite an error is said."""
    try:
        yield
    except ReplayError as error:
        raise type(error)(f"{where}: {error}") from error


def _cut_for(ledger: Path) -> tuple[int | None, int | None]:
    """Return the span that a slice was cut for: its warm-up is there to rest on, not to be decided again."""
    try:
        said = json.loads((ledger / "manifest.json").read_text(encoding="utf-8"))["slice"]
        since_ms, until_ms = said["since_ms"], said["until_ms"]
    except (OSError, ValueError, TypeError, KeyError):  # no slice; what is wrong with one, reading it says
        return None, None
    return (since_ms, until_ms) if type(since_ms) is type(until_ms) is int else (None, None)


def _settings(table: _Table, beside: Path) -> tuple[Settings, ...]:
    names = table.texts("settings") or ("production-now",)
    with _said_of(table.where):
        read = tuple(settings_room.load(name if name in PRESETS else str(beside / name)) for name in names)
    if len({one.name for one in read}) < len(read):
        raise ReplayError(f"{table.where} has two settings of one name; set name in the settings files")
    return read


def _mapping(name: str, beside: Path) -> str | None:
    file = beside / name
    return None if not name else str(file) if file.is_file() else name


def _policy(name: str, declared: Path | None, beside: Path, where: str) -> Policy:
    shipped = name in SHIPPED_POLICIES
    fields = dict(SHIPPED_FIELDS) if shipped else {}
    if declared is not None:
        fields |= read_json(declared, 'expected {"name": {"sort": "Num" or "Bool", "default": …}}')
    with _said_of(where):
        try:
            return admit(load_policy(name if shipped else beside / name), Schema.declare(fields))
        except AdmissionError as refused:
            raise ReplayError(f"the policy {name} is not admitted: {refused}; correct it") from refused


def _allowed(table: _Table) -> Allowed:
    allowed = Allowed(table.text("reason"), table.texts("columns"), table.whole_numbers("calls"))
    table.done()
    if not allowed.columns and not allowed.calls:
        raise ReplayError(f"{table.where} allows every difference; expected calls = […] or columns = […]: name them")
    return allowed


class _Table:
    """Takes known keys out of a TOML table and refuses what is left, so that a misspelt key is never ignored."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.left = dict(data)
        self.known: list[str] = []
        self.where = where

    def _take(self, key: str, default: Any) -> Any:
        self.known.append(key)
        return self.left.pop(key, default)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._take(key, default)
        if not isinstance(value, str) or not (value.strip() or default == value):
            given = "no" if value is None else f"{value!r} as"
            raise ReplayError(f'{self.where} has {given} {key}; expected a text: say {key} = "…"')
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        return self._several(key, str, "texts")

    def whole_numbers(self, key: str) -> tuple[int, ...]:
        return self._several(key, int, "whole numbers")

    def _several(self, key: str, kind: type, what: str) -> tuple[Any, ...]:
        value = self._take(key, [])
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise ReplayError(f"{self.where} has {value!r} as {key}; expected a list of {what}")
        return tuple(value)

    def instant(self, key: str, default: int | None) -> int | None:
        value = self._take(key, None)
        with _said_of(f"{self.where}, {key}"):
            return default if value is None else instant_ms(value)

    def tables(self, key: str) -> list[_Table]:
        value = self._take(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ReplayError(f"{self.where} has {value!r} as {key}; expected [[{key}]] tables")
        return [_Table(item, f"{self.where}, {key} {number}") for number, item in enumerate(value, start=1)]

    def done(self) -> None:
        if self.left:
            raise ReplayError(
                f"{self.where} has no key {min(self.left)!r}; it knows {', '.join(sorted(self.known))}: check the "
                "spelling"
            )
