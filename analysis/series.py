"""The small frames behind charts: predictions, decisions and attempts gathered into bins, routes and classes.

In come the frames of a run's folder and a mirror's attempts; out come at most a few thousand rows, with the columns
that the `*_SCHEMA` constants name. Bins are whole steps of UTC, so the same instant is in the same bin in every
chart of a ledger, and no figure depends on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from analysis.prequential import SUCCESS_DEFAULT
from analysis.tools import (
    EVIDENCE_SCHEMA,
    Failed,
    ToolsRule,
    condemnations,
    emission_rate,
    evidence,
    rule_said,
    silence_chance,
)
from replay.errors import ReplayError

OUTCOMES = "recorded"
TIE, UNKNOWN_CAUSE, OTHER = "tie", "unknown", "other causes"
ALL_ATTEMPTS, REQUESTS, TRAFFIC = "all", "requests", "routes"
BUSY, MIDDLING, QUIET = "busy", "middling", "quiet"
BUSY_SHARE, MIDDLING_SHARE = 0.5, 0.9
MAX_BINS = 112

_MINUTE_MS, _HOUR_MS, _DAY_MS = 60_000, 3_600_000, 86_400_000
BIN_STEPS_MS = (
    *(n * _MINUTE_MS for n in (1, 5, 15, 30)),
    *(n * _HOUR_MS for n in (1, 2, 3, 6, 12)),
    *(n * _DAY_MS for n in (1, 7, 28, 91, 364)),
)

RULES_OVER_TIME_SCHEMA: dict[str, Any] = {
    "route_key": pl.String,
    "series": pl.String,
    "bin_start_ms": pl.Int64,
    "bin_ms": pl.Int64,
    "value": pl.Float64,
    "attempts": pl.Int64,
    "failed": pl.Int64,
    "segment": pl.Int64,
}
FLIPS_OVER_TIME_SCHEMA: dict[str, Any] = {
    "setting_a": pl.String,
    "setting_b": pl.String,
    "bin_start_ms": pl.Int64,
    "bin_ms": pl.Int64,
    "cause": pl.String,
    "flips": pl.Int64,
    "decisions": pl.Int64,
}
STAMPED_SCHEMA: dict[str, Any] = {
    "setting": pl.String,
    "group": pl.String,
    "key": pl.String,
    "routes": pl.Int64,
    "attempts": pl.Int64,
    "stamped": pl.Int64,
    "share": pl.Float64,
}
TOOLS_SCHEMA: dict[str, Any] = {
    "route_key": pl.String,
    "requests": pl.Int64,
    "emitted": pl.Int64,
    "most_silent": pl.Int64,
    "condemned": pl.Int64,
    "condemned_ms": pl.Int64,
    "min_samples": pl.Int64,
    "rule": pl.String,
    "emission_rate": pl.Float64,
    "chance": pl.Float64,
}


def bin_length_ms(first_ms: int, last_ms: int, bins: int = MAX_BINS) -> int:
    """Return the shortest step that covers a span in at most `bins` bins, the longest step where none does.

    >>> bin_length_ms(0, 7 * 86_400_000) // 3_600_000, bin_length_ms(5, 5)
    (2, 60000)
    """
    for step in BIN_STEPS_MS:
        if last_ms // step - first_ms // step < bins:
            return step
    return BIN_STEPS_MS[-1]


def most_disputed_route(predictions: pl.DataFrame, *, latency: bool = False) -> str | None:
    """Return the route about which the rules disagree most, null without attempts.

    That is the largest sum over its attempts of |highest − lowest| among the rules' predictions at the attempt, a
    missing success rate being read as 1, as the router does; for latency, of the logarithms of those there are.
    Without any disagreement it is the route with most attempts. Ties go to the first key.
    """
    value = _latency_at_attempt().log() if latency else pl.col("p_start").fill_null(SUCCESS_DEFAULT)
    per_attempt = predictions.group_by("attempt_id").agg(
        pl.col("route_key").first().fill_null(""), (value.max() - value.min()).fill_null(0.0).alias("apart")
    )
    # Rounded: a sum of doubles depends on its order in the last digits, a choice must not.
    ranked = per_attempt.group_by("route_key").agg(pl.col("apart").sum().round(6), pl.len().alias("attempts"))
    ranked = ranked.sort("apart", "attempts", "route_key", descending=[True, True, False])
    return None if ranked.is_empty() else str(ranked["route_key"][0])


def rules_over_time(
    predictions: pl.DataFrame, *, route: str | None = None, latency: bool = False, bins: int = MAX_BINS
) -> pl.DataFrame:
    """Return one route over time: what happened, and what each rule predicted at the attempts, in bins.

    In: a predictions frame (`analysis.prequential`). `route`: its key; by default `most_disputed_route`.

    Out, one row per `series` ("recorded", then the settings) and bin that holds an attempt of the route:

    - `bin_start_ms`, `bin_ms`: the bin, by the attempt's end;
    - `value`: reliability: the share of attempts that were ok, or the mean predicted success rate; latency: the mean
      in ms of successful attempts with a latency above 0, or the mean prediction. Null: nothing to show;
    - `attempts`: behind the value; `failed`: failed attempts of the bin;
    - `segment`: rises after every bin without a value, where a line breaks.

    Raises ReplayError where the route has no attempts.
    """
    key = most_disputed_route(predictions, latency=latency) if route is None else route
    if key is None:
        return pl.DataFrame(schema=RULES_OVER_TIME_SCHEMA)
    mine = predictions.filter(pl.col("route_key").fill_null("") == key)
    if mine.is_empty():
        raise ReplayError(
            f"The route {route!r} has no attempts in this run; {_routes_said(predictions)} Give one of its routes."
        )
    step = bin_length_ms(*_span(mine["ts_ms"]), bins)
    happened, predicted = pl.col("ok").cast(pl.Float64), pl.col("p_start")
    if latency:
        timed = pl.col("ok") & pl.col("latency_ms").is_finite() & (pl.col("latency_ms") > 0)
        happened, predicted = pl.when(timed).then(pl.col("latency_ms")), _latency_at_attempt()
    once = mine.filter(pl.col("setting") == mine["setting"].sort()[0]).with_columns(series=pl.lit(OUTCOMES))
    settings = predictions["setting"].unique(maintain_order=True).to_list()
    parts = [_binned(once, happened, step)]
    parts += [_binned(mine.filter(setting=s).with_columns(series=pl.lit(s)), predicted, step) for s in settings]
    return (
        pl.concat(parts).with_columns(route_key=pl.lit(key), bin_ms=pl.lit(step)).select(list(RULES_OVER_TIME_SCHEMA))
    )


def flips_over_time(
    decisions: pl.DataFrame, flips: pl.DataFrame, *, bins: int = MAX_BINS, most_causes: int = 8
) -> pl.DataFrame:
    """Return how many decisions flip per bin of time and cause.

    In: a decisions frame, and one pair's flips (`analysis.decisions.flips`) with `cause`, `setting_a`, `setting_b`;
    a flip on a tie counts under the cause "tie", one without a cause under "unknown".

    Out: one row per bin that holds decisions and per cause that occurs anywhere, zeros included, most flips first and
    ties last, which are no flips: `flips`, and `decisions` of the bin. Causes beyond `most_causes` (ties among them)
    are one, "other causes".
    """
    if decisions.is_empty() or flips.is_empty():
        return pl.DataFrame(schema=FLIPS_OVER_TIME_SCHEMA)
    once = decisions.filter(pl.col("setting") == decisions["setting"].min())
    step = bin_length_ms(*_span(once["decided_ms"]), bins)
    start = (pl.col("decided_ms") // step * step).alias("bin_start_ms")
    known = pl.col("cause").fill_null(UNKNOWN_CAUSE) if "cause" in flips.columns else pl.lit(UNKNOWN_CAUSE)
    named = flips.select(start, pl.when("tie").then(pl.lit(TIE)).otherwise(known).alias("cause"))
    ranked = named.group_by("cause").len().sort("len", "cause", descending=[True, False])["cause"].to_list()
    order, ties = [cause for cause in ranked if cause != TIE], [cause for cause in ranked if cause == TIE]
    most_causes -= len(ties)
    if len(order) > most_causes:
        rest = order[most_causes - 1 :]
        named = named.with_columns(
            pl.when(pl.col("cause").is_in(rest)).then(pl.lit(OTHER)).otherwise("cause").alias("cause")
        )
        order = [*order[: most_causes - 1], OTHER]
    per_bin = once.group_by(start).agg(pl.len().cast(pl.Int64).alias("decisions"))
    order += ties
    causes = pl.DataFrame({"cause": order, "place": range(len(order))}, schema_overrides={"place": pl.Int64})
    counted = named.group_by("bin_start_ms", "cause").agg(pl.len().cast(pl.Int64).alias("flips"))
    return (
        per_bin.join(causes, how="cross")
        .join(counted, on=["bin_start_ms", "cause"], how="left")
        .with_columns(
            pl.col("flips").fill_null(0),
            bin_ms=pl.lit(step, dtype=pl.Int64),
            setting_a=pl.lit(flips["setting_a"][0]),
            setting_b=pl.lit(flips["setting_b"][0]),
        )
        .sort("place", "bin_start_ms")
        .select(list(FLIPS_OVER_TIME_SCHEMA))
    )


def stamped_shares(predictions: pl.DataFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    """Return the share of attempts for which each rule had a success rate, as the router read it, by traffic class.

    In: a predictions frame and the decisions frame of the same run, which knows the calls' request class.

    Out: one row per setting, `group` and `key`. Groups: "all"; "requests", by request class ("unknown" where the
    call is); "routes", by how much traffic they have: routes in the order of their attempts, most first, are *busy*
    until half of all attempts are theirs, then *middling* until nine tenths, the rest *quiet*. `routes`: how many;
    `attempts`: those whose call, and so the instant of reading, is known; `stamped`, `share` = stamped ÷ attempts.
    """
    order = {name: place for place, name in enumerate(predictions["setting"].unique(maintain_order=True))}
    classes = decisions.select("call_id", "request_class").unique("call_id")
    known = predictions.filter(pl.col("read_known").fill_null(False)).with_columns(pl.col("route_key").fill_null(""))
    if known.is_empty():
        return pl.DataFrame(schema=STAMPED_SCHEMA)
    rows = known.join(classes, on="call_id", how="left").join(traffic_classes(known), on="route_key")
    rows = rows.with_columns(pl.col("request_class").fill_null("unknown"), everything=pl.lit(ALL_ATTEMPTS))
    parts = []
    for group, key in ((ALL_ATTEMPTS, "everything"), (REQUESTS, "request_class"), (TRAFFIC, "traffic")):
        counted = rows.group_by("setting", pl.col(key).alias("key")).agg(
            pl.col("route_key").n_unique().cast(pl.Int64).alias("routes"),
            pl.len().cast(pl.Int64).alias("attempts"),
            pl.col("p_read").is_not_null().sum().cast(pl.Int64).alias("stamped"),
        )
        busiest = ["key"] if group == TRAFFIC else ["attempts", "key"]  # busy, middling, quiet is this order already
        parts.append(
            counted.with_columns(group=pl.lit(group), share=pl.col("stamped") / pl.col("attempts")).sort(
                *busiest,
                pl.col("setting").replace_strict(order),
                descending=[*([True] if len(busiest) > 1 else []), False, False],
            )
        )
    return pl.concat(parts).select(list(STAMPED_SCHEMA))


def traffic_classes(predictions: pl.DataFrame) -> pl.DataFrame:
    """Return each route's traffic class (see `stamped_shares`): `route_key`, `traffic`.

    >>> rows = pl.DataFrame({"setting": "now", "route_key": ["a"] * 5 + ["b"] * 3 + ["c"] + ["d"]})
    >>> dict(traffic_classes(rows).iter_rows())
    {'a': 'busy', 'b': 'middling', 'c': 'middling', 'd': 'quiet'}
    """
    once = predictions.filter(pl.col("setting") == predictions["setting"].min())
    counts = once.group_by("route_key").len().sort("len", "route_key", descending=[True, False])
    before = pl.col("len").cum_sum() - pl.col("len")
    share_before = before / pl.col("len").sum()
    traffic = (
        pl.when(share_before < BUSY_SHARE).then(pl.lit(BUSY)).when(share_before < MIDDLING_SHARE).then(pl.lit(MIDDLING))
    )
    return counts.select("route_key", traffic.otherwise(pl.lit(QUIET)).alias("traffic"))


def tools_evidence(
    attempts: pl.DataFrame, rule: ToolsRule, *, failed: Failed = "counted", window_ms: int = 30 * _MINUTE_MS
) -> pl.DataFrame:
    """Return per route asked for tools what a tools rule had to go by, condemned ones first, then most requests.

    In: attempts with the columns of `analysis.tools.ATTEMPTS_SCHEMA`; `window_ms`: over which silence is counted.

    Out: `requests` for tools and attempts that `emitted` a tool call, in the whole ledger; `most_silent`: the most
    tools requests within one window that held no tool call (what the window rule compares with `min_samples`);
    `condemned` times and `condemned_ms` in all under the rule; the rule's `min_samples` and the `rule` in words;
    `emission_rate` p of the capable routes together, and the `chance` (1 − p)ⁿ that a capable route stays silent for
    n = `most_silent` requests (both null where no route ever called a tool).
    """
    asked = evidence(attempts, failed=failed).filter(pl.col("requests") > 0).select(list(EVIDENCE_SCHEMA))
    if asked.is_empty():
        return pl.DataFrame(schema=TOOLS_SCHEMA)
    times = (
        condemnations(attempts, rule, failed=failed)
        .group_by("route_key")
        .agg(pl.len().cast(pl.Int64).alias("condemned"), pl.col("duration_ms").sum().alias("condemned_ms"))
    )
    silent = _most_silent(attempts, failed, window_ms)
    rate = emission_rate(attempts, failed=failed)
    chances = [silence_chance(n, rate) for n in silent["most_silent"]]
    silent = silent.with_columns(pl.Series("chance", chances, dtype=pl.Float64))
    return (
        asked.join(silent, on="route_key", how="left")
        .join(times, on="route_key", how="left")
        .with_columns(
            pl.col("most_silent", "condemned", "condemned_ms").fill_null(0),
            min_samples=pl.lit(rule.min_samples, dtype=pl.Int64),
            rule=pl.lit(rule_said(rule, failed)),
            emission_rate=pl.lit(rate, dtype=pl.Float64),
        )
        .sort("condemned_ms", "requests", "route_key", descending=[True, True, False])
        .select(list(TOOLS_SCHEMA))
    )


def _most_silent(attempts: pl.DataFrame, failed: Failed, window_ms: int) -> pl.DataFrame:
    """Return per route the most tools requests that any window without a tool call held.

    The count rises only when a request enters, and silence begins only when a tool call leaves: the windows that end
    just after either are all that need to be tried.
    """
    parts = [pl.col(name).cast(pl.String).fill_null("") for name in ("provider_id", "model_family", "served_by")]
    flags = [pl.col(name).cast(pl.Boolean).fill_null(False) for name in ("tools_requested", "tool_calls_emitted")]
    counted = attempts.filter(pl.col("ok") | pl.lit(failed == "counted")).filter(flags[0] | flags[1])
    keyed = counted.select(pl.concat_str(parts, separator="|").alias("route_key"), "ts", *flags).sort("route_key", "ts")
    rows = []
    for (key,), part in keyed.partition_by("route_key", as_dict=True, maintain_order=True).items():
        ts = part["ts"].to_numpy()
        ends = np.concatenate([ts, ts + window_ms])
        before = np.searchsorted(ts, ends - window_ms, side="right")
        until = np.searchsorted(ts, ends, side="right")
        sums = [np.concatenate([[0], np.cumsum(part[name].to_numpy())]) for name in part.columns[2:]]
        requests, emitted = (total[until] - total[before] for total in sums)
        rows.append((str(key), int(np.where(emitted == 0, requests, 0).max())))
    return pl.DataFrame(rows, schema={"route_key": pl.String, "most_silent": pl.Int64}, orient="row")


def _latency_at_attempt() -> pl.Expr:
    latency = pl.col("latency_start_ms")
    return pl.when(latency.is_finite() & (latency > 0)).then(latency)


def _span(instants: pl.Series) -> tuple[int, int]:
    return int(instants.min()), int(instants.max())  # type: ignore[arg-type]


def _binned(rows: pl.DataFrame, value: pl.Expr, step: int) -> pl.DataFrame:
    """Return the rows of one series per bin, with the segments of its line."""
    start = (pl.col("ts_ms") // step * step).alias("bin_start_ms")
    # Sorted, so that a mean of doubles is always added in the same order.
    binned = (
        rows.sort("ts_ms", "attempt_id")
        .group_by("series", start, maintain_order=True)
        .agg(
            value.mean().alias("value"),
            value.count().cast(pl.Int64).alias("attempts"),
            (~pl.col("ok")).sum().cast(pl.Int64).alias("failed"),
        )
    )
    shown = pl.when(pl.col("value").is_not_null()).then(pl.col("bin_start_ms"))
    apart = shown - shown.forward_fill().shift(1) > step
    return binned.with_columns(segment=apart.fill_null(False).cum_sum().cast(pl.Int64))


def _routes_said(predictions: pl.DataFrame) -> str:
    counts = predictions.group_by("route_key").len().sort("len", "route_key", descending=[True, False])
    keys: Sequence[str] = [str(key) for key in counts["route_key"].head(3).to_list()]
    return f"it has {counts.height}, the busiest are {', '.join(keys)}." if keys else "it has no attempts at all."
