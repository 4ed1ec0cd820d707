"""Which rule predicts better, route by route, with intervals."""

from __future__ import annotations

from typing import Any, Literal

import altair as alt
import polars as pl

from analysis.charts import theme as look
from analysis.prequential import ALL, BRIER

TOP_ROUTES = 20
_SIGNED = "datum.value === 0 ? '0' : format(datum.value, '+~g')"
_COLUMNS = ("scope", "question", "metric", "over", "setting_a", "setting_b", "difference", "low", "high", "attempts")
COLUMNS: dict[str, Any] = {
    name: pl.Float64 if name in ("difference", "low", "high") else pl.Int64 if name == "attempts" else pl.String
    for name in _COLUMNS
}
"""The columns of `analysis.prequential.differences` that are drawn."""


def differences(frame: pl.DataFrame, *, width: int = 600, theme: str = "light", top: int = TOP_ROUTES) -> look.AnyChart:
    """Draw the paired prequential difference per route, with its 95 % interval, around the line of no difference.

    Columns: of `analysis.prequential.differences`, for one question, metric, `over` and pair: `scope` ("all" or a
    route key), `question`, `metric`, `over`, `setting_a`, `setting_b`, `difference` (a − b; below 0, a predicts
    better), `low` and `high` (null: no interval), `attempts`. The `top` routes with most attempts are shown.

    >>> frame = pl.DataFrame({"scope": ["all", "p|m|p"], "question": "as read", "metric": "brier", "over": "all",
    ...     "setting_a": "now", "setting_b": "before", "difference": [-0.02, 0.01], "low": [-0.03, None],
    ...     "high": [-0.01, None], "attempts": [40, 10]})
    >>> differences(frame).to_dict()["title"]["text"]
    ['now predicts better than before: Brier score −0.0200 [−0.0300, −0.0100]', 'over all routes']
    """
    frame = look.require(frame, COLUMNS, "differences")
    look.require_width(width)
    scored = frame.filter(pl.col("difference").is_not_null()).sort(
        pl.col("scope") != ALL, "attempts", "scope", descending=[False, True, False]
    )
    if scored.is_empty():
        said = "There is nothing to draw: no attempt was scored under two settings."
        return look.sentence(said, title="No difference can be shown", width=width, theme=theme)
    routes = scored.filter(pl.col("scope") != ALL).height
    shown = scored.head(top + (1 if scored["scope"][0] == ALL else 0))
    title, subtitle = _title(shown), _subtitle(shown, routes, top)
    return look.finish(
        _forest(shown, width, theme),
        title=title,
        subtitle=subtitle,
        alt_text=_alt(shown, title),
        width=width,
        theme=theme,
        plot=(width, 120 + look.ROW_PX * shown.height),
    )


def _judged(row: dict[str, Any]) -> str:
    """Say in a few words what the interval shows."""
    if row["low"] is None:
        return "no interval"
    if row["low"] <= 0 <= row["high"]:
        return "interval holds 0"
    return f"{row['setting_a'] if row['difference'] < 0 else row['setting_b']} better"


def _forest(shown: pl.DataFrame, width: int, theme: str) -> look.AnyChart:
    colours = look.theme_of(theme)
    a, b = shown["setting_a"][0], shown["setting_b"][0]
    names = look.labels([("all routes" if s == ALL else s) for s in shown["scope"]], 38 if width < 900 else 60)
    drawn = shown.select("difference", "low", "high", "attempts").with_columns(
        pl.Series("route", [f"{n} · {k:,}" for n, k in zip(names, shown["attempts"], strict=True)], dtype=pl.String),
        pl.Series("verdict", [_judged(row) for row in shown.to_dicts()], dtype=pl.String),
        pl.Series("key", shown["scope"]),
    )
    order = drawn["route"].to_list()
    marks = {
        f"{a} better": (colours.colours[0], "circle"),
        f"{b} better": (colours.colours[1], "square"),
        "interval holds 0": (colours.text, "diamond"),
        "no interval": (colours.muted, "triangle-up"),
    }
    present = [name for name in marks if name in set(drawn["verdict"])]
    legend = alt.Legend(title=None, columns=look.legend_columns(present, width))
    colour = alt.Color("verdict:N").scale(domain=present, range=[marks[n][0] for n in present]).legend(legend)
    shape = alt.Shape("verdict:N").scale(domain=present, range=[marks[n][1] for n in present]).legend(legend)
    low, high = _domain(drawn)
    x = alt.X("difference:Q").scale(domain=[low, high], nice=False, clamp=True)
    x = x.axis(title=f"difference in {_metric(shown)}, {a} − {b}", tickCount=5, labelExpr=_SIGNED)
    y = alt.Y("route:N").sort(order).axis(title=None, grid=False, labelOverlap=False)
    tooltip = ["key:N", "difference:Q", "low:Q", "high:Q", "attempts:Q", "verdict:N"]
    base = alt.Chart(drawn)
    zero = alt.Chart(pl.DataFrame({"zero": [0.0]})).mark_rule(color=colours.text, strokeDash=[4, 3])
    spans = base.transform_filter("datum.low !== null").mark_rule(strokeWidth=2, clip=True)
    points = base.mark_point(filled=True, size=80, opacity=1)
    beyond = drawn.filter(~pl.col("difference").is_between(low, high)).with_columns(
        pl.col("difference").map_elements(look.signed, return_dtype=pl.String).alias("said")
    )
    return alt.layer(
        zero.encode(x="zero:Q"),
        spans.encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour),
        points.encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip),
        *_beside_the_axis(beyond, y, colours.muted),
        *_directions(a, b, colours.text),
    )


def _beside_the_axis(beyond: pl.DataFrame, y: alt.Y, colour: str) -> list[alt.Chart]:
    """Write the figures of the points that lie outside the axis and are drawn at its end."""
    said = []
    sides: tuple[tuple[pl.Expr, Literal["left", "right"], int], ...] = (
        (pl.col("difference") < 0, "left", 8),
        (pl.col("difference") > 0, "right", -8),
    )
    for outside, align, dx in sides:
        rows = beyond.filter(outside)
        if rows.height:
            marks = alt.Chart(rows).mark_text(align=align, dx=dx, color=colour, fontSize=look.LABEL_PX)
            said.append(marks.encode(x="difference:Q", y=y, text="said:N"))
    return said


def _directions(a: str, b: str, colour: str) -> list[alt.Chart]:
    """Write above the plot which side speaks for which setting."""
    places: tuple[tuple[str, Literal["left", "right"], Any], ...] = (
        (f"← {look.shorten(a, 22)} better", "left", 0),
        (f"{look.shorten(b, 22)} better →", "right", alt.expr("width")),
    )
    return [
        alt.Chart(pl.DataFrame({"said": [text]}))
        .mark_text(align=align, baseline="bottom", dy=-6, color=colour, fontSize=look.LABEL_PX)
        .encode(x=alt.value(at), y=alt.value(0), text="said:N")
        for text, align, at in places
    ]


def _metric(shown: pl.DataFrame) -> str:
    return {BRIER: "Brier score"}.get(shown["metric"][0], str(shown["metric"][0]))


def _domain(drawn: pl.DataFrame) -> tuple[float, float]:
    """Return bounds that hold 0 and every interval; points without one are noise, and do not stretch the axis."""
    sure = drawn.filter(pl.col("low").is_not_null())
    of = sure if sure.height else drawn
    values = [0.0, *(v for name in ("difference", "low", "high") for v in of[name].drop_nulls().to_list())]
    room = 0.12 * (max(values) - min(values)) or 1.0
    return min(values) - room, max(values) + room


def _interval(row: dict[str, Any]) -> str:
    return "" if row["low"] is None else f" [{look.signed(row['low'])}, {look.signed(row['high'])}]"


def _title(shown: pl.DataFrame) -> str:
    row = shown.row(0, named=True)
    a, b = row["setting_a"], row["setting_b"]
    where = "over all routes" if row["scope"] == ALL else f"on {look.labels([row['scope']])[0]}"
    figure = f"{_metric(shown)} {look.signed(row['difference'])}{_interval(row)} {where}"
    verdict = _judged(row)
    if verdict == "no interval":
        return f"Not decided between {a} and {b}, too little data for an interval: {figure}"
    if verdict == "interval holds 0":
        return f"No difference shown between {a} and {b}: {figure}"
    better, worse = (a, b) if row["difference"] < 0 else (b, a)
    return f"{better} predicts better than {worse}: {figure}"


def _subtitle(shown: pl.DataFrame, routes: int, top: int) -> str:
    row = shown.row(0, named=True)
    which = f"the {top} of {routes} routes with most attempts" if routes > top else look.count(routes, "route")
    over = "all attempts, an unstamped one read as the default" if row["over"] == ALL else "attempts both rules stamped"
    return (
        f"Mean {_metric(shown)} of {row['setting_a']} minus {row['setting_b']}, {row['question']}, with 95 % "
        f"intervals; {which}, number of attempts beside each; {over}."
    )


def _alt(shown: pl.DataFrame, title: str) -> str:
    rows = shown.filter(pl.col("scope") != ALL).to_dicts()
    judged = [_judged(row) for row in rows]
    counted = ", ".join(f"{judged.count(name)} {name}" for name in sorted(set(judged)))
    routes = f" Of {look.count(len(rows), 'route')} shown: {counted}." if rows else ""
    return f"Forest plot of differences with a line at zero. {title}.{routes}"
