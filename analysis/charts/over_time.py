"""One route over time: what each rule predicted, on one axis with what happened."""

from __future__ import annotations

import math
from typing import NamedTuple

import altair as alt
import polars as pl

from analysis.charts import theme as look
from analysis.charts import times
from analysis.prequential import SUCCESS_DEFAULT
from analysis.series import OUTCOMES, RULES_OVER_TIME_SCHEMA

_RELIABILITY, _LATENCY = "reliability", "latency"
_FAILED = "bin with a failed attempt"


def reliability(frame: pl.DataFrame, *, width: int = 600, theme: str = "light") -> look.AnyChart:
    """Draw one route's success rate over time as each rule predicted it, over the share that was ok.

    Columns: those of `analysis.series.RULES_OVER_TIME_SCHEMA` (see `rules_over_time`): `route_key`, `series`
    ("recorded" or a setting), `bin_start_ms`, `bin_ms`, `value` (0 to 1, null: none), `attempts`, `failed`, `segment`.

    >>> frame = pl.DataFrame({"route_key": "p|m|p", "series": ["recorded", "now", "before"], "bin_start_ms": 0,
    ...     "bin_ms": 3_600_000, "value": [0.5, 0.9, 0.7], "attempts": 4, "failed": 2, "segment": 0})
    >>> reliability(frame).to_dict()["title"]["text"]
    ['now and before are up to 20 points apart on p|m']
    """
    return _draw(frame, _RELIABILITY, width, theme)


def latency(frame: pl.DataFrame, *, width: int = 600, theme: str = "light") -> look.AnyChart:
    """Draw one route's latency over time as each rule predicted it, over the mean of the successful attempts.

    Columns: as for `reliability`; `value` is in ms, above 0 or null, and drawn on a logarithmic axis.

    >>> frame = pl.DataFrame({"route_key": "p|m|p", "series": ["recorded", "now", "before"], "bin_start_ms": 0,
    ...     "bin_ms": 3_600_000, "value": [500.0, 900.0, 600.0], "attempts": 4, "failed": 2, "segment": 0})
    >>> latency(frame).to_dict()["title"]["text"]
    ['now and before are up to 1.5 times apart on p|m']
    """
    return _draw(frame, _LATENCY, width, theme)


def _draw(frame: pl.DataFrame, kind: str, width: int, theme: str) -> look.AnyChart:
    frame = look.require(frame, RULES_OVER_TIME_SCHEMA, kind)
    look.require_width(width)
    shown = frame.filter(pl.col("value").is_not_null())
    if shown.is_empty():
        said = "There is nothing to draw: " + (
            "this run holds no attempts." if frame.is_empty() else f"no attempt has a {kind} to show."
        )
        return look.sentence(said, title=f"Nothing is known about {kind}", width=width, theme=theme)
    rules = [name for name in frame["series"].unique(maintain_order=True).to_list() if name != OUTCOMES]
    left_out = len(rules) - (look.MAX_CATEGORIES - 1)
    rules = rules[: look.MAX_CATEGORIES - 1]
    shown = shown.filter(pl.col("series").is_in([OUTCOMES, *rules]))
    title = _title(shown, frame, kind, rules)
    subtitle = _subtitle(frame, kind, rules) + (
        f" {look.count(left_out, 'more rule')} not shown." if left_out > 0 else ""
    )
    return look.finish(
        _layers(shown, frame, kind, rules, width, theme),
        title=title,
        subtitle=subtitle,
        alt_text=_alt(shown, frame, kind, title, rules),
        width=width,
        theme=theme,
        plot=(width, 320 + look.legend_px([OUTCOMES * 2, *rules, _FAILED], width)),
    )


def _layers(
    shown: pl.DataFrame, frame: pl.DataFrame, kind: str, rules: list[str], width: int, theme: str
) -> look.AnyChart:
    colours = look.theme_of(theme)
    happened = "recorded: share ok" if kind == _RELIABILITY else "recorded: mean"
    failed = frame.filter((pl.col("series") == OUTCOMES) & (pl.col("failed") > 0))
    drawn = _drawn(shown, happened)
    names = [*drawn["series"].unique(maintain_order=True).to_list(), *([_FAILED] if len(failed) else [])]
    look_of = {
        happened: (colours.muted, "circle"),
        _FAILED: (colours.failed, look.FAILED_SHAPE),
        **{rule: (colours.colours[i], look.SHAPES[i + 1]) for i, rule in enumerate(rules)},
    }
    legend = alt.Legend(title=None, columns=look.legend_columns(names, width), symbolOpacity=1)
    colour = alt.Color("series:N").scale(domain=names, range=[look_of[n][0] for n in names]).legend(legend)
    shape = alt.Shape("series:N").scale(domain=names, range=[look_of[n][1] for n in names]).legend(legend)
    dashes = alt.StrokeDash("series:N").legend(None)
    dashes = dashes.scale(domain=rules, range=[list(look.DASHES[i]) for i in range(len(rules))])
    covered = (*_bounds(frame), int(frame["bin_ms"][0]))
    x = alt.X("at_ms:T").scale(times.utc(*covered)).axis(times.time_axis(*covered, width))
    base = alt.Chart(drawn).encode(x=x, y=_y(drawn, kind))
    tooltip = ["series:N", "bin from (UTC):N", "shown:N", "attempts:Q", "failed:Q"]
    recorded, predicted = alt.datum.series == happened, alt.datum.series != happened
    crowded = drawn["at_ms"].n_unique() > 40
    outcomes = base.transform_filter(recorded).mark_point(filled=True, opacity=0.75, size=42)
    lines = base.transform_filter(predicted).mark_line(strokeWidth=1.8, clip=True)
    points = base.transform_filter(predicted).mark_point(filled=True, opacity=0.9, size=18 if crowded else 40)
    layers: list[alt.Chart] = [
        outcomes.encode(color=colour, shape=shape, tooltip=tooltip),
        lines.encode(color=colour, strokeDash=dashes, detail=["series:N", "segment:N"]),
        points.encode(color=colour, shape=shape, tooltip=tooltip),
    ]
    if len(failed):
        layers.append(_failures(failed, colour, shape))
    return alt.layer(*layers)


def _drawn(shown: pl.DataFrame, happened: str) -> pl.DataFrame:
    """Return what is put into the chart: middles of bins, names, and figures as they are said."""
    return shown.with_columns(
        (pl.col("bin_start_ms") + pl.col("bin_ms") // 2).alias("at_ms"),
        pl.col("series").replace({OUTCOMES: happened}),
        pl.Series("shown", [_figure(v, shown["value"].max()) for v in shown["value"]]),
        pl.Series("bin from (UTC)", [look.instant(t) for t in shown["bin_start_ms"]], dtype=pl.String),
    ).drop("route_key", "bin_start_ms", "bin_ms")


def _bounds(frame: pl.DataFrame) -> tuple[int, int]:
    """Return where the first bin begins and the last one ends."""
    return int(str(frame["bin_start_ms"].min())), int(str(frame["bin_start_ms"].max())) + int(frame["bin_ms"][0])


def _figure(value: float, highest: object) -> str:
    return look.percent(value) if isinstance(highest, float) and highest <= 1 else look.milliseconds(value)


def _y(drawn: pl.DataFrame, kind: str) -> alt.Y:
    if kind == _RELIABILITY:
        scale = alt.Scale(domain=[0, 1], nice=False)
        return alt.Y("value:Q").scale(scale).axis(title="success rate", format=look.SHARE_FORMAT, tickCount=5)
    low, high = float(str(drawn["value"].min())), float(str(drawn["value"].max()))
    low, high = low / 1.5, high * 1.2
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(title="latency (ms, logarithmic)", format=",~r", values=look.ticks_125(low, high))
    return alt.Y("value:Q").scale(scale).axis(axis)


def _failures(failed: pl.DataFrame, colour: alt.Color, shape: alt.Shape) -> alt.Chart:
    """Mark the bins that hold a failed attempt, along the foot of the chart."""
    marks = failed.select(
        (pl.col("bin_start_ms") + pl.col("bin_ms") // 2).alias("at_ms"),
        pl.lit(_FAILED).alias("series"),
        "failed",
        "attempts",
        pl.Series("bin from (UTC)", [look.instant(t) for t in failed["bin_start_ms"]], dtype=pl.String),
    )
    chart = alt.Chart(marks).mark_point(size=30, strokeWidth=1.4, filled=False, yOffset=-6)
    foot = alt.expr("height")
    marked: alt.Chart = chart.encode(
        x="at_ms:T",
        y=alt.value(foot),
        color=colour,
        shape=shape,
        tooltip=["bin from (UTC):N", "failed:Q", "attempts:Q"],
    )
    return marked


class _Apart(NamedTuple):
    """The two rules that are furthest apart in one bin; None: that rule has no figure there."""

    high: str
    low: str
    high_value: float | None
    low_value: float | None
    apart: float
    bin_start_ms: int


def _apart(frame: pl.DataFrame, kind: str, rules: list[str]) -> _Apart | None:
    """Return the two rules that are furthest apart in a bin; None where no bin shows two to compare.

    `apart`: of the success rates as drawn; in a bin where a rule has none, of the bin's means with every attempt
    without a rate being read as 1, as the router does. Of latencies, of the logarithms of those there are.
    """
    happened = frame.filter(pl.col("series") == OUTCOMES).select("bin_start_ms", pl.col("attempts").alias("all"))
    unstamped = (pl.col("all") - pl.col("attempts")).clip(0) / pl.max_horizontal("all", 1)
    rate = pl.col("value").fill_null(SUCCESS_DEFAULT) * (1 - unstamped) + SUCCESS_DEFAULT * unstamped
    rows = frame.filter(pl.col("series").is_in(rules)).join(happened, on="bin_start_ms")
    silent = pl.col("value").is_null().any().over("bin_start_ms")
    read = pl.col("value").log() if kind == _LATENCY else pl.when(silent).then(rate).otherwise("value")
    rows = rows.with_columns(read.alias("read"))
    rows = rows.filter(pl.col("read").is_not_null()).sort("read", "series")
    per_bin = (
        rows.group_by("bin_start_ms")
        .agg(
            (pl.col("read").last() - pl.col("read").first()).alias("apart"),
            pl.col("series", "value").last().name.suffix("_high"),
            pl.col("series", "value").first().name.suffix("_low"),
            pl.len().alias("rules"),
        )
        .filter(pl.col("rules") > 1)
        .sort(pl.col("apart").round(12), "bin_start_ms", descending=[True, False])
    )
    if per_bin.is_empty():
        return None
    row = per_bin.row(0, named=True)
    return _Apart(
        row["series_high"],
        row["series_low"],
        row["value_high"],
        row["value_low"],
        float(row["apart"]),
        int(row["bin_start_ms"]),
    )


def _title(shown: pl.DataFrame, frame: pl.DataFrame, kind: str, rules: list[str]) -> str:
    (route,) = look.labels([shown["route_key"][0]], 60)
    if shown.filter(pl.col("series") != OUTCOMES).is_empty():
        return f"No rule had anything to say about {route}"
    found = _apart(frame, kind, rules)
    if found is None:
        return f"{kind.capitalize()} of {route} as {rules[0]} sees it"
    far = f"{found.apart * 100:.0f} points" if kind == _RELIABILITY else f"{math.exp(found.apart):.1f} times"
    if far in ("0 points", "1.0 times"):
        return f"The rules agree on {route}"
    if found.high_value is None and found.low_value is not None:
        fallen = look.percent(found.low_value, 0)
        return f"{found.high} has no figure while {found.low} falls to {fallen} on {route}"
    high, low = rules if len(rules) == 2 else (found.high, found.low)
    return f"{high} and {low} are up to {far} apart on {route}"


def _subtitle(frame: pl.DataFrame, kind: str, rules: list[str]) -> str:
    recorded = frame.filter(pl.col("series") == OUTCOMES)
    step = int(frame["bin_ms"][0])
    first, end = _bounds(frame)
    attempts = int((recorded["attempts"]).sum())
    what = "mean prediction at the attempt and share ok" if kind == _RELIABILITY else "mean prediction and mean latency"
    of = "attempt" if kind == _RELIABILITY else "successful attempt"
    where = f"per {look.duration(step)}; {look.count(attempts, of)}, bins from {look.span(first, end - 1)}."
    bins = recorded.height
    silent = {
        rule: bins - frame.filter((pl.col("series") == rule) & pl.col("value").is_not_null()).height for rule in rules
    }
    said = ", ".join(f"{rule} in {none} of {look.count(bins, 'bin')}" for rule, none in silent.items() if none)
    read = ", read as 100 %" if kind == _RELIABILITY else ""
    without = f" No figure{read}: {said}." if said else ""
    return f"{what[0].upper()}{what[1:]} {where}{without} Lines break where there is no figure."


def _alt(shown: pl.DataFrame, frame: pl.DataFrame, kind: str, title: str, rules: list[str]) -> str:
    parts = [f"Line chart over time of {kind}. {title}."]
    for name in (OUTCOMES, *rules):
        mine = shown.filter(pl.col("series") == name)
        if mine.is_empty():
            parts.append(f"{name}: no value.")
            continue
        low, high = float(str(mine["value"].min())), float(str(mine["value"].max()))
        said = [look.percent(v) if kind == _RELIABILITY else look.milliseconds(v) for v in (low, high)]
        parts.append(f"{name}: {said[0]} to {said[1]} in {look.count(mine.height, 'bin')}.")
    found = _apart(frame, kind, rules)
    if found is not None and found.apart > 0:
        read = " (no figure, read as 100 %)" if found.high_value is None else ""
        parts.append(f"Furthest apart from {look.instant(found.bin_start_ms)}, {found.high} being higher{read}.")
    failed = int(frame.filter(pl.col("series") == OUTCOMES)["failed"].sum())
    return " ".join([*parts, f"{look.count(failed, 'attempt')} failed."])
