"""Both engines over the same rows, and one comparator that owns NaN, types and tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import duckdb
import psycopg
import pytest

from replay import queries

NewDatabase = Callable[[], AbstractContextManager[str]]
Row = dict[str, Any]
Ledger = dict[str, Sequence[Row]]

MEAN_TOLERANCE = 1e-12
"""Relative. The only figure that rests on a sum of doubles is the mean latency; all else must be equal."""


class Engines:
    """PostgreSQL with schema.sql and DuckDB with mirror.sql."""

    def __init__(self, postgres: psycopg.Connection[Any], mirror: duckdb.DuckDBPyConnection) -> None:
        self.postgres = postgres
        self.mirror = mirror

    @contextmanager
    def holding(self, ledger: Ledger) -> Iterator[Engines]:
        """Hold these rows in both engines, and no others, until the end of the block."""
        self.mirror.execute("BEGIN")
        try:
            for table, rows in ledger.items():
                if not rows:
                    continue
                statement, values = _insert(table, rows)
                self.postgres.execute(statement, values)
                self.mirror.execute(statement, values)
            yield self
        finally:
            self.mirror.execute("ROLLBACK")
            self.postgres.rollback()

    def run(self, name: str, **values: Any) -> list[Row]:
        """Run the unedited file in both, refuse any difference, and return PostgreSQL's rows."""
        query = queries.load(name)
        bound = query.bind(**values)
        cursor = self.postgres.execute(query.text, bound)
        assert cursor.description is not None
        columns = [column.name for column in cursor.description]
        ours = [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
        self.mirror.execute(query.text, bound)
        assert [column[0] for column in self.mirror.description or []] == columns
        theirs = [dict(zip(columns, row, strict=True)) for row in self.mirror.fetchall()]
        assert_same_rows(ours, theirs)
        return ours


def assert_same_rows(left: list[Row], right: list[Row]) -> None:
    """Assert that two answers are equal, in order, with the same types."""
    assert len(left) == len(right), f"{len(left)} rows in PostgreSQL, {len(right)} in DuckDB: {left} {right}"
    for number, (one, other) in enumerate(zip(left, right, strict=True)):
        near_half = _is_near_half(one.get("latency_mean_ms"))
        for column, value in one.items():
            if column == "latency_ms" and near_half:
                continue
            assert _same(column, value, other[column]), f"row {number}, {column}: {value!r} and {other[column]!r}"


def _same(column: str, one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        tolerance = MEAN_TOLERANCE if column == "latency_mean_ms" else 0.0
        return one == other or math.isclose(one, other, rel_tol=tolerance)
    return bool(one == other)


def _is_near_half(mean: float | None) -> bool:
    """Whether a mean that is not itself a half is so near to one that the order of the sum decides."""
    if mean is None or not math.isfinite(mean):
        return False
    distance = abs(mean % 1 - 0.5)
    return 0 < distance < 1e-9 * max(1.0, abs(mean))


def _insert(table: str, rows: Sequence[Row]) -> tuple[str, list[Any]]:
    columns = sorted({column for row in rows for column in row})
    values = [row.get(column) for row in rows for column in columns]
    places = iter(range(1, len(values) + 1))
    tuples = ", ".join("(" + ", ".join(f"${next(places)}" for _ in columns) + ")" for _ in rows)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {tuples}", values


@contextmanager
def _both(new_database: NewDatabase) -> Iterator[Engines]:
    with new_database() as url, psycopg.connect(url, cursor_factory=psycopg.RawCursor) as postgres:
        postgres.execute(queries.ddl("schema"))
        postgres.commit()
        with duckdb.connect() as mirror:
            mirror.execute(queries.ddl("mirror"))
            yield Engines(postgres, mirror)


@pytest.fixture(scope="session")
def engines(new_database: NewDatabase) -> Iterator[Engines]:
    """Both engines with empty tables, for ledgers of a test's own."""
    with _both(new_database) as both:
        yield both


def route(key: str) -> Row:
    """The parts of a route as a ledger may hold them: `-` is null, an empty part is empty."""
    return {
        column: None if part == "-" else part
        for column, part in zip(("provider_id", "model_family", "served_by"), key.split("|"), strict=True)
    }


def _attempt(id_: int, ts: int, key: str, ok: bool, latency_ms: float | None, tools: str = "") -> Row:
    flags = {
        "": (None, None),
        "asked": (True, False),
        "asked, unknown": (True, None),
        "called": (True, True),
        "unasked call": (None, True),
        "none": (False, False),
    }
    requested, emitted = flags[tools]
    return {
        "id": id_,
        "ts": ts,
        **route(key),
        "ok": ok,
        "latency_ms": latency_ms,
        "tools_requested": requested,
        "tool_calls_emitted": emitted,
    }


def _awkward_attempts() -> list[Row]:
    attempts = [
        _attempt(1, 1000, "p|m|-", True, 0.5),  # the first instant of the window [1000, 2000)
        _attempt(2, 1500, "p|m|", True, None),  # null and empty: one route
        _attempt(3, 1500, "p|m|-", False, 9000.0),  # failed: its latency does not count
        _attempt(4, 999, "p|m|", False, 7.0),  # one before
        _attempt(5, 2000, "p|m|-", False, 7.0),  # the instant at which the window ends
        _attempt(6, 1999, "p|m|y", True, 10.0),
        _attempt(7, 1999, "p|m|y", True, 11.0),
        _attempt(8, 1100, "P|m|x", True, 1.0),
        _attempt(9, 1101, "P|m|x", True, 2.0),
        _attempt(10, 1100, "p|M|x", True, 2.0),
        _attempt(11, 1101, "p|M|x", True, 3.0),
        _attempt(12, 1100, "a|m|x", False, 5.0),  # nothing but failures
        _attempt(13, 1100, "-||-", True, 3.0),
        _attempt(14, 1100, "|-|", True, 4.0),  # no part at all, in another way
        _attempt(15, 1100, "é|m|x", True, 0.0),
    ]
    return attempts + _tool_attempts()


def _tool_attempts() -> list[Row]:
    """Tool evidence in the window [5000, 6000), min_samples 20."""
    flags: list[tuple[str, bool, str]] = [
        *[("t|m|exact", True, "asked")] * 18,
        ("t|m|exact", True, "asked, unknown"),
        ("t|m|exact", False, "asked"),  # the twentieth request failed: it counts
        ("t|m|exact", True, "none"),
        ("t|m|exact", True, ""),
        *[("t|m|cleared", True, "asked")] * 20,
        ("t|m|cleared", True, "called"),
        *[("t|m|short", True, "asked")] * 19,
        *[("t|m|Unasked", True, "asked")] * 20,
        ("t|m|Unasked", True, "unasked call"),
        *[("t|-|", True, "asked")] * 10,
        *[("t||-", True, "asked")] * 10,
    ]
    attempts = [_attempt(100 + n, 5000 + n % 1000, key, ok, None, tools) for n, (key, ok, tools) in enumerate(flags)]
    attempts.append(_attempt(90, 6000, "t|m|short", True, None, "asked"))  # too late to be its twentieth
    attempts.append(_attempt(91, 4999, "t|m|exact", True, None, "called"))  # too early to clear it
    return attempts


def _call(id_: int, ts: int, session: str | None, key: str, status: int | None, **more: Any) -> Row:
    return {"id": id_, "ts": ts, "session_id": session, **route(key), "status": status, **more}


def _awkward_calls() -> list[Row]:
    return [
        _call(5, 30, "s1", "p|m|z", None),  # no status: not a success, yet a call
        _call(6, 30, "s1", "p|m|z", 400, caller="late", cost_usd=0.3, tokens_in=7),
        _call(7, 20, "s1", "P|-|w", 200),  # the same second as 3 and 4: the highest id is the latest
        _call(4, 20, "s1", "p|M|", 200),  # served by nobody else: the provider
        _call(3, 20, "s1", "p|m|y", 399),
        _call(2, 10, "s1", "P|m|-", 200, caller="bob", cost_usd=0.1, cost_basis="reported", tokens_cached=3),
        _call(1, 10, "s1", "p|m|x", 200, caller="Alice", cost_usd=0.2, tokens_in=100, tokens_out=10, tokens_cached=50),
        _call(10, 40, "S1", "p|m|x", 200, cost_usd=0.0000005),  # half a millionth of a dollar
        _call(11, 41, "S1", "p|m|x", 500, caller="eve", cost_usd=0.000002, cost_basis="reported", tokens_out=4),
        _call(12, 42, "dark", "p|m|-", 502, caller="eve"),
        _call(13, 40, "", "p|m|x", 200, caller="nobody", cost_usd=1.0),
        _call(14, 40, None, "p|m|x", 200, caller="nobody", cost_usd=float("nan")),
        _call(15, 40, None, "|m|x", 200, cost_usd=float("inf")),
        _call(16, 49, None, "-|m|x", 200, cost_usd=0.5, cost_basis="subscription"),
        _call(17, 50, None, "p|m|x", 200, cost_usd=64.0),
    ]


def _awkward_offers() -> list[Row]:
    return [
        {"id": 4, "valid_from": 100, "valid_to": 200, "position": 1, "provider_id": "b", "peer_id": "peer"},
        {"id": 2, "valid_from": 100, "valid_to": None, "position": 1, "provider_id": "a", "peer_id": ""},
        {"id": 3, "valid_from": 200, "valid_to": 300, "position": 0, "provider_id": "c", "price_in": 2.5},
        {"id": 1, "valid_from": 0, "valid_to": 100, "position": 2, "has_tee": True, "declared": '{"x": 1}'},
    ]


@pytest.fixture(scope="session")
def awkward(new_database: NewDatabase) -> Iterator[Engines]:
    """Both engines over the one awkward ledger, for reading."""
    ledger: Ledger = {
        "route_observations": _awkward_attempts(),
        "calls": _awkward_calls(),
        "offer_history": _awkward_offers(),
    }
    with _both(new_database) as both, both.holding(ledger):
        yield both
