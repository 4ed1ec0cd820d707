"""The axis of every chart over time: whole steps of UTC, written in one way per length of span."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence

import altair as alt

_MINUTE, _HOUR, _DAY = 60_000, 3_600_000, 86_400_000
_STEPS_MS = (
    *(n * _MINUTE for n in (1, 2, 5, 10, 15, 30)),
    *(n * _HOUR for n in (1, 2, 3, 6, 12)),
    *(n * _DAY for n in (1, 2, 4, 7, 14)),
)
_STEPS_MONTHS = (1, 2, 3, 6, 12, 24, 60, 120, 240, 600, 1_200)
_MONTHS_FROM_DAYS = 300


def utc(first_ms: int, end_ms: int, bin_ms: int) -> alt.Scale:
    """Return the scale of every chart over time; a few bins are put in the middle of an axis that holds twelve."""
    return alt.Scale(type="utc", nice=False, domain=list(time_domain(first_ms, end_ms, bin_ms)))


def time_domain(first_ms: int, end_ms: int, bin_ms: int) -> tuple[int, int]:
    """Return where the time axis begins and ends.

    >>> time_domain(0, 60_000, 60_000)
    (-330000, 390000)
    """
    room = max(0, 12 - (end_ms - first_ms) // bin_ms) * bin_ms // 2
    return first_ms - room, end_ms + room


def time_axis(first_ms: int, end_ms: int, bin_ms: int, width: int, title: str = "time (UTC)") -> alt.Axis:
    """Return the axis of every chart over time: whole steps of UTC, all written in one way.

    Hours carry their date, and days their year, under the first label and wherever it changes; months their year.
    """
    low, high = time_domain(first_ms, end_ms, bin_ms)
    written = ticks_utc(low, high, max(3, min(10, (width - 90) // 75)))
    said = {str(at): [line, under] if under else [line] for at, line, under in written}
    return alt.Axis(
        title=title,
        values=[at for at, *_ in written],
        labelExpr=f"{json.dumps(said)}[toString(toNumber(datum.value))]",
        labelOverlap="greedy",
        labelFlush=False,
        grid=False,
    )


def ticks_utc(low_ms: int, high_ms: int, most: int) -> list[tuple[int, str, str]]:
    """Return at most `most` instants between two others, in whole steps of UTC, each with its label's two lines.

    >>> ticks_utc(1772409600000, 1772409600000 + 86_400_000, 4)  # doctest: +NORMALIZE_WHITESPACE
    [(1772409600000, '00:00', '2 Mar 2026'), (1772452800000, '12:00', ''), (1772496000000, '00:00', '3 Mar 2026')]
    >>> [lines for _, *lines in ticks_utc(1772409600000, 1772409600000 + 6 * 86_400_000, 5)]
    [['2 Mar', '2026'], ['4 Mar', ''], ['6 Mar', ''], ['8 Mar', '']]
    >>> [lines for _, *lines in ticks_utc(1772409600000, 1772409600000 + 400 * 86_400_000, 5)]
    [['Apr 2026', ''], ['Jul 2026', ''], ['Oct 2026', ''], ['Jan 2027', ''], ['Apr 2027', '']]
    """
    if high_ms - low_ms <= _MONTHS_FROM_DAYS * _DAY:
        for step in _STEPS_MS:
            at = [n * step for n in range(-(-low_ms // step), high_ms // step + 1)]
            if len(at) <= most:
                return _labelled(at, hours=step < _DAY)
    made: list[tuple[int, str, str]] = []
    for months in _STEPS_MONTHS:
        first, last = (12 * d.year + d.month - 1 for d in (_date(low_ms), _date(high_ms)))
        starts = [n for n in range(first, last + 1) if n % months == 0]
        dates = [dt.datetime(n // 12, n % 12 + 1, 1, tzinfo=dt.UTC) for n in starts if n >= 12]
        made = [(int(d.timestamp()) * 1000, f"{d:%b %Y}", "") for d in dates]
        made = [one for one in made if low_ms <= one[0] <= high_ms]
        if len(made) <= most:
            break
    return made


def _date(at_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_ms // 1000, dt.UTC)


def _labelled(instants: Sequence[int], *, hours: bool) -> list[tuple[int, str, str]]:
    made, before = [], ""
    for at in instants:
        date = _date(at)
        day = f"{date.day} {date:%b}"
        line, under = (f"{date:%H:%M}", f"{day} {date.year}") if hours else (day, str(date.year))
        made.append((at, line, under if under != before else ""))
        before = under
    return made
