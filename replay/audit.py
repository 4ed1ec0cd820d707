"""The audit of every run: production's own SQL, unedited, on exactly the rows that a decision could see.

What was visible is known in two ways, by the engine's keys and by the view of `replay.crowd`; they check each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from replay.crowd import Crowd
from replay.estimators import ToolsWindow, Window
from replay.measuring import Measuring
from replay.settings import PRODUCTION_NOW, Measure, Settings, Tools
from replay.timeline import Ints

EVERY_DECISION_UP_TO = 2_000
SAMPLE = 500

Say = Callable[[int, int], None]
MEAN_TOLERANCE = 1e-9

FLIPS_SHARE, EMPTY_SHARE = 0.3, 0.1
"""How much of a sample may be contested decisions, and decisions with nothing in any window."""

_NEUTRAL: dict[str, Any] = {
    "count": 0,
    "rate": None,
    "latency_count": 0,
    "mean": None,
    "latency_ms": None,
    "capable": True,
}
"""What is compared of each route at each decision, and what that is without any attempt."""


_NONE: Ints = np.empty(0, dtype=np.int64)


@dataclass
class Audit:
    """What was compared and what did not agree."""

    decisions: int = 0
    of_decisions: int = 0
    comparisons: int = 0
    mismatches: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything agreed."""
        return not self.mismatches

    def add(self, later: Audit) -> None:
        """Take in the audit of another part of the same ledger."""
        self.decisions += later.decisions
        self.of_decisions += later.of_decisions
        self.comparisons += later.comparisons
        self.mismatches += later.mismatches


def audited(settings: Settings) -> Settings:
    """Return the settings whose stamps the shared SQL can check.

    A window on shared evidence is checked as it is. Where a rule has no query (an EMA, a count, in-process state)
    production's window stands in for it: that still proves which rows each decision saw.

    >>> from replay.settings import PRODUCTION_BEFORE
    >>> audited(PRODUCTION_BEFORE).reliability.rule
    Window(window_ms=900000)

    What is left out (prices, processes) has no part in shared evidence; settings that share the rest share an audit.
    """
    return Settings(
        name="audited",
        memo_ms=settings.memo_ms,
        visibility=settings.visibility,
        lag_ms=settings.lag_ms,
        seed=settings.seed,
        reliability=settings.reliability if _has_query(settings.reliability) else PRODUCTION_NOW.reliability,
        latency=settings.latency if _has_query(settings.latency) else PRODUCTION_NOW.latency,
        tools=settings.tools if _tools_have_query(settings.tools) else PRODUCTION_NOW.tools,
    )


def _has_query(measure: Measure) -> bool:
    plain = replace(measure, rule=Window(1), exclude_kinds=())
    return isinstance(measure.rule, Window) and plain == Measure(rule=Window(1))


def _tools_have_query(tools: Tools) -> bool:
    return isinstance(tools.rule, ToolsWindow) and tools.state == "shared"


def audit(
    checked: Measuring,
    calls: Ints,
    flips: Ints = _NONE,
    say: Say = lambda *_: None,
    *,
    sample: int = SAMPLE,
    all_up_to: int = EVERY_DECISION_UP_TO,
) -> Audit:
    """Compare the engine's stamps of every route with the shared SQL, at all given decisions or a sample of them.

    `checked` measures `audited` settings. `say` is told how many decisions are done, and of how many. Of more than
    `all_up_to` decisions a `sample` is looked at; a part of a long ledger gets its share of both.
    """
    timeline = checked.timeline
    usable = calls[~checked.mute[calls]]
    result = Audit(of_decisions=len(usable))
    routes = np.flatnonzero(np.bincount(timeline.attempts.route, minlength=1)).astype(np.int64)
    if len(usable) == 0 or len(routes) == 0:
        return result
    chosen = _sample(checked, usable, flips, sample, all_up_to)
    # Twice the longest window, so that a query that reads too far back is seen to.
    with Crowd(checked, chosen, 2 * checked.settings.longest_window_ms) as crowd:
        for batch in crowd.batches():
            say(result.decisions, len(chosen))
            both = _side_by_side(_stamped(checked, batch, routes), _said(crowd))
            result.decisions += len(batch)
            result.comparisons += both.height * len(_NEUTRAL)
            result.mismatches += _mismatches(both, timeline.calls.id[batch].tolist())
    return result


def _stamped(checked: Measuring, calls: list[int], routes: Ints) -> pl.DataFrame:
    """Return what the engine stamped at each decision, for each route; decisions are numbered by their places."""
    which, each = np.repeat(np.arange(len(calls)), len(routes)), np.tile(routes, len(calls))
    stamps = checked.answer(checked.at_calls(np.array(calls, dtype=np.int64)[which], each))
    return pl.DataFrame(
        {
            "number": which,
            "route": pl.Series([checked.timeline.routes[route] for route in routes.tolist()] * len(calls)),
            "count": stamps.count,
            "rate": stamps.reliability,
            "latency_count": stamps.latency_count,
            "mean": stamps.latency_ms,
            "latency_ms": stamps.stamped_latency_ms,
            "capable": stamps.capable,
        }
    ).with_columns(_known("rate"), _known("mean"), _known("latency_ms"))


def _said(crowd: Crowd) -> pl.DataFrame:
    """Return what production's queries say to each of the crowd, per route, where they say anything."""
    settings = crowd.measuring.settings
    reliability, latency, tools = settings.reliability, settings.latency, settings.tools
    assert isinstance(reliability.rule, Window)
    assert isinstance(latency.rule, Window)
    assert isinstance(tools.rule, ToolsWindow)

    def stats(measure: Measure, window_ms: int) -> pl.DataFrame:
        return crowd.ask("route_stats", measure.exclude_kinds, since_ms=-window_ms, until_ms=crowd.until_ms)

    counted = timed = stats(reliability, reliability.rule.window_ms)
    if (latency.rule, latency.exclude_kinds) != (reliability.rule, reliability.exclude_kinds):
        timed = stats(latency, latency.rule.window_ms)
    silent = crowd.ask(
        "tool_incapable_routes",
        failed=tools.failed == "excluded",
        since_ms=-tools.rule.window_ms,
        until_ms=crowd.until_ms,
        min_samples=tools.rule.min_samples,
    )
    timed = timed.select(*_EACH, "latency_count", "latency_ms", mean="latency_mean_ms")
    found = counted.select(*_EACH, "count", rate="success_rate")
    found = found.join(timed, on=_EACH, how="full", coalesce=True)
    return found.join(silent.select(*_EACH, capable=False), on=_EACH, how="full", coalesce=True).with_columns(
        _known("mean")
    )


_EACH = ["number", "route"]


def _known(name: str) -> pl.Expr:
    """Return a column with null where it is no finite number."""
    return pl.when(pl.col(name).is_finite()).then(name).alias(name)


def _side_by_side(engine: pl.DataFrame, production: pl.DataFrame) -> pl.DataFrame:
    """Return a row for each decision and route of either: the engine's values, and production's named `their_…`."""
    theirs = production.rename({name: f"their_{name}" for name in _NEUTRAL})
    both = engine.join(theirs, on=_EACH, how="full", coalesce=True).sort(_EACH)
    neutral = {name: value for name, value in _NEUTRAL.items() if value is not None}
    return both.with_columns(
        pl.col(prefix + name).fill_null(value) for name, value in neutral.items() for prefix in ("", "their_")
    )


def _mismatches(both: pl.DataFrame, calls: list[int]) -> list[str]:
    """Return a sentence for each value that does not agree; `calls` are the ids of the decisions."""
    wrong = both.filter(~pl.all_horizontal(_AGREE.values()))
    agreed = wrong.select(**_AGREE)
    return [
        f"call {calls[row['number']]}, route {row['route']}: {name} is {row[name]} in the engine, "
        f"{row[f'their_{name}']} in production's SQL"
        for row, agrees in zip(wrong.iter_rows(named=True), agreed.iter_rows(named=True), strict=True)
        for name in _NEUTRAL
        if not agrees[name]
    ]


def _same(name: str) -> pl.Expr:
    return pl.col(name).eq_missing(pl.col(f"their_{name}"))


_MEAN, _THEIR_MEAN, _BORDER = pl.col("mean"), pl.col("their_mean"), pl.col("mean").floor() + 0.5
_BOTH_ROUNDED = pl.col("latency_ms").is_not_null() & pl.col("their_latency_ms").is_not_null()
_LARGER = pl.max_horizontal(_MEAN.abs(), _THEIR_MEAN.abs())
_NEAR = ((_MEAN - _THEIR_MEAN).abs() <= MEAN_TOLERANCE * _LARGER).fill_null(value=False)
_ON_BORDER = ((_MEAN - _BORDER).abs() <= MEAN_TOLERANCE * pl.max_horizontal(_MEAN.abs(), 1.0)).fill_null(value=False)
_AGREE: dict[str, pl.Expr] = {name: _same(name) for name in _NEUTRAL} | {
    "mean": _same("mean") | _NEAR,
    "latency_ms": _same("latency_ms") | (_BOTH_ROUNDED & _ON_BORDER),
}
"""Counts, verdicts and rates agree exactly; means to 1e-9; the integer exactly unless the mean is next to a half."""


def _sample(measuring: Measuring, calls: Ints, flips: Ints, sample: int, all_up_to: int) -> Ints:
    """Return every decision, or a sample: the first, the last, flips, decisions with empty windows, the rest evenly."""
    if len(calls) <= all_up_to:
        return calls
    evidence_ms = measuring.evidence_ms[calls]
    window_ms = measuring.settings.longest_window_ms
    ends = np.sort(measuring.timeline.attempts.ts_ms, kind="stable")  # fast where they are nearly in order
    recent = np.searchsorted(ends, evidence_ms) - np.searchsorted(ends, evidence_ms - window_ms)
    flipped = np.zeros(len(measuring.timeline.calls), dtype=np.bool_)
    flipped[flips] = True
    picked = {
        int(calls[0]),
        int(calls[-1]),
        *_evenly(calls[flipped[calls]], round(FLIPS_SHARE * sample)),
        *_evenly(calls[recent == 0], round(EMPTY_SHARE * sample)),
    }
    picked |= set(_evenly(calls, max(0, sample - len(picked))))
    return np.array(sorted(picked), dtype=np.int64)


def _evenly(values: Ints, count: int) -> list[int]:
    if len(values) > count:
        values = values[np.linspace(0, len(values) - 1, count).round().astype(np.int64)]
    picked: list[int] = values.tolist()
    return picked
