"""The audit of every run: production's own SQL, unedited, on exactly the rows that a decision could see.

What was visible is known in two ways, by the engine's keys and by the views of `replay.shadow`; they check each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from replay.estimators import ToolsWindow, Window
from replay.measuring import Measuring, Stamps
from replay.settings import PRODUCTION_NOW, Measure, Settings, Tools
from replay.shadow import Shadow
from replay.timeline import Floats, Ints, Timeline

EVERY_DECISION_UP_TO = 2_000
SAMPLE = 500
CONNECTIONS = 2

Say = Callable[[int, int], None]
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


def audit(checked: Measuring, calls: Ints, flips: Iterable[int] = (), say: Say = lambda *_: None) -> Audit:
    """Compare the engine's stamps of every route with the shared SQL, at all given decisions or a sample of them.

    `checked` measures `audited` settings. `say` is told how many decisions are done, and of how many.
    """
    timeline = checked.timeline
    usable = calls[~checked.mute[calls]]
    result = Audit(of_decisions=len(usable))
    routes = np.flatnonzero(np.bincount(timeline.attempts.route, minlength=1)).astype(np.int64)
    if len(usable) == 0 or len(routes) == 0:
        return result
    chosen = _sample(checked, usable, routes, list(flips))
    asked = checked.at_calls(np.repeat(chosen, len(routes)), np.tile(routes, len(chosen)))
    stamps = checked.answer(asked)
    # Twice the longest window, so that a query that reads too far back is seen to.
    with Shadow(checked, (chosen, 2 * checked.settings.longest_window_ms)) as shadow:
        for call, engine, said in zip(
            chosen.tolist(), _stamped(checked, routes, stamps), _said(shadow, chosen, say), strict=True
        ):
            _check(result, checked, call, engine, said)
    result.decisions = len(chosen)
    return result


def _stamped(checked: Measuring, routes: Ints, stamps: Stamps) -> Iterator[dict[str, dict[str, Any]]]:
    """Yield what the engine stamped at each decision, per route key."""
    keys = [checked.timeline.routes[route] for route in routes.tolist()]
    columns = {
        "count": stamps.count.tolist(),
        "rate": _known(stamps.reliability),
        "latency_count": stamps.latency_count.tolist(),
        "mean": _known(stamps.latency_ms),
        "latency_ms": _known(stamps.stamped_latency_ms),
        "capable": stamps.capable.tolist(),
    }
    for first in range(0, len(stamps.count), len(routes)):
        yield {key: {name: values[first + place] for name, values in columns.items()} for place, key in enumerate(keys)}


def _said(shadow: Shadow, calls: Ints, say: Say) -> Iterator[dict[str, dict[str, Any]]]:
    """Yield what production's queries say at each decision; two connections answer, each every other one."""
    shadows = [shadow, *(shadow.twin() for _ in range(CONNECTIONS - 1))]

    def ask(which: int) -> list[dict[str, dict[str, Any]]]:
        answers = []
        for place in range(which, len(calls), CONNECTIONS):
            say(place, len(calls))
            answers.append(_production(shadows[which], int(calls[place])))
        return answers

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        answers = list(pool.map(ask, range(CONNECTIONS)))
    for number in range(len(calls)):
        yield answers[number % CONNECTIONS][number // CONNECTIONS]


def _known(values: Floats) -> list[float | None]:
    known: list[float | None] = values.tolist()
    for place in np.flatnonzero(~np.isfinite(values)).tolist():
        known[place] = None
    return known


def _sample(measuring: Measuring, calls: Ints, routes: Ints, flips: list[int]) -> Ints:
    """Return every decision, or 500: the first, the last, flips, decisions with empty windows, the rest evenly."""
    if len(calls) <= EVERY_DECISION_UP_TO:
        return calls
    evidence_ms = measuring.evidence_ms[calls]
    window_ms = measuring.settings.longest_window_ms
    ends = np.sort(measuring.timeline.attempts.ts_ms)
    recent = np.searchsorted(ends, evidence_ms) - np.searchsorted(ends, evidence_ms - window_ms)
    empty = calls[recent == 0]
    picked = {
        int(calls[0]),
        int(calls[-1]),
        *_evenly(np.intersect1d(np.array(flips, dtype=np.int64), calls), 150),
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
        said.setdefault("|".join(row[:3]), {}).update(mean=_finite(row[4]), latency_ms=row[5], latency_count=row[8])
    seen, since_ms = shadow.without(failed=tools.failed == "excluded"), evidence_ms - tools.rule.window_ms
    least = tools.rule.min_samples
    for row in seen.rows("tool_incapable_routes", since_ms=since_ms, until_ms=until_ms, min_samples=least):
        said.setdefault("|".join(row[:3]), {})["capable"] = False
    return said


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


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
        ours, theirs = _NOTHING | engine.get(route, {}), _NOTHING | said.get(route, {})
        result.comparisons += len(_NOTHING)
        if ours == theirs:
            continue
        for name in _NOTHING:
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
