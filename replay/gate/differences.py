"""Everything in which an outcome differs from its baseline, one row per value: the frame that all reports read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from analysis.decisions import TOP
from replay.gate.likely import likely
from replay.gate.outcome import PREDICTIONS, Outcome
from replay.gate.shared_sql import ANSWERS
from replay.gate.suite import Allowed

TOLERANCE = 1e-12
"""Of two doubles, relative to the larger, absolute below 1."""

CHECKS = ("input", "settings", "decisions", "predictions", "metrics", "sql", "proof")
"""What is compared, in the order of the report."""

DIFFERENCES: dict[str, type[pl.DataType]] = {
    "check": pl.String,
    "setting": pl.String,
    "id": pl.String,
    "at_ms": pl.Int64,
    "kind": pl.String,
    "column": pl.String,
    "baseline": pl.String,
    "now": pl.String,
    "cause": pl.String,
    "allowed": pl.String,
}
"""Columns of the full difference. `id`: the call, attempt, query with its values, metric, or path in the record.
`kind`: changed, added or missing; of a row, or of a whole column where `id` is empty. `baseline` and `now` are texts,
doubles to the last bit. `cause`: of a decision, the likely one. `allowed`: the suite's reason, null where it counts."""

_OCCURRENCE = "occurrence"


def differences(before: Outcome, now: Outcome, allowed: Sequence[Allowed] = ()) -> pl.DataFrame:
    """Return every difference between a baseline and an outcome. Out: the columns of `DIFFERENCES`."""
    rows: list[dict[str, Any]] = []
    for check, keys in (("input", ("input",)), ("settings", ("settings", "policy"))):
        rows += (_row(check, **found) for key in keys for found in plain_differences(before.record, now.record, key))
    rows += _decisions(before.decisions, now.decisions, allowed)
    given = now.predictions.select(PREDICTIONS)
    rows += _rows("predictions", before.predictions, given, ("setting", "attempt_id"), now.predictions)
    rows += (_row("metrics", **found) for found in _metrics(before.record["metrics"], now.record["metrics"]))
    rows += _sql(before.sql, now.sql, "DuckDB")
    rows += [] if now.postgres is None else _sql(before.sql, now.postgres, "PostgreSQL")
    for key in ("reproduction", "replayed", "warnings"):
        rows += (_row("proof", **found) for found in plain_differences(before.record, now.record, key))
    return pl.DataFrame(rows, schema=DIFFERENCES)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal: doubles to 1e-12, all else exactly, type included.

    >>> same(0.1 + 0.2, 0.3), same(1, 1.0), same(None, 0), same(float("nan"), float("nan"))
    (True, False, False, True)
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        return bool(one == other or abs(one - other) <= TOLERANCE * max(1.0, abs(one), abs(other)))
    return bool(one == other)


def plain_differences(before: Any, now: Any, key: str) -> Iterator[dict[str, Any]]:
    """Yield the leaves in which two pieces of JSON differ under one key, with their paths."""
    yield from _leaves(before.get(key), now.get(key), key)


def _leaves(before: Any, now: Any, path: str) -> Iterator[dict[str, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        # A hash only repeats what the values beside it say; an identity only what they mean.
        for key in sorted(({*before, *now}) - {"decision_hash", "identity"}):
            yield from _leaves(before.get(key), now.get(key), f"{path}.{key}")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (one, other) in enumerate(zip(before, now, strict=True)):
            name = one.get("name") or one.get("setting") if isinstance(one, dict) else None
            yield from _leaves(one, other, f"{path}.{name or place}")
    elif not same(before, now):
        yield {"id": path, "kind": _kind(before, now), "baseline": text(before), "now": text(now)}


def _kind(before: Any, now: Any) -> str:
    return "added" if before is None else "missing" if now is None else "changed"


def text(value: Any) -> str | None:
    """Write a value so that equal texts mean equal values; None stays None.

    >>> text(0.1), text(True), text("a|b"), text(None)
    ('0.1', 'true', 'a|b', None)
    """
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _row(check: str, **given: Any) -> dict[str, Any]:
    return {**dict.fromkeys(DIFFERENCES), "check": check, "kind": "changed", **given}


def _rows(
    check: str, before: pl.DataFrame, now: pl.DataFrame, keys: tuple[str, str], facts: pl.DataFrame
) -> Iterator[dict[str, Any]]:
    """Yield differing values of two frames with the same keys, in the order of time; `facts` knows the instants."""
    yield from _columns(check, before, now)
    at = {row[:2]: row[2] for row in facts.select(*keys, "ts_ms").iter_rows()}
    for key, one, other in _pairs(before, now, keys):
        head = {"setting": key[0], "id": str(key[1]), "at_ms": at.get(key)}
        yield from (_row(check, **head, **found) for found in _values(one, other, ()))


def _columns(check: str, before: pl.DataFrame, now: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the columns that only one frame has, or that changed their type."""
    for name in sorted({*before.columns, *now.columns}):
        one, other = before.schema.get(name), now.schema.get(name)
        if one != other:
            said = (None if kind is None else str(kind) for kind in (one, other))
            yield _row(
                check, id="", column=name, kind=_kind(one, other), **dict(zip(("baseline", "now"), said, strict=True))
            )


def _pairs(
    before: pl.DataFrame, now: pl.DataFrame, keys: tuple[str, str]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any] | None, dict[str, Any] | None]]:
    """Yield (key, row before, row now) for every row that is not the same to the last bit; None: there is none."""
    shared = [name for name in now.columns if before.schema.get(name) == now.schema[name]]
    # A row that occurs twice is two rows: the second is the one too many.
    number = pl.int_range(pl.len()).over(keys).alias(_OCCURRENCE)
    one, other = (frame.select(shared).with_columns(number) for frame in (before, now))
    every = [*shared, _OCCURRENCE]
    unequal = [
        one.join(other, on=every, how="anti", nulls_equal=True),
        other.join(one, on=every, how="anti", nulls_equal=True),
    ]
    named = (*keys, _OCCURRENCE)
    sides = [{tuple(row[key] for key in named): row for row in frame.iter_rows(named=True)} for frame in unequal]
    for key in sorted({*sides[0], *sides[1]}, key=lambda key: (key[1], key[0], key[2])):
        yield key[:2], sides[0].get(key), sides[1].get(key)


def _values(
    one: dict[str, Any] | None, other: dict[str, Any] | None, skipped: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the columns in which a row differs; a row that only one side has is one difference."""
    if one is None or other is None:
        yield {"kind": _kind(one, other)}
        return
    for name, value in one.items():
        if name not in skipped and not _same_value(name, value, other[name]):
            yield {"column": name, "baseline": text(value), "now": text(other[name])}


def _same_value(name: str, one: Any, other: Any) -> bool:
    if name.startswith("price_") and one is not None and other is not None:
        return bool(round(one * 1e6) == round(other * 1e6))  # money counts in micro-dollars
    return same(one, other)


def _decisions(before: pl.DataFrame, now: pl.DataFrame, allowed: Sequence[Allowed]) -> Iterator[dict[str, Any]]:
    """Yield the differing values of decisions in the order of decision, each with its row's likely cause."""
    yield from _columns("decisions", before, now)
    found = []
    for (setting, call), one, other in _pairs(before, now, ("setting", "call_id")):
        values = list(_values(one, other, _implied(one, other)))
        if values:
            at_ms = (one or other or {})["decided_ms"]
            head = {"setting": setting, "id": str(call), "at_ms": at_ms, "cause": likely(one, other).label}
            found += [_row("decisions", **head, **value, allowed=_reason(allowed, call, value)) for value in values]
    yield from sorted(found, key=lambda row: (row["at_ms"], int(row["id"])))


def _implied(one: dict[str, Any] | None, other: dict[str, Any] | None) -> tuple[str, ...]:
    """Return the order's hash where the whole order is in sight: it holds every bit, doubles are held to 1e-12."""
    rows = [row for row in (one, other) if row is not None]
    in_sight = all((row.get("candidates") or len(TOP) + 1) - (row.get("rejected") or 0) <= len(TOP) for row in rows)
    return ("order_hash",) if in_sight else ()


def _reason(allowed: Sequence[Allowed], call: int, value: dict[str, Any]) -> str | None:
    for one in allowed:
        if (not one.calls or call in one.calls) and (not one.columns or value.get("column") in one.columns):
            return one.reason
    return None


def _metrics(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    sides = [{(one["setting"], one["metric"]): one for one in side} for side in (before, now)]
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        one, other = (side.get(key) or {} for side in sides)
        for part in ("value", "of"):
            if not same(one.get(part), other.get(part)):
                said = {"baseline": text(one.get(part)), "now": text(other.get(part))}
                yield {
                    "setting": key[0],
                    "id": key[1],
                    "column": part,
                    "kind": _kind(one or None, other or None),
                    **said,
                }


def _sql(before: pl.DataFrame, now: pl.DataFrame, engine: str) -> Iterator[dict[str, Any]]:
    """Yield the answers that differ, each query's first differing row; `setting` says which engine answered."""
    yield from _columns("sql", before, now)
    sides = []
    for frame in (before, now):
        asked: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for query, parameters, _, row in frame.select(list(ANSWERS)).iter_rows():
            asked.setdefault((query, parameters), []).append(json.loads(row))
        sides.append(asked)
    for query, parameters in sorted({*sides[0], *sides[1]}):
        one, other = (side.get((query, parameters)) for side in sides)
        if one is None or other is None:
            found: dict[str, Any] = {"kind": _kind(one, other)}
        else:
            found = _first_difference(one, other)
        if found:
            yield _row("sql", setting=engine, id=f"{query} {parameters}", **found)


def _first_difference(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first row in which two answers differ, {} where none does."""
    for place in range(max(len(before), len(now))):
        one, other = (side[place] if place < len(side) else None for side in (before, now))
        if one is None or other is None:
            said = {"baseline": text(one), "now": text(other)}
            return {"kind": _kind(one, other), "column": f"row {place + 1}", **said}
        if list(one) != list(other):
            return {"column": "columns", "baseline": ", ".join(one), "now": ", ".join(other)}
        for name in one:
            if not same(one[name], other[name]) and not (name == "latency_ms" and _near_half(one)):
                said = {"baseline": text(one[name]), "now": text(other[name])}
                return {"column": f"{name} of row {place + 1}{_named(one)}", **said}
    return {}


def _named(row: dict[str, Any]) -> str:
    """Return a row's texts, which say whose it is."""
    parts = [value for value in row.values() if isinstance(value, str)][:3]
    return f" ({'|'.join(parts)})" if parts else ""


def _near_half(row: dict[str, Any]) -> bool:
    """Whether a mean is so near to a half that the order of its sum decides how it is rounded."""
    mean = row.get("latency_mean_ms")
    if mean is None or not math.isfinite(mean):
        return False
    return bool(0 < abs(mean % 1 - 0.5) < 1e-9 * max(1.0, abs(mean)))
