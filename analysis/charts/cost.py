"""What providers charged against what their list prices say."""

from __future__ import annotations

import math
from typing import Any, Literal

import altair as alt
import polars as pl

from analysis.charts import theme as look
from analysis.cost import WARN_CALLS, WARN_PERCENT

TOP_PROVIDERS = 20
COLUMNS: dict[str, Any] = {
    "provider_id": pl.String,
    "calls": pl.Int64,
    "cost_micro": pl.Int64,
    "compared": pl.Int64,
    "deviation": pl.Float64,
    "signal": pl.String,
    "warn": pl.Boolean,
}
"""The columns of `analysis.cost.roll_up` that are drawn."""
# Half and twice the list price are as far off; nothing charged, or a charge where the list says free, is furthest.
_OFF = pl.col("deviation").log().abs().round(9).fill_null(math.inf)
_WARNS = "reported, warns"
_FREE, _NOTHING = "charged though listed free", "charged nothing"


def cost(frame: pl.DataFrame, *, width: int = 600, theme: str = "light", top: int = TOP_PROVIDERS) -> look.AnyChart:
    """Draw measured ÷ expected cost per provider, with its signal and volume, and the band that does not warn.

    Columns: of `analysis.cost.roll_up`: `provider_id`, `calls`, `cost_micro` (USD ÷ 10⁶), `compared` (calls),
    `deviation` (measured ÷ expected; null: nothing to compare, or, with `warn`, charged where the list says free),
    `signal` ("reported" or "derived"), `warn`. The `top` providers that warn or have the highest cost are shown,
    worst first; what a logarithm cannot show stands at the end of the axis, in words.

    >>> frame = pl.DataFrame({"provider_id": ["a", "b"], "calls": 30, "cost_micro": 2_000_000, "compared": 30,
    ...     "deviation": [1.25, 1.0], "signal": ["reported", "derived"], "warn": [True, False]})
    >>> cost(frame).to_dict()["title"]["text"]
    ['1 of 2 providers charges off its list price: a 1.25 times']
    """
    frame = look.require(frame, COLUMNS, "cost")
    look.require_width(width)
    usable = frame.filter(pl.col("deviation").is_not_null() | pl.col("warn"))
    if usable.is_empty():
        said = "There is nothing to draw: no call has both a cost and a list price to compare it with."
        return look.sentence(said, title="No cost can be compared", width=width, theme=theme)
    shown = usable.sort("warn", "cost_micro", "provider_id", descending=[True, True, False]).head(top)
    shown = shown.sort("warn", _OFF, "provider_id", descending=[True, True, False])
    title = _title(usable)
    return look.finish(
        _points(shown, width, theme),
        title=title,
        subtitle=_subtitle(frame, usable, top),
        alt_text=_alt(shown, title),
        width=width,
        theme=theme,
        plot=(width, 95 + look.ROW_PX * shown.height),
    )


def _points(shown: pl.DataFrame, width: int, theme: str) -> look.AnyChart:
    colours = look.theme_of(theme)
    names = look.labels([p or "" for p in shown["provider_id"]])
    rows = shown.to_dicts()
    drawn = shown.select("deviation", "compared", "calls").with_columns(
        pl.Series("provider", [f"{n} · {_volume(row)}" for n, row in zip(names, rows, strict=True)], dtype=pl.String),
        pl.Series("signal", [_WARNS if row["warn"] else row["signal"] for row in rows], dtype=pl.String),
        pl.Series("cost_usd", [row["cost_micro"] / 1e6 for row in rows], dtype=pl.Float64),
    )
    order = drawn["provider"].to_list()
    looks = {
        _WARNS: (colours.failed, "triangle-up"),
        "reported": (colours.colours[0], "circle"),
        "derived": (colours.muted, "square"),
    }
    present = [name for name in looks if name in set(drawn["signal"])]
    legend = alt.Legend(title=None, columns=look.legend_columns(present, width))
    colour = alt.Color("signal:N").scale(domain=present, range=[looks[n][0] for n in present]).legend(legend)
    shape = alt.Shape("signal:N").scale(domain=present, range=[looks[n][1] for n in present]).legend(legend)
    x, ticks, (low, high) = _scale(drawn)
    drawn = drawn.with_columns(
        pl.when(pl.col("deviation") == 0).then(low).otherwise(pl.col("deviation").fill_null(high)).alias("at")
    )
    axis = (
        alt.Axis(title="measured ÷ expected cost", values=ticks, format="~g")
        if ticks
        else alt.Axis(title="measured ÷ expected cost", tickCount=6, format=".2~f")
    )
    share = WARN_PERCENT / 100
    band = alt.Chart(pl.DataFrame({"low": [1 - share], "high": [1 + share]})).mark_rect(color=colours.band)
    one = alt.Chart(pl.DataFrame({"one": [1.0]})).mark_rule(color=colours.text, strokeDash=[4, 3])
    y = alt.Y("provider:N").sort(order).axis(title=None, grid=True, labelOverlap=False)
    tooltip = ["provider:N", "signal:N", alt.Tooltip("deviation:Q", format=".3f"), "compared:Q", "cost_usd:Q"]
    points = alt.Chart(drawn).mark_point(filled=True, size=90, opacity=1)
    return alt.layer(
        band.encode(x=alt.X("low:Q").scale(x).axis(axis), x2="high:Q"),
        one.encode(x="one:Q"),
        points.encode(x="at:Q", y=y, color=colour, shape=shape, tooltip=tooltip),
        *_in_words(drawn, y, colours.text),
    )


def _in_words(drawn: pl.DataFrame, y: alt.Y, colour: str) -> list[alt.Chart]:
    """Say beside the points at the axis's ends what a ratio cannot."""
    said = []
    sides: tuple[tuple[pl.Expr, str, Literal["left", "right"], int], ...] = (
        (pl.col("deviation") == 0, _NOTHING, "left", 10),
        (pl.col("deviation").is_null(), _FREE, "right", -10),
    )
    for at_the_end, words, align, dx in sides:
        rows = drawn.filter(at_the_end).with_columns(said=pl.lit(words))
        if rows.height:
            marks = alt.Chart(rows).mark_text(align=align, dx=dx, color=colour, fontSize=look.LABEL_PX)
            said.append(marks.encode(x="at:Q", y=y, text="said:N"))
    return said


def _far(row: dict[str, Any], times: str = "") -> str:
    if row["deviation"] is None:
        return _FREE
    return f"{row['deviation']:.2f}{times}" if row["deviation"] else _NOTHING


def _volume(row: dict[str, Any]) -> str:
    usd = row["cost_micro"] / 1e6
    return f"{look.count(row['calls'], 'call')}, {'< 0.01' if 0 < usd < 0.005 else f'{usd:,.2f}'} USD"


def _scale(drawn: pl.DataFrame) -> tuple[alt.Scale, list[float], tuple[float, float]]:
    """Return a plain axis around 1, or a logarithmic one with its ticks beyond a factor of 3; and where it ends."""
    values = [
        1 - WARN_PERCENT / 100,
        1 + WARN_PERCENT / 100,
        *drawn.filter(pl.col("deviation") > 0)["deviation"].to_list(),
    ]
    low, high = min(values), max(values)
    if low > 1 / 3 and high < 3:
        room = 0.08 * (high - low)
        low, high = low - room, high + room
        return alt.Scale(domain=[low, high], nice=False, zero=False), [], (low, high)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{power}") for power in powers for step in (1, 3)]
    low, high = low / 1.3, high * 1.3
    return alt.Scale(type="log", domain=[low, high], nice=False), [t for t in ticks if low <= t <= high], (low, high)


def _title(usable: pl.DataFrame) -> str:
    warned = usable.filter("warn").sort(_OFF, "provider_id", descending=[True, False])
    of = f"of {look.count(usable.height, 'provider')}"
    if warned.is_empty():
        independent = usable.filter(pl.col("signal") == "reported").height
        known = f"only {independent} of them" if independent else "none"
        reports = "report their own figures" if independent > 1 else "reports its own figure"
        return f"None {of} warns" + ("" if independent == usable.height else f"; {known} {reports}")
    said = ", ".join(f"{row['provider_id'] or '(none)'} {_far(row, ' times')}" for row in warned.head(2).to_dicts())
    more = f" and {warned.height - 2} more" if warned.height > 2 else ""
    verb = "charges off its list price" if warned.height == 1 else "charge off their list price"
    return f"{warned.height} {of} {verb}: {said}{more}"


def _subtitle(frame: pl.DataFrame, usable: pl.DataFrame, top: int) -> str:
    compared = look.count(int(usable["compared"].sum()), "call")
    which = (
        f" The {top} of {usable.height} providers that warn or have the highest cost." if usable.height > top else ""
    )
    without = frame.height - usable.height
    rest = f" {look.count(without, 'provider')} without anything to compare." if without else ""
    return (
        f"Cost of {compared} ÷ their tokens at the list price of that moment; shaded: within ±{WARN_PERCENT} %. Warns "
        f"outside, from {WARN_CALLS} calls, if the provider reported the figure; a derived one is near 1 by "
        f"construction.{which}{rest}"
    )


def _alt(shown: pl.DataFrame, title: str) -> str:
    rows = (f"{r['provider_id'] or '(none)'} {_far(r)} ({r['signal']}, {_volume(r)})" for r in shown.to_dicts())
    return f"Dot plot of measured over expected cost with a line at 1. {title}. {'; '.join(rows)}."
