"""What a decision reads from the ledgers, and how it is put on the candidates before they are ranked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from replay.core import Candidate


@dataclass(frozen=True, slots=True)
class RouteStat:
    """What was measured of one route: None says nothing, so the field's default is read.

    `latency_ms` is the mean rounded half to even; `latency_count` is the number of attempts behind it.
    """

    success_rate: float | None
    latency_ms: int | None
    count: int
    latency_count: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """One reading of the ledgers at `at_ms`; `snapshot` says exactly which rows it could see."""

    at_ms: int
    stats: Mapping[str, RouteStat] = field(default_factory=dict)
    tool_incapable: frozenset[str] = frozenset()
    state: Literal["ok", "unavailable"] = "ok"
    snapshot: str | None = None

    @classmethod
    def unavailable(cls, at_ms: int) -> Evidence:
        """The neutral reading after a failed one: nothing measured, every route capable.

        >>> Evidence.unavailable(7).state, Evidence.unavailable(7).stats
        ('unavailable', {})
        """
        return cls(at_ms, state="unavailable")


class Stamps(Protocol):
    """Where a router reads its evidence. Any exception it raises makes all stamps of that decision neutral."""

    def read(self, now_ms: int) -> Evidence:
        """Derive every stamp at an instant, in one reading."""


def stamp(candidates: Iterable[Candidate], evidence: Evidence, hot_route: str | None = None) -> tuple[Candidate, ...]:
    """Return the candidates with what was measured of their routes, in the same order.

    A route without a stat loses any measured field it came with, and so reads the core's default. A route judged
    tool-incapable loses `supports_tools` on its marketplace offers only. The route of the session's latest
    successful call (`hot_route`, a route key) is marked `cache_hot`, for policies that declare that field.

    >>> bare = Candidate(provider_id="p", model_family="m", fields={"price_in": 1.0})
    >>> (stamped,) = stamp([bare], Evidence(0, {"p|m|p": RouteStat(0.5, 120, 4, 2)}))
    >>> stamped.fields["success_rate"], stamped.fields["latency_ms"]
    (0.5, 120)
    """
    stamped = []
    for candidate in candidates:
        route_key = candidate.route_key
        stat = evidence.stats.get(route_key, _NOTHING)
        tools = candidate.tier != "marketplace" or route_key not in evidence.tool_incapable
        measured = candidate.stamped(stat.success_rate, stat.latency_ms, tools)
        if hot_route is not None and route_key == hot_route:
            measured = dataclasses.replace(measured, fields={**measured.fields, "cache_hot": True})
        stamped.append(measured)
    return tuple(stamped)


_NOTHING = RouteStat(None, None, 0, 0)
