"""Names in a slice that is committed for anybody to read: numbers in their place, the same wherever they stand.

A number (`call-12`, `session-3`) says nothing of what it stands for, needs no key that could be lost or guessed, and
reads well in a report. Who holds the mirror finds the rows again by their ids and instants.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import polars as pl

_NAMED = {
    "caller": (("calls", "caller"),),
    "consumer": (("calls", "consumer_sha"),),
    "session": (("calls", "session_id"),),
    "call": (("calls", "usage_event_id"), ("route_observations", "request_id")),
    "replica": (("calls", "replica"), ("route_observations", "replica")),
}
"""What a number is put in place of, and the columns that hold it."""

_READ_BY_THE_CORE = ("seed", "envelope", "credits", "hot_route")
_REQUIREMENTS = ("needs", "min_context", "model_family", "tier", "privacy", "min_tok_s", "pin")


def without_names(tables: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Return a ledger's tables with numbers for callers, consumers, sessions, calls, replicas and scopes.

    Numbers follow the order of first appearance (rows are in the order of their ids); null and the empty text stand
    for nobody and stay. Equal texts of one kind get equal numbers, so calls still join their attempts. Of a request
    only what the core reads is left: no schema of a response format, no key it does not know.
    """
    named = dict(tables)
    for prefix, columns in _NAMED.items():
        numbers = _numbers(prefix, (named[table][column] for table, column in columns))
        for table, column in columns:
            named[table] = named[table].with_columns(_renamed(named[table][column], numbers))
    requests = named["calls"]["request"].to_list()
    scopes = pl.Series([_scope(text) for text in requests], dtype=pl.String)
    numbers = _numbers("scope", (scopes, named["offer_history"]["scope"]))
    bare = pl.Series("request", [_bare(text, numbers) for text in requests], dtype=pl.String)
    named["calls"] = named["calls"].with_columns(bare)
    scope = _renamed(named["offer_history"]["scope"], numbers)
    named["offer_history"] = named["offer_history"].with_columns(scope)
    return named


def _numbers(prefix: str, columns: Any) -> dict[str, str]:
    texts = dict.fromkeys(text for column in columns for text in column.to_list() if text)
    return {text: f"{prefix}-{number}" for number, text in enumerate(texts, start=1)}


def _renamed(column: pl.Series, numbers: Mapping[str, str]) -> pl.Series:
    return pl.Series(column.name, [numbers.get(text, text) for text in column.to_list()], dtype=pl.String)


def _scope(text: str | None) -> str | None:
    record = _object(text)
    scope = record.get("scope") if record is not None else None
    return scope if isinstance(scope, str) else None


def _object(text: str | None) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        record = json.loads(text or "null")
        return record if isinstance(record, dict) else None
    return None


def _bare(text: str | None, scopes: Mapping[str, str]) -> str | None:
    """Return a request with what the core reads; one that is no JSON object stays something the core refuses."""
    if not text:
        return text
    record = _object(text)
    if record is None:
        return "not a request"
    bare = {key: record[key] for key in _READ_BY_THE_CORE if key in record}
    bare |= {key: bool(record[key]) for key in ("tools", "images") if key in record}
    scope = record.get("scope")
    if isinstance(scope, str):
        bare["scope"] = scopes.get(scope, scope)
    if "requirements" in record:
        bare["requirements"] = _only(record["requirements"], _REQUIREMENTS)
    if isinstance(record.get("response_format"), dict):
        bare["response_format"] = _only(record["response_format"], ("type",))
    return json.dumps(bare, sort_keys=True, separators=(",", ":"))


def _only(value: Any, names: tuple[str, ...]) -> Any:
    """Return the named entries; what is no record stays what the core makes of it: nothing, or a refusal."""
    if isinstance(value, dict):
        return {name: value[name] for name in names if name in value}
    return None if value is None or value == [] else "not a record"
