"""Tools evidence over time: which routes a tools rule condemns, when, on what evidence, and for how long.

In: attempts, one row each, with the columns of `route_observations` named in `ATTEMPTS_SCHEMA` (others are ignored).
A route is its key `provider|family|served_by`; null and empty parts are one. `tools_requested` null reads false.

The rules are those of `replay.estimators`. At an instant t the evidence is every attempt that ended before t
(`ts < t`): under `ToolsWindow` those with `ts ≥ t − window`, which is what the shared query
`tool_incapable_routes(t − window, t, min_samples)` counts; under `ToolsSticky` the count of one process that saw
every attempt and never restarted. `failed="excluded"` leaves failed attempts out altogether.

Instants are integer ms and a verdict can only change when an attempt enters (ts + 1) or leaves (ts + window + 1), so
the intervals found by sweeping over these instants are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from analysis.frames import require_columns
from analysis.prequential import percent
from replay.durations import human, iso
from replay.errors import ReplayError
from replay.estimators import ToolsSticky, ToolsWindow

Failed = Literal["counted", "excluded"]
ToolsRule = ToolsWindow | ToolsSticky
IntArray = npt.NDArray[np.int64]

ATTEMPTS_SCHEMA: dict[str, Any] = {
    "id": pl.Int64,
    "ts": pl.Int64,
    "provider_id": pl.String,
    "model_family": pl.String,
    "served_by": pl.String,
    "ok": pl.Boolean,
    "tools_requested": pl.Boolean,
    "tool_calls_emitted": pl.Boolean,
}

EVIDENCE_SCHEMA: dict[str, Any] = {
    "route_key": pl.String,
    "requests": pl.Int64,
    "failed": pl.Int64,
    "emitted": pl.Int64,
    "emission_rate": pl.Float64,
    "first_ms": pl.Int64,
    "last_ms": pl.Int64,
}

AT_SCHEMA: dict[str, Any] = {
    "route_key": pl.String,
    "requests": pl.Int64,
    "failed": pl.Int64,
    "emitted": pl.Int64,
    "condemned": pl.Boolean,
}

CONDEMNED_SCHEMA: dict[str, Any] = {
    "route_key": pl.String,
    "from_ms": pl.Int64,
    "until_ms": pl.Int64,
    "duration_ms": pl.Int64,
    "open_at_end": pl.Boolean,
    "cleared_by": pl.String,
    "requests": pl.Int64,
    "failed": pl.Int64,
    "emitted_ever": pl.Int64,
    "chance": pl.Float64,
    "time_to_condemn_ms": pl.Int64,
    "silent_before": pl.Int64,
    "silent_during": pl.Int64,
}


def evidence(attempts: pl.DataFrame, *, failed: Failed = "counted") -> pl.DataFrame:
    """Return what the whole ledger says about each route that was asked for tools or called one, by route key.

    Out: `requests` (attempts that asked for tools), `failed` (those of them that failed), `emitted` (attempts with a
    tool call), `emission_rate` = requests answered with a tool call ÷ requests (null without a request), `first_ms`
    and `last_ms` (ms). Raises ReplayError on missing columns.
    """
    per_route = (
        _tools_attempts(attempts, failed)
        .group_by("route_key")
        .agg(
            pl.col("requested").sum().cast(pl.Int64).alias("requests"),
            (pl.col("requested") & ~pl.col("ok")).sum().cast(pl.Int64).alias("failed"),
            pl.col("emitted").sum().cast(pl.Int64),
            (pl.col("requested") & pl.col("emitted")).sum().alias("answered"),
            pl.col("ts").min().alias("first_ms"),
            pl.col("ts").max().alias("last_ms"),
        )
    )
    rate = pl.when(pl.col("requests") > 0).then(pl.col("answered") / pl.col("requests"))
    return per_route.with_columns(rate.alias("emission_rate")).select(list(EVIDENCE_SCHEMA)).sort("route_key")


def emission_rate(attempts: pl.DataFrame, *, failed: Failed = "counted") -> float | None:
    """Return p, the share of tools requests that the capable routes answered with a tool call; null without any.

    A route is capable if it emitted at least one tool call anywhere in the ledger. p is one rate for all of them
    (requests answered ÷ requests, summed over these routes): a route whose own rate is lower stays silent more often.
    """
    capable = evidence(attempts, failed=failed).filter((pl.col("emitted") > 0) & (pl.col("requests") > 0))
    if capable.is_empty():
        return None
    keys = capable["route_key"].to_list()
    mine = _tools_attempts(attempts, failed).filter(pl.col("requested") & pl.col("route_key").is_in(keys))
    return int(mine["emitted"].sum()) / mine.height


def silence_chance(requests: int, rate: float | None) -> float | None:
    """Return (1 − p)ⁿ, the chance that a capable route stays silent for n independent requests at emission rate p.

    >>> silence_chance(20, 0.25)
    0.0031712119389339932
    """
    return None if rate is None else float((1 - rate) ** requests)


def evidence_at(attempts: pl.DataFrame, rule: ToolsRule, at_ms: int, *, failed: Failed = "counted") -> pl.DataFrame:
    """Return what the rule knows of each route at an instant, by route key: only routes with evidence.

    Out: `requests`, `failed` (among them) and `emitted` behind the verdict (window: those inside it; sticky: the
    requests of the running count, and every tool call so far), and `condemned`.
    """
    rows = []
    for route in _routes(_tools_attempts(attempts, failed).filter(pl.col("ts") < at_ms)):
        state = _last_state(route, rule, at_ms)
        if state.requests or state.emitted:
            rows.append({"route_key": route.key, **state._asdict()})
    return pl.DataFrame(rows, schema=AT_SCHEMA)


def condemnations(attempts: pl.DataFrame, rule: ToolsRule, *, failed: Failed = "counted") -> pl.DataFrame:
    """Return every interval during which the rule condemns a route, by (from_ms, route_key).

    Out, one row per interval:

    - `from_ms` (first instant condemned), `until_ms` (first instant not), `duration_ms`; `open_at_end`: the ledger's
      last attempt ends before `until_ms`, so the end supposes that nothing more happened;
    - `cleared_by`: "tool call", "aged out" (window: too few requests left in it) or "expired" (sticky);
    - `requests` and `failed` among them: the evidence at `from_ms` (tool calls among it: 0 by definition);
    - `emitted_ever`: tool calls of the route in the whole ledger: above 0, the rule condemned a capable route;
    - `chance`: (1 − p)ⁿ for n = `requests` and p = `emission_rate`, null where no route is capable;
    - `time_to_condemn_ms`: from the first tools request since the last tool call, or since the previous
      condemnation's end; `silent_before`: tools requests in that time that succeeded without a tool call;
      `silent_during`: those while condemned.
    """
    rate = emission_rate(attempts, failed=failed)
    end_ms = attempts["ts"].max() if attempts.height else None
    rows: list[dict[str, Any]] = []
    for route in _routes(_tools_attempts(attempts, failed)):
        previous_until_ms = None
        found = _window_intervals(route, rule) if isinstance(rule, ToolsWindow) else _sticky_intervals(route, rule)
        for interval in found:
            rows.append(
                {
                    "route_key": route.key,
                    **interval._asdict(),
                    "duration_ms": interval.until_ms - interval.from_ms,
                    "open_at_end": end_ms is not None and interval.until_ms > int(str(end_ms)),
                    "emitted_ever": int(route.emitted.sum()),
                    "chance": silence_chance(interval.requests, rate),
                    **_meanwhile(route, interval, previous_until_ms),
                }
            )
            previous_until_ms = interval.until_ms
    return pl.DataFrame(rows, schema=CONDEMNED_SCHEMA).sort("from_ms", "route_key")


def verdict(attempts: pl.DataFrame, rule: ToolsRule, *, failed: Failed = "counted") -> list[str]:
    """Return in short sentences what the rule does on this ledger, the leading one first."""
    asked = evidence(attempts, failed=failed).filter(pl.col("requests") > 0)
    if asked.is_empty():
        return ["nothing to judge: no attempt says that it asked for tools."]
    found = condemnations(attempts, rule, failed=failed)
    routes = found["route_key"].unique().sort()
    capable = found.filter(pl.col("emitted_ever") > 0)["route_key"].n_unique()
    wrongly = f"; {capable} of them called tools at other times" if capable else ""
    said = [
        f"{routes.len()} of {asked.height} routes asked for tools are condemned by {rule_said(rule, failed)}{wrongly}."
    ]
    for key in routes:
        said.append(_route_said(str(key), found.filter(pl.col("route_key") == key)))
    rate = emission_rate(attempts, failed=failed)
    if rate is None:
        said.append("No route ever called a tool, so the chance of silence cannot be estimated.")
    else:
        chance = silence_chance(rule.min_samples, rate)
        said.append(
            f"A capable route calls a tool in {percent(rate)} of requests; at that rate {rule.min_samples} silent "
            f"requests in a row happen by chance with probability {chance:.2g}."
        )
    if isinstance(rule, ToolsSticky):
        said.append("One process without restarts is assumed: more processes each count alone and condemn later.")
    return said


def rule_said(rule: ToolsRule, failed: Failed) -> str:
    """Say a rule in words.

    >>> rule_said(ToolsWindow(min_samples=20, window_ms=1_800_000), "counted")
    'the window rule (20 silent requests in 30m, failed attempts counted)'
    """
    if isinstance(rule, ToolsWindow):
        return (
            f"the window rule ({rule.min_samples} silent requests in {human(rule.window_ms)}, failed attempts {failed})"
        )
    horizon = human(rule.horizon_ms)
    return f"the sticky rule ({rule.min_samples} silent requests, expiring after {horizon}, failed attempts {failed})"


class _Route(NamedTuple):
    """One route's tools attempts in the order (ts, id)."""

    key: str
    ts: IntArray
    requested: IntArray
    failed: IntArray
    emitted: IntArray
    silent: IntArray


class _State(NamedTuple):
    requests: int
    failed: int
    emitted: int
    condemned: bool


class _Interval(NamedTuple):
    from_ms: int
    until_ms: int
    cleared_by: str
    requests: int
    failed: int


def _tools_attempts(attempts: pl.DataFrame, failed: Failed) -> pl.DataFrame:
    """Return the attempts that asked for tools or called one, with their route key, in the order (route, ts, id)."""
    require_columns(attempts, ATTEMPTS_SCHEMA, "attempts", "Read them from route_observations.")
    if failed not in ("counted", "excluded"):
        raise ReplayError(f"Failed attempts were to be {failed!r}; expected counted or excluded. Give one of these.")
    parts = [pl.col(name).cast(pl.String).fill_null("") for name in ("provider_id", "model_family", "served_by")]
    return (
        attempts.select(
            pl.concat_str(parts, separator="|").alias("route_key"),
            "ts",
            "id",
            "ok",
            pl.col("tools_requested").cast(pl.Boolean).fill_null(False).alias("requested"),
            pl.col("tool_calls_emitted").cast(pl.Boolean).fill_null(False).alias("emitted"),
        )
        .filter((pl.col("requested") | pl.col("emitted")) & (pl.col("ok") | pl.lit(failed == "counted")))
        .sort("route_key", "ts", "id")
    )


def _routes(tools_attempts: pl.DataFrame) -> Iterator[_Route]:
    """Yield each route with its columns as integers, in the order of the keys."""
    silent = pl.col("requested") & pl.col("ok") & ~pl.col("emitted")
    frame = tools_attempts.with_columns((pl.col("requested") & ~pl.col("ok")).alias("failed"), silent.alias("silent"))
    for (key,), part in frame.partition_by("route_key", as_dict=True).items():
        columns = [part[name].cast(pl.Int64).to_numpy() for name in _Route._fields[1:]]
        yield _Route(str(key), *columns)


def _window_intervals(route: _Route, rule: ToolsWindow) -> list[_Interval]:
    """Sweep over the instants at which an attempt enters or leaves the window."""
    enters, leaves = route.ts + 1, route.ts + rule.window_ms + 1
    instants, where = np.unique(np.concatenate([enters, leaves]), return_inverse=True)
    requests, failed, emitted = (
        np.cumsum(_per_instant(where.ravel(), np.concatenate([column, -column]), instants.size))
        for column in (route.requested, route.failed, route.emitted)
    )
    condemned = (requests >= rule.min_samples) & (emitted == 0)
    # The last instant has an empty window, so every start has an end after it.
    starts = np.flatnonzero(condemned & ~np.concatenate([[False], condemned[:-1]]))
    ends = np.flatnonzero(~condemned & np.concatenate([[False], condemned[:-1]]))
    return [
        _Interval(
            int(instants[s]),
            int(instants[e]),
            "tool call" if emitted[e] else "aged out",
            int(requests[s]),
            int(failed[s]),
        )
        for s, e in zip(starts, ends, strict=True)
    ]


def _per_instant(where: npt.NDArray[np.intp], change: IntArray, instants: int) -> IntArray:
    """Return the sum of the changes at each instant, in integers."""
    sums = np.zeros(instants, dtype=np.int64)
    np.add.at(sums, where, change)
    return sums


class _StickyCount(NamedTuple):
    """The state of the sticky rule after every attempt that ended at `ts`."""

    ts: int
    began_ms: int
    requests: int
    failed: int
    emitted: int


def _sticky_counts(route: _Route, rule: ToolsSticky) -> Iterator[_StickyCount]:
    """Fold the attempts in order, as `replay.estimators.ToolsSticky` does; yield the state after each instant."""
    began_ms = requests = failed = emitted = 0
    rows = list(
        zip(route.ts.tolist(), route.requested.tolist(), route.failed.tolist(), route.emitted.tolist(), strict=True)
    )
    for place, (ts, is_request, is_failed, is_emitted) in enumerate(rows):
        emitted += is_emitted
        if is_request:
            if requests >= rule.min_samples and ts >= began_ms + rule.horizon_ms:
                requests = failed = 0
            if requests == 0:
                began_ms = ts
            requests += 1
            failed += is_failed
        if place + 1 == len(rows) or rows[place + 1][0] != ts:
            yield _StickyCount(ts, began_ms, requests, failed, emitted)


def _sticky_intervals(route: _Route, rule: ToolsSticky) -> list[_Interval]:
    """Return the marks: each from its last request until it expires or a tool call proves the route for good."""
    found: list[_Interval] = []
    marked_since = None
    for count in _sticky_counts(route, rule):
        if count.emitted:
            if found and found[-1].until_ms > count.ts + 1:
                found[-1] = found[-1]._replace(until_ms=count.ts + 1, cleared_by="tool call")
            return found
        until_ms = count.began_ms + rule.horizon_ms
        if count.requests >= rule.min_samples and count.ts + 1 < until_ms and marked_since != count.began_ms:
            found.append(_Interval(count.ts + 1, until_ms, "expired", count.requests, count.failed))
            marked_since = count.began_ms
    return found


def _last_state(route: _Route, rule: ToolsRule, at_ms: int) -> _State:
    """Return the verdict at an instant after all attempts of `route`, and the counts behind it."""
    if isinstance(rule, ToolsWindow):
        inside = route.ts >= at_ms - rule.window_ms
        requests, failed, emitted = (int(c[inside].sum()) for c in (route.requested, route.failed, route.emitted))
        return _State(requests, failed, emitted, requests >= rule.min_samples and emitted == 0)
    *_, last = _sticky_counts(route, rule)
    marked = last.requests >= rule.min_samples and at_ms < last.began_ms + rule.horizon_ms
    return _State(last.requests, last.failed, last.emitted, marked and last.emitted == 0)


def _meanwhile(route: _Route, interval: _Interval, previous_until_ms: int | None) -> dict[str, int]:
    """Return the time to condemn and the requests that stayed silent before and during a condemnation."""
    calls = route.ts[(route.emitted > 0) & (route.ts < interval.from_ms)]
    since_ms = int(calls[-1]) + 1 if calls.size else int(route.ts[0])
    if previous_until_ms is not None:
        since_ms = max(since_ms, previous_until_ms)
    before = (route.ts >= since_ms) & (route.ts < interval.from_ms)
    asked = route.ts[before & (route.requested > 0)]
    during = (route.ts >= interval.from_ms) & (route.ts < interval.until_ms)
    return {
        "time_to_condemn_ms": interval.from_ms - (int(asked[0]) if asked.size else interval.from_ms),
        "silent_before": int(route.silent[before].sum()),
        "silent_during": int(route.silent[during].sum()),
    }


def _route_said(key: str, mine: pl.DataFrame) -> str:
    """Return the sentence on one condemned route."""
    first = mine.row(0, named=True)
    times = "once" if mine.height == 1 else f"{mine.height} times"
    ever = "it never called a tool" if not first["emitted_ever"] else f"it called tools {first['emitted_ever']:,} times"
    return (
        f"{key}: {times}, first at {iso(first['from_ms'])} on {first['requests']:,} requests without a tool call "
        f"({first['failed']:,} failed); condemned for {hours(int(mine['duration_ms'].sum()))} in all; {ever}."
    )


def hours(duration_ms: int) -> str:
    """Write a length of time for reading, in seconds, minutes or hours.

    >>> hours(5_000), hours(90_000), hours(3 * 3_600_000 + 360_000)
    ('5.0 s', '1.5 min', '3.1 h')
    """
    if duration_ms < 60_000:
        return f"{duration_ms / 1000:.1f} s"
    if duration_ms < 3_600_000:
        return f"{duration_ms / 60_000:.1f} min"
    return f"{duration_ms / 3_600_000:,.1f} h"
