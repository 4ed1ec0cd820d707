"""The audit of every run: production's own SQL, unedited, on exactly the rows that a decision could see.

What was visible is known in two ways, by the engine's keys and by the views of `replay.shadow`; they check each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
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

FLIPS_SHARE, EMPTY_SHARE = 0.3, 0.1
"""How much of a sample may be contested decisions, and decisions with nothing in any window."""

_Values = tuple[Any, ...]
"""What is known of a route at a decision, in this order, and what that is without any attempt."""
_NAMES = ("count", "rate", "latency_count", "mean", "latency_ms", "capable")
_NOTHING: _Values = (0, None, 0, None, None, True)


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
    flips: Iterable[int] = (),
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
    chosen = _sample(checked, usable, list(flips), sample, all_up_to)
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


def _stamped(checked: Measuring, routes: Ints, stamps: Stamps) -> Iterator[dict[str, _Values]]:
    """Yield what the engine stamped at each decision, per route key."""
    keys = [checked.timeline.routes[route] for route in routes.tolist()]
    columns = (
        stamps.count.tolist(),
        _known(stamps.reliability),
        stamps.latency_count.tolist(),
        _known(stamps.latency_ms),
        _known(stamps.stamped_latency_ms),
        stamps.capable.tolist(),
    )
    values = list(zip(*columns, strict=True))
    for first in range(0, len(values), len(keys)):
        yield dict(zip(keys, values[first : first + len(keys)], strict=True))


def _said(shadow: Shadow, calls: Ints, say: Say) -> Iterator[dict[str, _Values]]:
    """Yield what production's queries say at each decision; two connections answer, each its half of them."""
    halves = [half for half in np.array_split(calls, CONNECTIONS) if len(half)]
    shadows = [shadow, *(shadow.twin() for _ in halves[1:])]
    done = count()

    def ask(which: int) -> list[dict[str, _Values]]:
        answers = []
        for call in halves[which].tolist():
            say(next(done), len(calls))
            answers.append(_production(shadows[which], call))
        return answers

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for answers in pool.map(ask, range(len(halves))):
            yield from answers


def _known(values: Floats) -> list[float | None]:
    known: list[float | None] = values.tolist()
    for place in np.flatnonzero(~np.isfinite(values)).tolist():
        known[place] = None
    return known


def _sample(measuring: Measuring, calls: Ints, flips: list[int], sample: int, all_up_to: int) -> Ints:
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
    if len(values) <= count:
        return [int(value) for value in values]
    places = np.linspace(0, len(values) - 1, count).round().astype(np.int64)
    return [int(values[place]) for place in places]


def _production(shadow: Shadow, call: int) -> dict[str, _Values]:
    """Return what production's queries say at a decision, per route key."""
    settings, evidence_ms = shadow.measuring.settings, int(shadow.measuring.evidence_ms[call])
    until_ms = shadow.see_call(call)
    reliability, latency, tools = settings.reliability, settings.latency, settings.tools
    assert isinstance(reliability.rule, Window)
    assert isinstance(latency.rule, Window)
    assert isinstance(tools.rule, ToolsWindow)

    def stats(measure: Measure, window_ms: int) -> list[tuple[Any, ...]]:
        seen = shadow.without(measure.exclude_kinds)
        return seen.rows("route_stats", since_ms=evidence_ms - window_ms, until_ms=until_ms)

    counted = timed = stats(reliability, reliability.rule.window_ms)
    if (latency.rule, latency.exclude_kinds) != (reliability.rule, reliability.exclude_kinds):
        timed = stats(latency, latency.rule.window_ms)
    seen, since_ms = shadow.without(failed=tools.failed == "excluded"), evidence_ms - tools.rule.window_ms
    least = tools.rule.min_samples
    silent = seen.rows("tool_incapable_routes", since_ms=since_ms, until_ms=until_ms, min_samples=least)

    said = {"|".join(row[:3]): (row[6], row[3], *_NOTHING[2:]) for row in counted}
    for row in timed:
        key = "|".join(row[:3])
        said[key] = (*said.get(key, _NOTHING)[:2], row[8], _finite(row[4]), row[5], True)
    for row in silent:
        key = "|".join(row[:3])
        said[key] = (*said.get(key, _NOTHING)[:5], False)
    return said


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _check(
    result: Audit, measuring: Measuring, call: int, engine: dict[str, _Values], said: dict[str, _Values]
) -> None:
    """Counts, verdicts and rates exactly; means to 1e-9; the integer exactly unless the mean is next to a half."""
    timeline: Timeline = measuring.timeline
    for route in sorted({*engine, *said}):
        ours, theirs = engine.get(route, _NOTHING), said.get(route, _NOTHING)
        result.comparisons += len(_NAMES)
        if ours == theirs:
            continue
        for name, left, right in zip(_NAMES, ours, theirs, strict=True):
            if not _agree(name, left, right, ours[_NAMES.index("mean")]):
                result.mismatches.append(
                    f"call {timeline.calls.id[call]}, route {route}: {name} is {left} in the engine, "
                    f"{right} in production's SQL"
                )


def _agree(name: str, left: Any, right: Any, mean: float | None) -> bool:
    """Say whether two values of that name are the same, the engine's `mean` being what was rounded."""
    if left == right:
        return True
    if left is None or right is None:
        return False
    if name == "mean":
        return bool(abs(left - right) <= MEAN_TOLERANCE * max(abs(left), abs(right)))
    if name == "latency_ms":
        return mean is not None and abs(mean - math.floor(mean) - 0.5) <= MEAN_TOLERANCE * max(1.0, abs(mean))
    return False
