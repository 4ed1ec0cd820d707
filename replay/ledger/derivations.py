"""What the shared SQL derives, as values: which settings it can serve, and its rows as stats and verdicts.

Both ledgers that run the SQL use this, PostgreSQL (`store.py`) and DuckDB (`duck.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from replay import queries
from replay.errors import ReplayError
from replay.estimators import ToolsNever, ToolsWindow, Window
from replay.settings import Measure, Settings
from replay.stamps import RouteStat

Row = Mapping[str, Any]
Asked = tuple[str, dict[str, Any]]
"""A query's name and its values."""

_NOTHING = RouteStat(None, None, 0, 0)


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of a decision's stamps, all in ms; `tools` is None where no tools rule is in force."""

    reliability_ms: int
    latency_ms: int
    tools: ToolsWindow | None

    @classmethod
    def of(cls, settings: Settings) -> Windows:
        """Return the windows of settings that the shared SQL can serve; raises ReplayError for all others.

        >>> Windows.of(Settings())
        Windows(reliability_ms=900000, latency_ms=900000, tools=ToolsWindow(min_samples=20, window_ms=1800000))
        """
        rule = settings.tools.rule
        counted = settings.tools.failed == "counted" and settings.tools.state == "shared"
        if not isinstance(rule, ToolsWindow | ToolsNever) or not counted:
            raise _not_served("tools", settings.tools, "the shared windowed rule with failed attempts counted")
        return cls(
            _window_ms("reliability", settings.reliability),
            _window_ms("latency", settings.latency),
            rule if isinstance(rule, ToolsWindow) else None,
        )

    def asked(self, now_ms: int) -> list[Asked]:
        """Return what has to be asked at an instant: one window for both measures where they share it, the verdict.

        Nothing bounds a window above: a row may lie a little ahead of the reader's clock.

        >>> [name for name, _ in Windows(900_000, 300_000, None).asked(1_000_000)]
        ['route_stats', 'route_stats']
        """
        stats = list(dict.fromkeys((self.reliability_ms, self.latency_ms)))
        asked = [("route_stats", since(now_ms, window_ms)) for window_ms in stats]
        if self.tools is not None:
            values = {**since(now_ms, self.tools.window_ms), "min_samples": self.tools.min_samples}
            asked.append(("tool_incapable_routes", values))
        return asked

    def told(self, answers: list[list[Row]]) -> tuple[dict[str, RouteStat], frozenset[str]]:
        """Return the stats and the tool verdicts of the answers, which are in the order of `asked`."""
        incapable = route_keys(answers[-1]) if self.tools is not None else frozenset[str]()
        reliability = route_stats(answers[0])
        if self.latency_ms == self.reliability_ms:
            return reliability, incapable
        return _merged(reliability, route_stats(answers[1])), incapable


def since(now_ms: int, window_ms: int) -> dict[str, Any]:
    """Return the values of a window that ends nowhere.

    >>> since(1_000, 400)["since_ms"]
    600
    """
    return {"since_ms": now_ms - window_ms, "until_ms": queries.END_OF_TIME}


def route_key(row: Row) -> str:
    """Return the route key of a row that names a route's three parts."""
    return f"{row['provider_id']}|{row['model_family']}|{row['served_by']}"


def route_keys(rows: Iterable[Row]) -> frozenset[str]:
    """Return the routes that rows name."""
    return frozenset(route_key(row) for row in rows)


def route_stats(rows: Iterable[Row]) -> dict[str, RouteStat]:
    """Return the stats by route of the rows of `route_stats`."""
    return {route_key(row): stat(row) for row in rows}


def stat(row: Row) -> RouteStat:
    """Return one row's stats; `latency_ms` is in ms, the counts are attempts."""
    return RouteStat(row["success_rate"], row["latency_ms"], row["count"], row["latency_count"])


def _merged(reliability: Mapping[str, RouteStat], latency: Mapping[str, RouteStat]) -> dict[str, RouteStat]:
    """Take each route's success rate from one window and its latency from another."""
    merged: dict[str, RouteStat] = {}
    for key in sorted(reliability.keys() | latency.keys()):
        rate, speed = reliability.get(key, _NOTHING), latency.get(key, _NOTHING)
        if rate.count or speed.latency_count:
            merged[key] = RouteStat(rate.success_rate, speed.latency_ms, rate.count, speed.latency_count)
    return merged


def _window_ms(name: str, measure: Measure) -> int:
    plain = measure == Measure(rule=measure.rule)
    if isinstance(measure.rule, Window) and plain:
        return measure.rule.window_ms
    raise _not_served(name, measure, "a plain window in shared state")


def _not_served(name: str, given: object, expected: str) -> ReplayError:
    return ReplayError(
        f"settings.{name} is {given}; expected {expected}, which is what the shared SQL derives: take the preset "
        "production-now, or the in-memory ledger"
    )
