"""What two settings decide differently, and what was recorded: flips, agreement, and the verdict in words.

A decisions frame has one row per (setting, call): `setting`, `call_id`, `decided_ms`, `evidence_ms`,
`recorded_route` and `recorded_first_route` (null where unknown), `chosen_route` (the first of the plan whose
provider is not disabled; null: no candidate), `margin` (first minus second score; null with fewer than two),
`request_class`, and the top three routes with their scores and stamps: `route_1` … `route_3`, and with the same
endings `score`, `success_rate`, `latency_ms`, `price_in`, `price_out` (USD per million tokens). Others are ignored.
"""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from analysis.frames import require_columns
from analysis.intervals import REPLICATES, block_bootstrap, block_length_ms
from analysis.prequential import (
    ALL,
    AS_READ,
    AT_ATTEMPT,
    BOTH_STAMPED,
    BRIER,
    LATENCY,
    MEASURED_SHARE,
    OVER_ALL,
    PINBALL,
    percent,
)
from replay.errors import NotComparableError, ReplayError

TOP = (1, 2, 3)
STAMPS = ("score", "success_rate", "latency_ms", "price_in", "price_out")
TIE_TOLERANCE = 1e-12
FIRST_ATTEMPT_AGREEMENT, FINAL_ROUTE_AGREEMENT = "first-attempt agreement", "final-route agreement"

DECISIONS_SCHEMA: dict[str, Any] = {
    "setting": pl.String,
    "call_id": pl.Int64,
    "decided_ms": pl.Int64,
    "evidence_ms": pl.Int64,
    "recorded_route": pl.String,
    "recorded_first_route": pl.String,
    "chosen_route": pl.String,
    "margin": pl.Float64,
    "request_class": pl.String,
    **{f"route_{i}": pl.String for i in TOP},
    **{f"{stamp}_{i}": pl.Float64 for stamp in STAMPS for i in TOP},
}
"""The columns of a decisions frame that are read here; it may have others."""

SUMMARY_SCHEMA: dict[str, Any] = {
    "setting_a": pl.String,
    "setting_b": pl.String,
    "group": pl.String,
    "key": pl.String,
    "decisions": pl.Int64,
    "flips": pl.Int64,
    "ties": pl.Int64,
    "share": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "blocks": pl.Int64,
    "reason": pl.String,
}

AGREEMENT_SCHEMA: dict[str, Any] = {
    "setting": pl.String,
    "label": pl.String,
    "decisions": pl.Int64,
    "agreed": pl.Int64,
    "share": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "blocks": pl.Int64,
    "reason": pl.String,
}


def flips(
    decisions: pl.DataFrame, setting_a: str, setting_b: str, *, tie_tolerance: float = TIE_TOLERANCE
) -> pl.DataFrame:
    """Return the calls for which two settings choose different routes, in the order of decision.

    Out: `call_id`, `decided_ms`, `evidence_ms`, `request_class`, `recorded_route`, `recorded_first_route`,
    `chosen_a`, `chosen_b` (null: that setting had no candidate), `margin_a`, `margin_b`, `tie` (a margin of either
    setting is below `tie_tolerance`: the flip hangs on candidate order), and per value v of score, success_rate,
    latency_ms, price_in and price_out the four columns `v_a_in_a`, `v_b_in_a`, `v_a_in_b`, `v_b_in_b`: `v_b_in_a`
    is what setting a saw of the route that b chose. Null: no such stamp, or the route was not in the top three.

    Raises ReplayError on missing columns, an unknown setting or a doubled call, NotComparableError when the two
    settings decided different calls.
    """
    pairs = _pairs(decisions, setting_a, setting_b, tie_tolerance).filter("flipped")
    seen = [
        _of_route(stamp, pick, setting).alias(f"{stamp}_{pick}_in_{setting}")
        for stamp in STAMPS
        for setting in ("a", "b")
        for pick in ("a", "b")
    ]
    return pairs.select(
        "call_id",
        pl.col("decided_ms_a").alias("decided_ms"),
        pl.col("evidence_ms_a").alias("evidence_ms"),
        pl.col("request_class_a").alias("request_class"),
        pl.col("recorded_route_a").alias("recorded_route"),
        pl.col("recorded_first_route_a").alias("recorded_first_route"),
        pl.col("chosen_route_a").alias("chosen_a"),
        pl.col("chosen_route_b").alias("chosen_b"),
        "margin_a",
        "margin_b",
        "tie",
        *seen,
    )


def flip_summary(
    decisions: pl.DataFrame,
    setting_a: str,
    setting_b: str,
    causes: pl.DataFrame | None = None,
    *,
    window_ms: int = 15 * 60_000,
    replicates: int = REPLICATES,
    seed: int = 0,
    tie_tolerance: float = TIE_TOLERANCE,
) -> pl.DataFrame:
    """Return how often two settings choose different routes: overall, by cause, request class and day (UTC).

    In: a decisions frame; `causes` with `call_id` and `cause` (one row per flipped call, others are ignored; a
    flip without one is "unknown"). `window_ms`: the longest measurement window, for the bootstrap's blocks.

    Out: one row per `group` ("all", "cause", "request class", "day") and `key`: `decisions` (of the class or day;
    for a cause: all), `flips` without the ties, `ties` (flips whose margin is below the tolerance, counted apart),
    `share` = flips ÷ decisions with its 95 % interval `low`, `high` (null: see `reason`), `blocks` that hold data.

    Raises as `flips`.
    """
    pairs = _pairs(decisions, setting_a, setting_b, tie_tolerance)
    pairs = pairs.with_columns(
        (pl.col("flipped") & ~pl.col("tie")).alias("counted"),
        (pl.col("flipped") & pl.col("tie")).alias("tied"),
        pl.col("request_class_a").fill_null("").alias("request class"),
        pl.from_epoch("decided_ms_a", time_unit="ms").dt.strftime("%Y-%m-%d").alias("day"),
    )
    bootstrap = {"block_ms": block_length_ms(window_ms), "replicates": replicates, "seed": seed}
    head = {"setting_a": setting_a, "setting_b": setting_b}
    rows = [{**head, "group": "all", "key": "all", **_flip_share(pairs, bootstrap)}]
    if causes is not None:
        caused = _with_cause(pairs, causes)
        for cause in caused.filter("flipped")["cause"].unique().sort().to_list():
            mine = pl.col("cause") == cause
            of_cause = caused.with_columns(pl.col("counted") & mine, pl.col("tied") & mine)
            rows.append({**head, "group": "cause", "key": cause, **_flip_share(of_cause, bootstrap)})
    for group in ("request class", "day"):
        for (key,), part in sorted(pairs.partition_by(group, as_dict=True).items()):
            rows.append({**head, "group": group, "key": str(key), **_flip_share(part, bootstrap)})
    return pl.DataFrame(rows, schema=SUMMARY_SCHEMA)


def agreement(
    decisions: pl.DataFrame, *, window_ms: int = 15 * 60_000, replicates: int = REPLICATES, seed: int = 0
) -> pl.DataFrame:
    """Return per setting how often its choice is the route that was recorded.

    Out: one row per `setting` and `label`: "first-attempt agreement" where the first attempt of the call is known
    (`recorded_first_route`), "final-route agreement" where only the final route is (no request id: a fallback may
    hide the first choice), the two never mixed; `decisions`, `agreed`, `share` with its 95 % interval as in
    `flip_summary`. Calls without any recorded route are left out.

    Raises ReplayError on missing columns or a doubled call.
    """
    _check(decisions)
    bootstrap = {"block_ms": block_length_ms(window_ms), "replicates": replicates, "seed": seed}
    first_known = pl.col("recorded_first_route").is_not_null()
    rows = []
    for (setting,), mine in sorted(decisions.partition_by("setting", as_dict=True).items()):
        for label, known, column in (
            (FIRST_ATTEMPT_AGREEMENT, first_known, "recorded_first_route"),
            (FINAL_ROUTE_AGREEMENT, ~first_known & pl.col("recorded_route").is_not_null(), "recorded_route"),
        ):
            part = mine.filter(known)
            if part.is_empty():
                continue
            agreed = part["chosen_route"].eq_missing(part[column])
            counts = {"setting": setting, "label": label, "decisions": part.height, "agreed": int(agreed.sum())}
            rows.append({**counts, **_share(part["decided_ms"], agreed, bootstrap)})
    return pl.DataFrame(rows, schema=AGREEMENT_SCHEMA)


STANDING = (
    "Only routes that the recorded policy chose are scored; what other routes would have done is not in the ledger."
)
"""Said with every figure."""


def verdict(
    figures: pl.DataFrame,
    differences: pl.DataFrame,
    summary: pl.DataFrame | None = None,
    agreed: pl.DataFrame | None = None,
) -> list[str]:
    """Return the result in short sentences, the leading one first: Brier, latency, flips, agreement, the limits.

    In: the frames of `prequential.score`, `prequential.differences`, `flip_summary` and `agreement`. A sentence
    says "predicts better" only where the interval excludes 0, "no difference shown" where it holds 0, and "mostly
    unmeasured" where under half of the attempts were stamped under either setting.
    """
    said = []
    for question, metric, over in (
        (AS_READ, BRIER, OVER_ALL),
        (AT_ATTEMPT, BRIER, BOTH_STAMPED),
        (AS_READ, LATENCY, BOTH_STAMPED),
        (AT_ATTEMPT, LATENCY, BOTH_STAMPED),
    ):
        rows = differences.filter(
            (pl.col("question") == question)
            & (pl.col("metric") == metric)
            & (pl.col("over") == over)
            & (pl.col("scope") == ALL)
        )
        for row in rows.iter_rows(named=True):
            said.append(_latency_judged(row, figures, differences) if metric == LATENCY else _judged(row, figures))
    if summary is not None:
        said += [_flips_said(row, summary) for row in summary.filter(pl.col("group") == "all").iter_rows(named=True)]
    if agreed is not None:
        for row in agreed.iter_rows(named=True):
            said.append(
                f"{row['label']} of {row['setting']}: {percent(row['share'])} of {row['decisions']:,} decisions"
                f"{_between(row, share=True)}."
            )
    return [*said, STANDING]


def _latency_judged(row: dict[str, Any], figures: pl.DataFrame, differences: pl.DataFrame) -> str:
    """Judge rules of latency by what they predict: a quantile by its pinball loss, and unlike figures not at all."""
    a, b = row["setting_a"], row["setting_b"]
    losses = dict(figures.filter(pl.col("metric").str.starts_with(PINBALL)).select("setting", "metric").iter_rows())
    if losses.get(a) != losses.get(b):
        return f"latency is not compared {row['question']}: the rules of {a} and {b} predict different figures of it."
    pair = {"question": row["question"], "scope": ALL, "setting_a": a, "setting_b": b}
    of_quantile = differences.filter(metric=losses[a], **pair) if a in losses else pl.DataFrame()
    return _judged(of_quantile.row(0, named=True) if len(of_quantile) else row, figures)


def _judged(row: dict[str, Any], figures: pl.DataFrame) -> str:
    """Return one sentence on one paired difference."""
    what = f"{row['metric'].capitalize()} {row['question']}"
    a, b = row["setting_a"], row["setting_b"]
    if row["difference"] is None:
        return f"{what}: nothing to compare, {a} and {b} have no scored attempt in common."
    digits = _decimals(row["difference"], row["low"], row["high"])
    figure = (
        f"{row['metric'].capitalize()} {row['value_a']:.{digits}f} vs {row['value_b']:.{digits}f}, "
        f"difference {_signed(row['difference'], digits)}{_between(row, digits)}, {row['attempts']:,} attempts"
    )
    thin = _thinly_stamped(figures, row)
    if thin:
        return f"mostly unmeasured {row['question']}: only {thin}; {figure}."
    if row["low"] is None:
        return f"not decided between {a} and {b} {row['question']} ({row['reason']}): {figure}."
    if row["low"] <= 0 <= row["high"]:
        return f"no difference shown between {a} and {b} {row['question']}: {figure}."
    better, worse = (a, b) if row["difference"] < 0 else (b, a)
    return f"{better} predicts better than {worse} {row['question']}: {figure} ({a} vs {b})."


def _thinly_stamped(figures: pl.DataFrame, row: dict[str, Any]) -> str:
    """Say which of the two settings stamped under half of the attempts, or nothing."""
    mine = figures.filter(
        (pl.col("question") == row["question"])
        & (pl.col("metric") == row["metric"])
        & (pl.col("scope") == row["scope"])
        & (pl.col("stamped_share") < MEASURED_SHARE)
    )
    shares = dict(mine.select("setting", "stamped_share").iter_rows())
    low = [s for s in (row["setting_a"], row["setting_b"]) if s in shares]
    first, *rest = [f"{percent(shares[s])} of attempts were stamped under {s}" for s in low] or [""]
    return " and ".join([first, *(text.replace(" of attempts were stamped", "") for text in rest)])


def _flips_said(row: dict[str, Any], summary: pl.DataFrame) -> str:
    """Return the sentence on flips, with their causes where known."""
    pair = (pl.col("setting_a") == row["setting_a"]) & (pl.col("setting_b") == row["setting_b"])
    causes = summary.filter(pair & (pl.col("group") == "cause")).sort(["flips", "key"], descending=[True, False])
    by_cause = ", ".join(f"{c['key']} {c['flips']:,}" for c in causes.iter_rows(named=True) if c["flips"])
    ties = f"; {row['ties']:,} more are ties" if row["ties"] else ""
    return (
        f"{row['setting_a']} and {row['setting_b']} choose different routes in {row['flips']:,} of "
        f"{row['decisions']:,} decisions, {percent(row['share'])}{_between(row, share=True)}{ties}"
        f"{f' (by cause: {by_cause})' if by_cause else ''}."
    )


def _between(row: dict[str, Any], digits: int = 3, *, share: bool = False) -> str:
    """Write the interval in brackets, or nothing where there is none."""
    if row["low"] is None:
        return ""
    if share:
        return f" [{percent(row['low'])}, {percent(row['high'])}]"
    return f" [{_signed(row['low'], digits)}, {_signed(row['high'], digits)}]"


def _signed(value: float, digits: int) -> str:
    """Write a number with a true minus sign, and zero without any."""
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def _decimals(*values: float | None) -> int:
    """Return the decimals that show two digits of the largest value, at least 3 and at most 8."""
    largest = max((abs(v) for v in values if v is not None), default=0.0)
    return min(8, max(3, 1 - math.floor(math.log10(largest)))) if largest else 3


def _check(decisions: pl.DataFrame) -> None:
    """Refuse frames that would give a wrong count."""
    require_columns(decisions, DECISIONS_SCHEMA, "decisions", "Use the decisions frame of a run folder.")
    doubled = decisions.filter(pl.struct("setting", "call_id").is_duplicated()).sort("setting", "call_id")
    if not doubled.is_empty():
        first = doubled.row(0, named=True)
        raise ReplayError(
            f"The decisions hold call {first['call_id']} of setting {first['setting']!r} more than once; expected one "
            "row per setting and call. Give each run its own setting name."
        )


def _pairs(decisions: pl.DataFrame, setting_a: str, setting_b: str, tie_tolerance: float) -> pl.DataFrame:
    """Return one row per call with both settings' columns (ending in _a and _b), `flipped` and `tie`."""
    _check(decisions)
    sides = []
    for setting, end in ((setting_a, "_a"), (setting_b, "_b")):
        side = decisions.filter(pl.col("setting") == setting).select(list(DECISIONS_SCHEMA)).drop("setting")
        if side.is_empty():
            known = decisions["setting"].unique().sort().to_list()
            raise ReplayError(
                f"There are no decisions of setting {setting!r}; the frame holds {known}. Give one of these."
            )
        sides.append(side.sort("call_id").rename({name: name + end for name in side.columns if name != "call_id"}))
    a, b = sides
    if a["call_id"].to_list() != b["call_id"].to_list():
        raise NotComparableError(
            f"Settings {setting_a!r} and {setting_b!r} decided different calls ({a.height} and {b.height}); flips need "
            "the same ones. Replay both over the same ledger and slice."
        )
    close = [(pl.col(f"margin_{end}").abs() < tie_tolerance).fill_null(False) for end in ("a", "b")]
    return (
        a.join(b, on="call_id")
        .with_columns(
            pl.col("chosen_route_a").ne_missing(pl.col("chosen_route_b")).alias("flipped"),
            (close[0] | close[1]).alias("tie"),
        )
        .sort("decided_ms_a", "call_id")
    )


def _of_route(stamp: str, pick: str, setting: str) -> pl.Expr:
    """Return what `setting` (a or b) saw of the route that `pick` (a or b) chose, if in its top three."""
    chosen = pl.col(f"chosen_route_{pick}")
    found = pl.lit(None, dtype=pl.Float64)
    for place in reversed(TOP):
        here = pl.col(f"route_{place}_{setting}") == chosen
        found = pl.when(here).then(pl.col(f"{stamp}_{place}_{setting}")).otherwise(found)
    return found


def _with_cause(pairs: pl.DataFrame, causes: pl.DataFrame) -> pl.DataFrame:
    """Join the cause of each flip; a cause for a call that did not flip says nothing."""
    if not {"call_id", "cause"} <= set(causes.columns) or causes["call_id"].is_duplicated().any():
        raise ReplayError(
            f"The causes have the columns {causes.columns}; expected call_id and cause, one row per flipped call. "
            "Use the causes of this very comparison."
        )
    joined = pairs.join(causes.select("call_id", "cause"), on="call_id", how="left")
    return joined.with_columns(pl.col("cause").fill_null("unknown")).sort("decided_ms_a", "call_id")


def _flip_share(pairs: pl.DataFrame, bootstrap: dict[str, int]) -> dict[str, Any]:
    """Return the figure columns of one row of `flip_summary`."""
    counts = {"decisions": pairs.height, "flips": int(pairs["counted"].sum()), "ties": int(pairs["tied"].sum())}
    return {**counts, **_share(pairs["decided_ms_a"], pairs["counted"], bootstrap)}


def _share(time_ms: pl.Series, hits: pl.Series, bootstrap: dict[str, int]) -> dict[str, Any]:
    """Return the share of hits with its interval; both count columns are integers, so the share is exact."""
    spread = block_bootstrap(time_ms.to_numpy(), hits.cast(pl.Float64).to_numpy(), [1.0] * len(hits), **bootstrap)
    share = int(hits.sum()) / len(hits) if len(hits) else None
    return {"share": share, "low": spread.low, "high": spread.high, "blocks": spread.blocks, "reason": spread.reason}
