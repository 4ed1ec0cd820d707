"""What a tools rule has to go by on each route, beside its threshold."""

from __future__ import annotations

import math
from typing import Any, Literal

import altair as alt
import polars as pl

from analysis.charts import theme as look
from analysis.series import TOOLS_SCHEMA

TOP_ROUTES = 20
_COUNTS_SHARE = 0.8  # of the plot; the rest is the column of chances
_REQUESTS, _EMITTED, _SILENT = "requests for tools", "answered with a tool call", "most silent requests in a window"
_CONDEMNED = "condemned"


def tools(frame: pl.DataFrame, *, width: int = 600, theme: str = "light", top: int = TOP_ROUTES) -> look.AnyChart:
    """Draw the tools evidence of each route: requests, tool calls, the longest silence, and the rule's threshold.

    Columns: those of `analysis.series.TOOLS_SCHEMA` (see `tools_evidence`): `route_key`, `requests`, `emitted`,
    `most_silent`, `condemned` (times), `condemned_ms`, `min_samples`, `rule` (in words), `emission_rate` (p) and
    the `chance` of that silence (both null where unknown). The first `top` are shown.

    >>> frame = pl.DataFrame({"route_key": ["p|m|x", "p|m|y"], "requests": [40, 30], "emitted": [0, 20],
    ...     "most_silent": [25, 3], "condemned": [1, 0], "condemned_ms": [60_000, 0], "min_samples": 20,
    ...     "rule": "the window rule",
    ...     "emission_rate": 0.5, "chance": [0.5**25, 0.5**3]})
    >>> tools(frame).to_dict()["title"]["text"]
    ['1 of 2 routes asked for tools is condemned: p|m|x']
    """
    frame = look.require(frame, TOOLS_SCHEMA, "tools")
    look.require_width(width)
    if frame.is_empty():
        said = "There is nothing to draw: no attempt says that it asked for tools, or no setting has a tools rule."
        return look.sentence(said, title="No tools evidence", width=width, theme=theme)
    shown = frame.head(top)
    title = _title(frame)
    return look.finish(
        _rows(shown, width, theme),
        title=title,
        subtitle=_subtitle(frame, top),
        alt_text=_alt(shown, title),
        width=width,
        theme=theme,
        plot=(width, 120 + look.ROW_PX * shown.height),
    )


def _rows(shown: pl.DataFrame, width: int, theme: str) -> look.AnyChart:
    colours = look.theme_of(theme)
    names = look.labels(shown["route_key"].to_list(), 34 if width < 900 else 60)
    marked = [f"× {n}" if times else n for n, times in zip(names, shown["condemned"], strict=True)]
    routes = shown.with_columns(pl.Series("route", marked, dtype=pl.String))
    measures = {_REQUESTS: "requests", _EMITTED: "emitted", _SILENT: "most_silent"}
    drawn = pl.concat(
        routes.select("route", pl.lit(measure).alias("measure"), pl.col(column).alias("count"), "condemned", "chance")
        for measure, column in measures.items()
    )
    looks = {
        _REQUESTS: (colours.muted, "square"),
        _EMITTED: (colours.colours[2], "circle"),
        _SILENT: (colours.colours[1], "diamond"),
    }
    legend = alt.Legend(title=None, columns=look.legend_columns(list(looks), width))
    colour = alt.Color("measure:N").scale(domain=list(looks), range=[c for c, _ in looks.values()]).legend(legend)
    shape = alt.Shape("measure:N").scale(domain=list(looks), range=[s for _, s in looks.values()]).legend(legend)
    threshold = int(shown["min_samples"][0])
    highest = max(int(str(drawn["count"].max())), threshold)
    end = math.expm1(math.log1p(highest) / _COUNTS_SHARE)
    scale = alt.Scale(type="symlog", constant=1, domain=[0, end], nice=False)
    ticks = [0, *(step * 10**power for power in range(7) for step in (1, 3) if step * 10**power <= highest * 1.3)]
    axis = alt.Axis(title="attempts (logarithmic)", values=ticks, format=look.COUNT_FORMAT)
    y = alt.Y("route:N").sort(marked).axis(title=None, grid=True, labelOverlap=False)
    # One inside the other, so that all three are seen where they are equal.
    size = alt.Size("measure:N").scale(domain=list(looks), range=[150, 70, 28]).legend(None)
    line = alt.Chart(pl.DataFrame({"count": [threshold], "said": [f"threshold {threshold:,}"]}))
    points = alt.Chart(drawn).mark_point(filled=True, opacity=1)
    rule = line.mark_rule(color=colours.failed, strokeDash=[5, 3], strokeWidth=1.5)
    near_end = math.log1p(threshold) > 0.5 * math.log1p(end)
    align: Literal["left", "right"] = "right" if near_end else "left"
    dx = -4 if near_end else 4
    said = line.mark_text(color=colours.failed, align=align, dx=dx, baseline="bottom", fontSize=look.LABEL_PX, dy=-2)
    return alt.layer(
        rule.encode(x=alt.X("count:Q").scale(scale).axis(axis)),
        said.encode(x="count:Q", y=alt.value(0), text="said:N"),
        points.encode(
            x="count:Q",
            y=y,
            color=colour,
            shape=shape,
            size=size,
            tooltip=["route:N", "measure:N", "count:Q", "condemned:Q", alt.Tooltip("chance:Q", format=".2~g")],
        ),
        *_chances(routes, y, colours),
    )


def _chances(routes: pl.DataFrame, y: alt.Y, colours: look.Theme) -> list[alt.Chart]:
    """Write the chance of each route's silence in a column at the right end."""
    known = routes.filter(pl.col("chance").is_not_null() & (pl.col("most_silent") > 0))
    if known.is_empty():
        return []
    right = alt.value(alt.expr("width"))
    written = known.select("route", pl.Series("written", [look.percent(c) for c in known["chance"]], dtype=pl.String))
    head = alt.Chart(pl.DataFrame({"written": ["chance"]}))
    style: dict[str, Any] = {"align": "right", "dx": -2, "fontSize": look.LABEL_PX}
    return [
        alt.Chart(written).mark_text(color=colours.text, **style).encode(x=right, y=y, text="written:N"),
        head.mark_text(color=colours.muted, baseline="bottom", dy=-2, **style).encode(
            x=right, y=alt.value(0), text="written:N"
        ),
    ]


def _title(frame: pl.DataFrame) -> str:
    condemned = frame.filter(pl.col("condemned") > 0)
    of = f"of {look.count(frame.height, 'route')} asked for tools"
    if condemned.is_empty():
        return f"None {of} is condemned" if frame.height > 1 else "The only route asked for tools is not condemned"
    names = look.labels(condemned["route_key"].head(2).to_list())
    more = f" and {condemned.height - 2} more" if condemned.height > 2 else ""
    verb = "is" if condemned.height == 1 else "are"
    return f"{condemned.height} {of} {verb} condemned: {', '.join(names)}{more}"


def _subtitle(frame: pl.DataFrame, top: int) -> str:
    which = f"The {top} of {frame.height} routes condemned longest or asked most." if frame.height > top else ""
    rule = str(frame["rule"][0])
    parts = f"Attempts that asked for tools, over the whole ledger; condemned (×) by {rule} where a window without any "
    rate = frame["emission_rate"][0]
    chance = (
        "No route ever called a tool, so no chance of silence can be said."
        if rate is None
        else f"Chance: (1 − p)ⁿ that a capable route is as silent as this one was at most, p = {look.percent(rate)}."
    )
    return f"{parts}tool call reaches the threshold. {chance} {which}".strip()


def _alt(shown: pl.DataFrame, title: str) -> str:
    threshold = int(shown["min_samples"][0])
    parts = [f"Dot plot of attempts per route with the threshold at {threshold:,}. {title}."]
    for row in shown.filter(pl.col("condemned") > 0).to_dicts():
        parts.append(
            f"{row['route_key']}: {look.count(row['requests'], 'request')}, "
            f"{look.count(row['emitted'], 'tool call')}, {row['most_silent']:,} silent in a window, condemned "
            f"{look.count(row['condemned'], 'time')} for {look.duration(row['condemned_ms'])} in all"
            + ("." if row["chance"] is None else f"; such silence has a chance of {look.percent(row['chance'])}.")
        )
    return " ".join(parts)
