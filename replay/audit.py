"""The audit of every run: production's own SQL, unedited, on exactly the rows that a decision could see.

What was visible is known in two ways, by the engine's keys and by the views of `replay.shadow`; they check each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from replay.estimators import ToolsWindow, Window
from replay.measuring import Measuring
from replay.settings import PRODUCTION_NOW, Measure, Settings, Tools
from replay.shadow import Shadow
from replay.timeline import Ints, Timeline

EVERY_DECISION_UP_TO = 2_000
SAMPLE = 500
MEAN_TOLERANCE = 1e-9


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


def audit(checked: Measuring, calls: Ints, flips: Iterable[int] = ()) -> Audit:
    """Compare the engine's stamps of every route with the shared SQL, at all given decisions or a sample of them.

    `checked` measures `audited` settings.
    """
    timeline = checked.timeline
    usable = calls[~checked.mute[calls]]
    result = Audit(of_decisions=len(usable))
    routes = np.unique(timeline.attempts.route)
    if len(usable) == 0 or len(routes) == 0:
        return result
    chosen = _sample(checked, usable, routes, list(flips))
    asked = checked.at_calls(np.repeat(chosen, len(routes)), np.tile(routes, len(chosen)))
    stamps = checked.answer(asked)
    latency_ms = stamps.stamped_latency_ms
    with Shadow(checked) as shadow:
        for number, call in enumerate(chosen.tolist()):
            span = slice(number * len(routes), (number + 1) * len(routes))
            engine = {
                timeline.routes[route]: {
                    "count": int(stamps.count[span][place]),
                    "rate": _known(stamps.reliability[span][place]),
                    "latency_count": int(stamps.latency_count[span][place]),
                    "mean": _known(stamps.latency_ms[span][place]),
                    "latency_ms": _known(latency_ms[span][place]),
                    "capable": bool(stamps.capable[span][place]),
                }
                for place, route in enumerate(routes.tolist())
            }
            _check(result, checked, call, engine, _production(shadow, call))
    result.decisions = len(chosen)
    return result


def _known(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _sample(measuring: Measuring, calls: Ints, routes: Ints, flips: list[int]) -> Ints:
    """Return every decision, or 500: the first, the last, flips, decisions with empty windows, the rest evenly."""
    if len(calls) <= EVERY_DECISION_UP_TO:
        return calls
    counts = measuring.timeline.attempts.ts_ms
    evidence_ms = measuring.evidence_ms[calls]
    window_ms = measuring.settings.longest_window_ms
    ends = np.sort(counts)
    recent = np.searchsorted(ends, evidence_ms) - np.searchsorted(ends, evidence_ms - window_ms)
    empty = calls[recent == 0]
    picked = {
        int(calls[0]),
        int(calls[-1]),
        *_evenly(np.array(sorted(set(flips) & set(calls.tolist())), dtype=np.int64), 150),
        *_evenly(empty, 50),
    }
    picked |= set(_evenly(calls, SAMPLE - len(picked)))
    return np.array(sorted(picked), dtype=np.int64)


def _evenly(values: Ints, count: int) -> list[int]:
    if len(values) <= count:
        return [int(value) for value in values]
    places = np.linspace(0, len(values) - 1, count).round().astype(np.int64)
    return [int(values[place]) for place in places]


def _production(shadow: Shadow, call: int) -> dict[str, dict[str, Any]]:
    """Return what production's queries say at a decision, per route key."""
    settings, evidence_ms = shadow.measuring.settings, int(shadow.measuring.evidence_ms[call])
    until_ms = shadow.see_call(call)
    said: dict[str, dict[str, Any]] = {}
    reliability, latency, tools = settings.reliability, settings.latency, settings.tools
    assert isinstance(reliability.rule, Window)
    assert isinstance(latency.rule, Window)
    assert isinstance(tools.rule, ToolsWindow)

    def stats(measure: Measure, window_ms: int) -> list[tuple[Any, ...]]:
        seen = shadow.without(measure.exclude_kinds)
        return seen.rows("route_stats", since_ms=evidence_ms - window_ms, until_ms=until_ms)

    rows = stats(reliability, reliability.rule.window_ms)
    for row in rows:
        said.setdefault("|".join(row[:3]), {}).update(rate=row[3], count=row[6])
    if (latency.rule, latency.exclude_kinds) != (reliability.rule, reliability.exclude_kinds):
        rows = stats(latency, latency.rule.window_ms)
    for row in rows:
        said.setdefault("|".join(row[:3]), {}).update(mean=_known(row[4]), latency_ms=row[5], latency_count=row[8])
    seen, since_ms = shadow.without(failed=tools.failed == "excluded"), evidence_ms - tools.rule.window_ms
    least = tools.rule.min_samples
    for row in seen.rows("tool_incapable_routes", since_ms=since_ms, until_ms=until_ms, min_samples=least):
        said.setdefault("|".join(row[:3]), {})["capable"] = False
    return said


_NOTHING: dict[str, Any] = {
    "count": 0,
    "rate": None,
    "latency_count": 0,
    "mean": None,
    "latency_ms": None,
    "capable": True,
}


def _check(
    result: Audit, measuring: Measuring, call: int, engine: dict[str, dict[str, Any]], said: dict[str, dict[str, Any]]
) -> None:
    """Counts, verdicts and rates exactly; means to 1e-9; the integer exactly unless the mean is next to a half."""
    timeline: Timeline = measuring.timeline
    for route in sorted({*engine, *said}):
        ours, theirs = {**_NOTHING, **engine.get(route, {})}, {**_NOTHING, **said.get(route, {})}
        for name in _NOTHING:
            result.comparisons += 1
            if not _agree(name, ours, theirs):
                result.mismatches.append(
                    f"call {timeline.calls.id[call]}, route {route}: {name} is {ours[name]} in the engine, "
                    f"{theirs[name]} in production's SQL"
                )


def _agree(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    left, right = ours[name], theirs[name]
    if left == right:
        return True
    if left is None or right is None:
        return False
    if name == "mean":
        return bool(abs(left - right) <= MEAN_TOLERANCE * max(abs(left), abs(right)))
    if name == "latency_ms":
        mean = ours["mean"]
        return mean is not None and abs(mean - math.floor(mean) - 0.5) <= MEAN_TOLERANCE * max(1.0, abs(mean))
    return False
