"""Durations and instants as people write them, always turned into integer milliseconds."""

from __future__ import annotations

import datetime as dt
import re

from replay.errors import ReplayError

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def duration_ms(text: str | int) -> int:
    """Read a duration: an integer is milliseconds, a text carries its unit (ms, s, m, h or d).

    >>> duration_ms("15m"), duration_ms("24h"), duration_ms(250)
    (900000, 86400000, 250)
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return _bounded(text, text, "duration")
    written = text if isinstance(text, str) else ""
    found = re.fullmatch(r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?\s*", written)
    if found is None:
        raise ReplayError(f"{text!r} is not a duration; expected a number and a unit, such as 500ms, 30s, 15m or 7d")
    return _bounded(float(found[1]) * _UNITS_MS[found[2] or "ms"], text, "duration")


def instant_ms(text: str | int | dt.date) -> int:
    """Read an instant: an ISO time with its offset (or Z), a date (midnight UTC), or integer milliseconds.

    >>> instant_ms("2026-03-02T00:00:00Z"), instant_ms("2026-03-02"), instant_ms("1772409600000")
    (1772409600000, 1772409600000, 1772409600000)
    """
    if isinstance(text, dt.date):  # TOML has instants of its own
        text = text.isoformat()
    if isinstance(text, int) and not isinstance(text, bool):
        return _bounded(text, text, "instant")
    written = str(text).strip()
    if re.fullmatch(r"-?[0-9]{1,20}", written):
        return _bounded(int(written), text, "instant")
    try:
        parsed = dt.datetime.fromisoformat(written)
    except ValueError as error:
        raise ReplayError(f"{text!r} is not an instant; expected 2026-03-02T12:00:00Z, for example, or ms") from error
    if parsed.tzinfo is None:
        if "T" in written.upper() or ":" in written:
            raise ReplayError(f"{text!r} has no offset; say which clock it is on, for example {written}Z")
        parsed = parsed.replace(tzinfo=dt.UTC)
    return round(parsed.timestamp() * 1000)


def _bounded(value_ms: float, given: object, what: str) -> int:
    """Return whole ms; beyond 2⁵³, some 285,000 years, nothing is counted exactly any more."""
    if abs(value_ms) > 2**53:
        raise ReplayError(f"{str(given)[:40]!r} is too far for a {what}; expected at most 2^53 ms; check its unit")
    return round(value_ms)


def iso(at_ms: int) -> str:
    """Write an instant in UTC, with milliseconds only where there are any.

    >>> iso(1772409600000), iso(1772409600250)
    ('2026-03-02T00:00:00Z', '2026-03-02T00:00:00.250Z')
    """
    at = dt.datetime.fromtimestamp(at_ms // 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{at}.{at_ms % 1000:03d}Z" if at_ms % 1000 else f"{at}Z"


def human(duration: int) -> str:
    """Write a duration in its largest whole unit.

    >>> human(900_000), human(1500), human(7_200_000)
    ('15m', '1500ms', '2h')
    """
    for unit in ("d", "h", "m", "s"):
        if duration and duration % _UNITS_MS[unit] == 0:
            return f"{duration // _UNITS_MS[unit]}{unit}"
    return f"{duration}ms"
