"""Prequential figures: every rule's prediction of an attempt, then what the attempt did.

Two questions, never mixed. *At the attempt*: predicted at the instant the attempt began. *As read*: predicted at
the call's evidence instant, as the router reads it: without a stamp the success rate is the field's default, 1,
and the latency has none. Attempts whose start is unknown are scored apart (*start unknown*), and attempts that
belong to no known call are counted apart (*call unknown*): for them "as read" cannot be said.

Only routes that the recorded policy chose are scored: a rule that would have sent requests elsewhere is judged on
the recorded routes all the same.

Every sum is `math.fsum` over per-row losses: exactly rounded, so no figure depends on the order of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from analysis.frames import require_columns
from analysis.intervals import REPLICATES, Interval, block_bootstrap, block_length_ms
from replay.errors import NotComparableError, ReplayError

AT_ATTEMPT, AS_READ, START_UNKNOWN, CALL_UNKNOWN = "at the attempt", "as read", "start unknown", "call unknown"
BRIER, LOG_LOSS, LATENCY = "brier", "log loss", "log latency error"
METRICS = (BRIER, LOG_LOSS, LATENCY)
PINBALL = "pinball loss"
"""Beside `METRICS`, for settings whose latency rule is a quantile; frames name it by `pinball`."""
ALL = "all"
BOTH_STAMPED, OVER_ALL = "both stamped", "all"
CLIP = 1e-6
SUCCESS_DEFAULT = 1.0
MEASURED_SHARE = 0.5

PREDICTIONS_SCHEMA: dict[str, Any] = {
    "setting": pl.String,
    "attempt_id": pl.Int64,
    "route_key": pl.String,
    "ts_ms": pl.Int64,
    "start_ms": pl.Int64,
    "ok": pl.Boolean,
    "latency_ms": pl.Float64,
    "p_start": pl.Float64,
    "latency_start_ms": pl.Float64,
    "p_read": pl.Float64,
    "latency_read_ms": pl.Float64,
    "read_known": pl.Boolean,
}
"""The columns of a predictions frame that are read here; it may have others."""

FIGURES_SCHEMA: dict[str, Any] = {
    "question": pl.String,
    "metric": pl.String,
    "scope": pl.String,
    "setting": pl.String,
    "value": pl.Float64,
    "attempts": pl.Int64,
    "unscored": pl.Int64,
    "stamped_share": pl.Float64,
    "clipped_share": pl.Float64,
}

DIFFERENCES_SCHEMA: dict[str, Any] = {
    "question": pl.String,
    "metric": pl.String,
    "over": pl.String,
    "scope": pl.String,
    "setting_a": pl.String,
    "setting_b": pl.String,
    "value_a": pl.Float64,
    "value_b": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "attempts": pl.Int64,
    "blocks": pl.Int64,
    "reason": pl.String,
}

# question → (which attempts it can be asked of, success prediction, latency prediction)
_NO_PREDICTION = pl.lit(None, dtype=pl.Float64)
_QUESTIONS: dict[str, tuple[pl.Expr, pl.Expr, pl.Expr]] = {
    AT_ATTEMPT: (pl.col("start_ms").is_not_null(), pl.col("p_start"), pl.col("latency_start_ms")),
    AS_READ: (pl.col("read_known").fill_null(False), pl.col("p_read"), pl.col("latency_read_ms")),
    START_UNKNOWN: (pl.col("start_ms").is_null(), pl.col("p_start"), pl.col("latency_start_ms")),
    CALL_UNKNOWN: (~pl.col("read_known").fill_null(False), _NO_PREDICTION, _NO_PREDICTION),
}


def pinball(q: float) -> str:
    """Return the name of the pinball loss of a quantile: those of different quantiles are different metrics.

    >>> pinball(0.95)
    'pinball loss (q = 0.95)'
    """
    return f"{PINBALL} (q = {q:g})"


def score(predictions: pl.DataFrame, quantiles: Mapping[str, float] | None = None) -> pl.DataFrame:
    """Return the prequential figures of every setting, overall and per route.

    In: one row per (setting, attempt) with the columns of `PREDICTIONS_SCHEMA`: `ts_ms` the attempt's end,
    `start_ms` null where unknown, `p_*` in [0, 1] or null without a stamp, latencies in ms. `quantiles`: for each
    setting whose latency rule is a quantile, its q.

    Out: one row per question, metric, scope ("all" or a route key) and setting, sorted by these:

    - `value`: Brier = mean (p − y)²; log loss = mean −ln p̂(y), p̂ clipped to [10⁻⁶, 1 − 10⁻⁶]; log latency error =
      mean |ln predicted − ln actual| over successful attempts whose actual latency is above 0. Null: nothing scored.
      Pinball loss, named by `pinball` and for settings in `quantiles` alone: over the same attempts the mean of q·d
      where d ≥ 0, else of (q − 1)·d, d = ln actual − ln predicted (Koenker and Bassett, "Regression quantiles",
      Econometrica 46 (1978)).
      The true quantile minimises it, of ln latency as of latency; at q = ½ it is half the log latency error.
    - `attempts`: scored. `unscored`: asked, but without a usable prediction.
    - `stamped_share`: stamped ÷ asked (for latency: of the successful attempts with a latency).
    - `clipped_share`: of the log loss, the share of scored attempts whose prediction hit the clip.

    "As read" scores an attempt without a stamp as the field's default, 1; its latency is then unscorable and
    counted. "Start unknown" and "call unknown" appear only where there are such attempts.

    Raises ReplayError on a missing column, a doubled (setting, attempt) or a prediction outside [0, 1].
    """
    _check(predictions)
    rows: list[dict[str, Any]] = []
    asked_q = quantiles or {}
    settings = predictions["setting"].unique().sort().to_list()
    for question in _QUESTIONS:
        losses = _losses(predictions, question, asked_q)
        for setting in settings:
            mine = losses.filter(pl.col("setting") == setting)
            if mine.is_empty() and question in (START_UNKNOWN, CALL_UNKNOWN):
                continue
            named = {metric: metric for metric in METRICS}
            if setting in asked_q:
                named[PINBALL] = pinball(asked_q[setting])
            for scope, part in _scopes(mine):
                head = {"question": question, "scope": scope, "setting": setting}
                rows += [{**head, "metric": name, **_figure(part, question, m)} for m, name in named.items()]
    return pl.DataFrame(rows, schema=FIGURES_SCHEMA)


def differences(
    predictions: pl.DataFrame,
    base_setting: str,
    other_settings: Sequence[str],
    *,
    window_ms: int = 15 * 60_000,
    replicates: int = REPLICATES,
    seed: int = 0,
    interval_routes: int = 20,
    quantiles: Mapping[str, float] | None = None,
) -> pl.DataFrame:
    """Return paired differences between `base_setting` (a) and each other setting (b).

    In: as for `score`. `window_ms` is the longest measurement window of the settings compared: the bootstrap's
    blocks are max(1 h, window) long. `interval_routes`: the routes (most attempts first) that may get an interval.
    `quantiles`: as for `score`; pinball losses are compared where both settings predict the same quantile.

    Out: one row per question, metric, `over`, scope and pair. `over` is "both stamped" (only attempts that both
    settings stamped) or, as read, also "all" (an attempt without a stamp counts as the default; latency has no
    default, so it has no such row). `value_a`, `value_b`: both means over the same attempts. `difference` = a − b:
    below 0, a predicts better. `low`, `high`: 95 % interval (null: see `reason`). `blocks`: those that hold data.

    Raises ReplayError on an unknown setting, and NotComparableError when two settings predict different attempts.
    """
    _check(predictions)
    known = set(predictions["setting"].unique().to_list())
    for setting in (base_setting, *other_settings):
        if setting not in known:
            raise ReplayError(
                f"A difference was asked for setting {setting!r}; the predictions hold {sorted(known)}. "
                "Give one of these."
            )
    bootstrap = {"block_ms": block_length_ms(window_ms), "replicates": replicates, "seed": seed}
    rows: list[dict[str, Any]] = []
    asked_q = quantiles or {}
    for question in (AT_ATTEMPT, AS_READ):
        losses = _losses(predictions, question, asked_q)
        for other in other_settings:
            pairs = _pairs(losses, base_setting, other)
            alike = base_setting in asked_q and asked_q[base_setting] == asked_q.get(other)
            head = {"question": question, "setting_a": base_setting, "setting_b": other}
            for place, (scope, part) in enumerate(_scopes(pairs)):
                for metric, over, scored in _paired_metrics(part, question, alike):
                    spread = bootstrap if place <= interval_routes else None
                    named = {"metric": pinball(asked_q[other]) if metric == PINBALL else metric, "over": over}
                    rows.append({**head, "scope": scope, **named, **_difference(scored, metric, spread)})
    return pl.DataFrame(rows, schema=DIFFERENCES_SCHEMA)


def stamped_line(figures: pl.DataFrame) -> str:
    """Return the first line of every report: the share of attempts stamped, per question and setting.

    In: the frame `score` returns.

    >>> stamped_line(pl.DataFrame(schema=FIGURES_SCHEMA))
    'Stamped: nothing to score.'
    """
    mine = figures.filter((pl.col("metric") == BRIER) & (pl.col("scope") == ALL))
    parts = []
    for question in (AT_ATTEMPT, AS_READ):
        said = [
            f"{row['setting']} {percent(row['stamped_share'])}"
            for row in mine.filter(pl.col("question") == question).iter_rows(named=True)
            if row["stamped_share"] is not None
        ]
        if said:
            parts.append(f"{question} {', '.join(said)}")
    for question in (START_UNKNOWN, CALL_UNKNOWN):
        apart = mine.filter(pl.col("question") == question)
        if not apart.is_empty():
            asked = apart.select((pl.col("attempts") + pl.col("unscored")).max()).item()
            parts.append(f"{question}: {asked} attempts, kept apart")
    return f"Stamped: {'; '.join(parts)}." if parts else "Stamped: nothing to score."


def percent(share: float) -> str:
    """Return a share as a percentage that never rounds to an untrue 0 % or 100 %.

    >>> percent(0.314), percent(1.0), percent(0.99999), percent(0.00001)
    ('31 %', '100 %', '> 99.9 %', '< 0.1 %')
    """
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{share * 100:.0f} %" if 0.1 <= share <= 0.9 or share in (0, 1) else f"{share * 100:.1f} %"


def _check(predictions: pl.DataFrame) -> None:
    """Refuse frames that would give a wrong figure."""
    require_columns(predictions, PREDICTIONS_SCHEMA, "predictions", "Use the predictions frame of a run folder.")
    doubled = predictions.filter(pl.struct("setting", "attempt_id").is_duplicated())
    if not doubled.is_empty():
        first = doubled.sort("setting", "attempt_id").row(0, named=True)
        raise ReplayError(
            f"The predictions hold attempt {first['attempt_id']} of setting {first['setting']!r} more than once; "
            "expected one row per setting and attempt. Give each run its own setting name."
        )
    for name in ("p_start", "p_read"):
        column = predictions[name].drop_nulls()
        if not column.is_between(0.0, 1.0).all():
            bad = column.filter(~column.is_between(0.0, 1.0)).sort()[0]
            raise ReplayError(
                f"The predictions hold {name} = {bad}; expected a probability from 0 to 1, or null without a stamp. "
                "Check the estimator that made it."
            )


def _losses(predictions: pl.DataFrame, question: str, quantiles: Mapping[str, float]) -> pl.DataFrame:
    """Return one row per attempt that the question can be asked of, with its losses (null: not scored).

    The logarithms are taken value by value by Polars, never in vector lanes, so a loss depends on its row alone.
    """
    asked, success, latency = _QUESTIONS[question]
    stamped = success.is_not_null()
    p = success.fill_null(SUCCESS_DEFAULT) if question == AS_READ else success
    of_outcome = pl.when("ok").then(p).otherwise(1 - p)
    usable = latency.is_finite() & (latency > 0)
    timed = pl.col("ok") & pl.col("latency_ms").is_finite() & (pl.col("latency_ms") > 0)
    timed = timed.fill_null(False)
    log_short = pl.col("latency_ms").log() - latency.log()
    scored = timed & usable.fill_null(False)
    q = pl.col("setting").replace_strict(dict(quantiles), default=None, return_dtype=pl.Float64)
    frame = predictions.filter(asked).select(
        "setting",
        "attempt_id",
        "route_key",
        "ts_ms",
        stamped.alias("stamped"),
        ((p - pl.col("ok").cast(pl.Float64)) ** 2).alias(BRIER),
        (-of_outcome.clip(CLIP, 1 - CLIP).log()).alias(LOG_LOSS),
        ((p < CLIP) | (p > 1 - CLIP)).alias("clipped"),
        timed.alias("timed"),
        pl.when(scored).then(log_short.abs()).alias(LATENCY),
        pl.when(scored).then(pl.max_horizontal(q * log_short, (q - 1) * log_short)).alias(PINBALL),
    )
    return frame.with_columns(pl.col("route_key").fill_null("")).sort("setting", "attempt_id")


def _scopes(losses: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield ("all", everything), then each route with its attempts, most attempts first, then by key."""
    yield ALL, losses
    parts = losses.partition_by("route_key", as_dict=True)
    for (route,), part in sorted(parts.items(), key=lambda item: (-item[1].height, item[0])):
        yield str(route), part


def _mean(column: pl.Series) -> float | None:
    """Return the exactly rounded mean of the values that are not null, null for none."""
    values = column.drop_nulls().to_list()
    return math.fsum(values) / len(values) if values else None


def _figure(part: pl.DataFrame, question: str, metric: str) -> dict[str, Any]:
    """Return the figure columns of one row of `score`."""
    of_latency = metric in (LATENCY, PINBALL)
    asked = part.filter(pl.col("timed")) if of_latency else part
    scored = asked.filter(pl.col(metric).is_not_null())
    stamped = scored.height if of_latency else int(asked["stamped"].sum())
    askable = asked.height > 0 and question != CALL_UNKNOWN
    return {
        "value": _mean(scored[metric]),
        "attempts": scored.height,
        "unscored": asked.height - scored.height,
        "stamped_share": stamped / asked.height if askable else None,
        "clipped_share": int(scored["clipped"].sum()) / scored.height if metric == LOG_LOSS and scored.height else None,
    }


def _pairs(losses: pl.DataFrame, setting_a: str, setting_b: str) -> pl.DataFrame:
    """Return the attempts with the losses of both settings, b's columns ending in `_b`."""
    a, b = (losses.filter(pl.col("setting") == s).drop("setting") for s in (setting_a, setting_b))
    if a["attempt_id"].to_list() != b["attempt_id"].to_list():
        raise NotComparableError(
            f"Settings {setting_a!r} and {setting_b!r} predict different attempts ({a.height} and {b.height}); a "
            "paired difference needs the same ones. Replay both over the same ledger and slice."
        )
    return a.join(b.drop("route_key", "ts_ms"), on="attempt_id", suffix="_b").sort("attempt_id")


def _paired_metrics(pairs: pl.DataFrame, question: str, alike: bool) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """Yield (metric, over, the attempts it is paired over); `alike`: both settings predict the same quantile."""
    both = pairs.filter(pl.col("stamped") & pl.col("stamped_b"))
    for metric in (BRIER, LOG_LOSS):
        yield metric, BOTH_STAMPED, both
        if question == AS_READ:
            yield metric, OVER_ALL, pairs
    timed = pairs.filter(pl.col(LATENCY).is_not_null() & pl.col(f"{LATENCY}_b").is_not_null())
    yield LATENCY, BOTH_STAMPED, timed
    if alike:
        yield PINBALL, BOTH_STAMPED, timed


def _difference(scored: pl.DataFrame, metric: str, bootstrap: dict[str, int] | None) -> dict[str, Any]:
    """Return the figure columns of one row of `differences`; `bootstrap` None: no interval is asked for."""
    per_attempt = scored[metric] - scored[f"{metric}_b"]
    spread = Interval(None, None, 0, "not among the routes with most attempts")
    if bootstrap is not None:
        times, ones = scored["ts_ms"].to_numpy(), [1.0] * scored.height
        spread = block_bootstrap(times, per_attempt.to_numpy(), ones, **bootstrap)
    return {
        "value_a": _mean(scored[metric]),
        "value_b": _mean(scored[f"{metric}_b"]),
        "difference": _mean(per_attempt),
        "low": spread.low,
        "high": spread.high,
        "attempts": scored.height,
        "blocks": spread.blocks,
        "reason": spread.reason,
    }
