"""Mapping files: how the columns of any file become the columns of the ledgers.

A mapping is a TOML file. Its top level may hold `description`, `zone` (an IANA name: how times without an offset are
read) and `origin` (an ISO time with its offset: where relative seconds begin). Every other entry is a table named after
a target (`calls`, `route_observations`, … or `price_events`), with one entry per target column:

    [calls]
    model_family = "model"                                        # a source column, as it stands
    served_by    = { constant = "anthropic" }                      # the same for every row
    ts           = { column = "time", as = "iso", plus_seconds = "took_s" }
    status       = { column = "outcome", map = { ok = 200, failed = 500 } }

Keys of an entry: `column`, `constant` or `row_id = true` (the row's own identity, the same in every target: it links a
call to its attempt); `as`, one of `seconds`, `milliseconds`, `iso`, `relative_seconds` (instants), `s_to_ms`
(durations), `per_token` (USD per token → per million); `plus_seconds` (an instant moved by a column of seconds, where
there is one); `map` with an optional `default` (an empty text maps to null; without a default an unlisted value is
unreadable); `prefix` (put before a text); `null` (texts that mean "nothing"); `optional = true` (the column may be
absent). One file may feed several targets.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from replay.errors import ReplayError
from replay.ledger.importers import convert
from replay.ledger.importers.convert import Cell, filled, literal
from replay.ledger.importers.plan import MAPPINGS_PAGE, Plan, plain_cell, with_nearest
from replay.ledger.importers.targets import Column, Target, targets

_KEYS = ("column", "constant", "row_id", "as", "plus_seconds", "map", "default", "prefix", "null", "optional")
_INSTANTS = ("seconds", "milliseconds", "iso", "relative_seconds")
_CONVERSIONS = {**dict.fromkeys(_INSTANTS, ("s", "ms")), "s_to_ms": ("double", "bigint"), "per_token": ("double",)}
_EXPECTED = {
    "seconds": "seconds since 1970",
    "milliseconds": "milliseconds since 1970",
    "relative_seconds": "seconds since the origin",
    "s_to_ms": "a number of seconds",
    "per_token": "a price in USD per token",
}


@dataclass(frozen=True)
class Mapping:
    """A mapping as read: `name` is what the mirror remembers, `entries` maps target → column → entry."""

    name: str
    entries: MappingType[str, MappingType[str, MappingType[str, Any]]]
    zone: str | None = None
    origin_us: int | None = None
    description: str = ""


def shipped_mappings() -> list[str]:
    """Return the names of the mappings that come with the package.

    >>> shipped_mappings()
    ['aider_calls', 'coding_sessions', 'openrouter_price_events']
    """
    return sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml"))


def load_mapping(name_or_path: str | Path) -> Mapping:
    """Load a shipped mapping by name, or any by the path of its TOML file; refuse what it cannot mean."""
    given = str(name_or_path)
    if given in shipped_mappings():
        return _parse(given, (_folder() / f"{given}.toml").read_text(encoding="utf-8"))
    path = Path(name_or_path)
    if not path.is_file():
        shipped = ", ".join(shipped_mappings())
        raise ReplayError(
            f"There is no mapping {given}. Expected the path of a TOML file, or one of those shipped: {shipped}."
        )
    data = path.read_bytes()
    # Another mapping of the same file name is another mapping: rows it brings in are told apart by its content.
    return _parse(f"{path.stem}@{sha256(data).hexdigest()[:12]}", data.decode("utf-8", errors="replace"))


def _folder() -> Any:
    return resources.files("replay") / "ledger" / "importers" / "mappings"


def _parse(name: str, text: str) -> Mapping:
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ReplayError(f"Mapping {name} is not valid TOML: {error}. See {MAPPINGS_PAGE}.") from error
    description, zone, origin = (raw.pop(key, None) for key in ("description", "zone", "origin"))
    unknown = [key for key in raw if key not in targets()]
    if unknown or not raw:
        raise _refuse(
            name, f"unknown targets {', '.join(with_nearest(unknown, targets()))}" if unknown else "no target"
        )
    entries = {}
    for table in targets():
        if table in raw:
            entries[table] = _entries(name, targets()[table], raw[table])
    return Mapping(name, entries, _zone(name, zone), _origin(name, origin), str(description or ""))


def _refuse(name: str, what: str) -> ReplayError:
    return ReplayError(f"Mapping {name}: {what}. Targets are {', '.join(targets())}. See {MAPPINGS_PAGE} for the form.")


def _zone(name: str, zone: Any) -> str | None:
    if zone is None:
        return None
    try:
        return ZoneInfo(str(zone)).key
    except (OSError, ValueError, KeyError) as error:
        raise _refuse(name, f"zone {zone!r} is no IANA time zone (such as UTC or Europe/Berlin)") from error


def _origin(name: str, origin: Any) -> int | None:
    if origin is None:
        return None
    try:
        moment = origin if isinstance(origin, datetime) else datetime.fromisoformat(str(origin))
    except ValueError as error:
        raise _refuse(name, f"origin {origin!r} is no ISO time") from error
    if moment.tzinfo is None:
        raise _refuse(name, f"origin {origin} has no offset; write for example {moment.isoformat()}Z")
    return round(moment.timestamp() * 1e6)


def _entries(name: str, target: Target, raw: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(raw, dict):
        raise _refuse(name, f"{target.name} is no table of columns")
    unknown = [column for column in raw if column not in target.columns]
    if unknown:
        said = ", ".join(with_nearest(unknown, target.columns))
        raise _refuse(name, f"{target.name} has no columns {said}; it has {', '.join(target.columns)}")
    missing = [column.describe() for column in target.required if column.name not in raw]
    if missing:
        raise _refuse(name, f"{target.name} is given no {', '.join(missing)}, which a replay needs in every row")
    return {column: _entry(name, target, column, raw[column]) for column in target.columns if column in raw}


def _entry(name: str, target: Target, column: str, raw: Any) -> dict[str, Any]:
    where = f"{target.name}.{column}"
    entry = {"column": raw} if isinstance(raw, str) else raw
    if not isinstance(entry, dict):
        raise _refuse(
            name, f"{where} = {raw!r}; expected a source column's name, or a table such as {{ constant = {raw!r} }}"
        )
    unknown = [key for key in entry if key not in _KEYS]
    if unknown:
        raise _refuse(name, f"{where} has unknown keys {', '.join(with_nearest(unknown, _KEYS))}")
    if sum(key in entry for key in ("column", "constant", "row_id")) != 1:
        raise _refuse(name, f"{where} needs exactly one of column, constant and row_id")
    kind = target.columns[column].kind
    conversion = entry.get("as")
    if conversion is not None and conversion not in _CONVERSIONS:
        raise _refuse(name, f"{where}: as = {conversion!r}; expected one of {', '.join(_CONVERSIONS)}")
    if conversion is not None and kind not in _CONVERSIONS[conversion]:
        raise _refuse(name, f"{where}: {conversion} gives no {kind} column")
    if conversion is None and "column" in entry and kind in ("s", "ms") and "map" not in entry:
        raise _refuse(name, f"{where} is an instant: say what the source holds with as = one of {', '.join(_INSTANTS)}")
    if "plus_seconds" in entry and conversion not in _INSTANTS:
        raise _refuse(name, f"{where}: plus_seconds moves an instant, so it needs as = one of {', '.join(_INSTANTS)}")
    if entry.get("row_id") and kind != "text":
        raise _refuse(
            name, f"{where}: row_id gives a text, such as usage_event_id or request_id (id is filled by itself)"
        )
    return entry


def mapped_plan(mapping: Mapping, columns: dict[str, str], file: str) -> Plan:
    """Return the plan of a mapping for a file with these columns; refuse it if a column it reads is absent."""
    wanted: set[str] = set()
    for entries in mapping.entries.values():
        for entry in entries.values():
            if not entry.get("optional"):
                wanted.update(entry[key] for key in ("column", "plus_seconds") if key in entry)
    absent = sorted(wanted - columns.keys())
    if absent:
        said = ", ".join(with_nearest(absent, columns))
        raise ReplayError(
            f"{file} lacks columns that the mapping {mapping.name} reads: {said}. The file has {', '.join(columns)}. "
            "Give the mapping that belongs to the file, or mark an entry optional = true. Nothing was imported."
        )
    cells = {
        table: {name: _cell(mapping, entry, targets()[table].columns[name], columns) for name, entry in entries.items()}
        for table, entries in mapping.entries.items()
    }
    return Plan(mapping.name, cells)


def _cell(mapping: Mapping, entry: MappingType[str, Any], column: Column, columns: dict[str, str]) -> Cell:
    if entry.get("row_id"):
        return Cell("NULL", is_row_id=True)
    if "constant" in entry:
        return _constant(mapping, column, entry["constant"])
    name = entry["column"]
    source = columns.get(name, "NULL::VARCHAR")
    if "null" in entry:
        listed = ", ".join(literal(str(value)) for value in entry["null"])
        source = f"(CASE WHEN {source} NOT IN ({listed}) THEN {source} END)"
    if "map" in entry:
        return _mapped(entry, name, source, column)
    if "prefix" in entry:
        return Cell(f"{literal(str(entry['prefix']))} || {filled(source)}", source=name)
    if "as" in entry:
        return _converted(mapping, entry, name, source, column, columns)
    return plain_cell(source, name, column)


def _constant(mapping: Mapping, column: Column, value: Any) -> Cell:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    cell = plain_cell(f"{literal(text)}", f"constant {text}", column)
    return Cell(f"CAST({cell.value} AS {column.sql_type})", cell.unreadable, cell.source, cell.expected)


def _mapped(entry: MappingType[str, Any], name: str, source: str, column: Column) -> Cell:
    text = filled(source)
    pairs = {str(key): _text(value) for key, value in entry["map"].items()}
    cases = " ".join(f"WHEN {text} = {literal(key)} THEN {_or_null(value)}" for key, value in pairs.items())
    otherwise = _or_null(_text(entry["default"])) if "default" in entry else "NULL"
    cell = plain_cell(f"(CASE WHEN {text} IS NULL THEN NULL {cases} ELSE {otherwise} END)", name, column)
    unreadable = cell.unreadable
    if "default" not in entry:
        known = ", ".join(literal(key) for key in pairs) or "''"
        unreadable = f"({unreadable} OR ({text} IS NOT NULL AND {text} NOT IN ({known})))"
    return Cell(cell.value, unreadable, name, f"one of {', '.join(pairs)}")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _or_null(value: str) -> str:
    return literal(value) if value else "NULL"


def _converted(
    mapping: Mapping, entry: MappingType[str, Any], name: str, source: str, column: Column, columns: dict[str, str]
) -> Cell:
    conversion, text = entry["as"], filled(source)
    if conversion in ("s_to_ms", "per_token"):
        value = convert.shifted(text, 3 if conversion == "s_to_ms" else 6)
        if column.kind == "bigint":
            value = f"TRY_CAST(round({value}) AS BIGINT)"
        return Cell(value, f"({text} IS NOT NULL AND ({value}) IS NULL)", name, _EXPECTED[conversion])
    expected = _EXPECTED.get(conversion, "an ISO time with its offset (or declare zone in the mapping)")
    if conversion == "iso":
        expected = expected if mapping.zone is None else "an ISO time"
        micros = convert.iso_microseconds(text, mapping.zone)
    else:
        micros = convert.microseconds(text, 3 if conversion == "milliseconds" else 6)
        if conversion == "relative_seconds":
            if mapping.origin_us is None:
                raise _refuse(
                    mapping.name, f"{column.name} counts seconds from an origin; declare origin = an ISO time"
                )
            micros = f"{micros} + {mapping.origin_us}"
    unreadable = f"({text} IS NOT NULL AND ({micros}) IS NULL)"
    if "plus_seconds" in entry:
        added = filled(columns.get(entry["plus_seconds"], "NULL::VARCHAR"))
        moved = convert.microseconds(added, 6)
        unreadable = f"({unreadable} OR ({added} IS NOT NULL AND ({moved}) IS NULL))"
        micros = f"({micros}) + coalesce({moved}, 0)"
        expected = f"{expected}, plus seconds in {entry['plus_seconds']}"
    return Cell(convert.instant(micros, column.kind), unreadable, name, expected)
