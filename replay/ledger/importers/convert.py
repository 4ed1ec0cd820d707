"""The closed set of conversions, each one SQL expression from a source column's text to a target column's value.

An expression gives NULL both for a missing and for an unreadable text; `Cell.unreadable` tells them apart. Numbers are
shifted by powers of ten in their *text* (0.00000035 USD per token → "0.00000035e6" → 0.35 per million), so that a unit
change adds no rounding of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?"
_NOT_FINITE = r"(?i)[+-]?(nan|inf|infinity)"
_INTEGER = r"[+-]?[0-9]+(\.0*)?"
_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?"
_OFFSET = r" ?(Z|z|UTC|[+-][0-9]{2}(:?[0-9]{2})?)"

EXPECTED = {
    "bigint": "a whole number",
    "integer": "a whole number within ±2³¹",
    "double": "a number",
    "boolean": "true or false",
    "json": "a JSON text",
    "s": "a whole number of seconds since 1970",
    "ms": "a whole number of milliseconds since 1970",
}


@dataclass(frozen=True)
class Cell:
    """How one target column is filled: its value, when the source is unreadable, and how to speak of it."""

    value: str
    unreadable: str = "false"
    source: str = ""
    expected: str = ""
    is_row_id: bool = False


def quote(name: str) -> str:
    """Return an SQL identifier.

    >>> quote('a"b')
    '"a""b"'
    """
    return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
    """Return an SQL string.

    >>> literal("it's")
    "'it''s'"
    """
    return "'" + value.replace("'", "''") + "'"


def filled(source: str) -> str:
    """Return the trimmed text of a source column, NULL where nothing is in it."""
    return f"nullif(trim({source}), '')"


def as_kind(text: str, kind: str) -> str:
    """Return the value of a non-text kind (see `targets.Column`) read from a text expression, NULL if unreadable."""
    if kind == "double":
        return f"CASE WHEN regexp_full_match({text}, '{NUMBER}|{_NOT_FINITE}') THEN TRY_CAST({text} AS DOUBLE) END"
    if kind == "boolean":
        return f"TRY_CAST({text} AS BOOLEAN)"
    if kind == "json":
        return f"CASE WHEN json_valid({text}) THEN {text} END"
    sql_type = "INTEGER" if kind == "integer" else "BIGINT"
    return f"CASE WHEN regexp_full_match({text}, '{_INTEGER}') THEN TRY_CAST({text} AS {sql_type}) END"


def shifted(text: str, power: int) -> str:
    """Return a number's text times 10^power as a double, exactly rounded once; NULL if unreadable."""
    mantissa, exponent = f"split_part(lower({text}), 'e', 1)", f"split_part(lower({text}), 'e', 2)"
    number = f"{mantissa} || 'e' || (coalesce(TRY_CAST({exponent} AS INTEGER), 0) + {power})"
    return (
        f"CASE WHEN regexp_full_match({text}, '{NUMBER}') THEN TRY_CAST({number} AS DOUBLE) "
        f"WHEN regexp_full_match({text}, '{_NOT_FINITE}') THEN TRY_CAST({text} AS DOUBLE) END"
    )


def microseconds(text: str, power: int) -> str:
    """Return a number's text times 10^power as whole microseconds (a duration, or an instant since 1970)."""
    return f"TRY_CAST(round({shifted(text, power)}) AS BIGINT)"


def iso_microseconds(text: str, zone: str | None) -> str:
    """Return an ISO time as microseconds since 1970; one without an offset is read in `zone`, if any."""
    with_offset = (
        f"CASE WHEN regexp_full_match({text}, '{_TIME}{_OFFSET}') THEN epoch_us(TRY_CAST({text} AS TIMESTAMPTZ))"
    )
    if zone is None:
        return f"{with_offset} END"
    naive = f"epoch_us(timezone({literal(zone)}, TRY_CAST({text} AS TIMESTAMP)))"
    return f"{with_offset} WHEN regexp_full_match({text}, '{_TIME}') THEN {naive} END"


def instant(micros: str, kind: str) -> str:
    """Return microseconds as the target's unit, rounded down: an instant never moves into the future."""
    divisor = 1_000_000 if kind == "s" else 1_000
    return f"(({micros}) - ((({micros}) % {divisor}) + {divisor}) % {divisor}) // {divisor}"
