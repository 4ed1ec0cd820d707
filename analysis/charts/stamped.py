"""How much each rule knew: the share of attempts it had a figure for, by traffic class."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.charts import theme as look
from analysis.series import ALL_ATTEMPTS, REQUESTS, STAMPED_SCHEMA

_ROWS = 14
_ON_ONE_LINE = 3


def stamped(frame: pl.DataFrame, *, width: int = 600, theme: str = "light") -> look.AnyChart:
    """Draw the share of attempts for which each rule had a success rate when the router read it, by traffic class.

    Columns: those of `analysis.series.STAMPED_SCHEMA` (see `stamped_shares`): `setting`, `group` ("all", "requests"
    or "routes"), `key`, `routes`, `attempts`, `stamped`, `share` (0 to 1).

    >>> frame = pl.DataFrame({"setting": ["now", "before"], "group": "all", "key": "all", "routes": 1,
    ...     "attempts": 10, "stamped": [6, 9], "share": [0.6, 0.9]})
    >>> stamped(frame).to_dict()["title"]["text"]
    ['before had a figure for 90 % of attempts, now for 60 %']
    """
    frame = look.require(frame, STAMPED_SCHEMA, "stamped")
    look.require_width(width)
    if frame.is_empty():
        said = "There is nothing to draw: no attempt belongs to a known call."
        return look.sentence(said, title="Nothing was read", width=width, theme=theme)
    settings = frame["setting"].unique(maintain_order=True).to_list()[: look.MAX_CATEGORIES]
    shown = frame.filter(pl.col("setting").is_in(settings))
    classes = shown.select("group", "key").unique(maintain_order=True)
    kept = classes.head(_ROWS)
    shown = shown.join(kept, on=["group", "key"], maintain_order="left")
    title = _title(shown)
    return look.finish(
        _dots(shown, settings, width, theme),
        title=title,
        subtitle=_subtitle(shown, classes.height - kept.height, frame["setting"].n_unique() - len(settings)),
        alt_text=_alt(shown, title),
        width=width,
        theme=theme,
        plot=(width, 95 + look.legend_px(settings, width) + _row_px(settings) * kept.height),
    )


def _row_px(settings: list[str]) -> int:
    return look.ROW_PX + 6 if len(settings) <= _ON_ONE_LINE else 9 * len(settings)


def _label(row: dict[str, object]) -> str:
    attempts = f"{row['attempts']:,}"
    if row["group"] == ALL_ATTEMPTS:
        return f"all attempts · {attempts}"
    if row["group"] == REQUESTS:
        return f"{look.shorten(str(row['key']) or '(none)', 24)} requests · {attempts}"
    return f"{row['key']} routes ({row['routes']}) · {attempts}"


def _dots(shown: pl.DataFrame, settings: list[str], width: int, theme: str) -> look.AnyChart:
    colours = look.theme_of(theme)
    drawn = shown.with_columns(pl.Series("class", [_label(row) for row in shown.to_dicts()], dtype=pl.String))
    order = drawn["class"].unique(maintain_order=True).to_list()
    legend = alt.Legend(title=None, columns=look.legend_columns(settings, width))
    colour = alt.Color("setting:N").scale(domain=settings, range=list(colours.colours[: len(settings)])).legend(legend)
    shape = alt.Shape("setting:N").scale(domain=settings, range=list(look.SHAPES[: len(settings)])).legend(legend)
    spread = drawn.group_by("class", maintain_order=True).agg(
        pl.col("share").min().alias("lowest"), pl.col("share").max().alias("highest")
    )
    y = alt.Y("class:N").sort(order).axis(title=None, grid=False, labelOverlap=False)
    axis = alt.Axis(title="share of attempts stamped", format=look.SHARE_FORMAT, tickCount=5)
    scale = alt.Scale(domain=[0, 1], nice=False)
    lines = alt.Chart(spread).mark_rule(color=colours.grid, strokeWidth=4)
    points = alt.Chart(drawn).mark_point(filled=True, size=90, opacity=0.95)
    if len(settings) > _ON_ONE_LINE:
        points = points.encode(yOffset=alt.YOffset("setting:N").sort(settings))
    return alt.layer(
        lines.encode(x=alt.X("lowest:Q").scale(scale), x2="highest:Q", y=y),
        points.encode(
            x=alt.X("share:Q").scale(scale).axis(axis),
            y=y,
            color=colour,
            shape=shape,
            tooltip=["setting:N", "class:N", alt.Tooltip("share:Q", format=".1%"), "stamped:Q", "attempts:Q"],
        ),
    )


def _overall(shown: pl.DataFrame) -> pl.DataFrame:
    overall = shown.filter(pl.col("group") == ALL_ATTEMPTS).sort("share", "setting", descending=[True, False])
    return overall if overall.height else shown.sort("share", "setting", descending=[True, False])


def _title(shown: pl.DataFrame) -> str:
    rows = _overall(shown).to_dicts()
    most, *rest = rows
    said = f"{most['setting']} had a figure for {look.percent(most['share'])} of attempts"
    if rest and rest[-1]["share"] == most["share"]:
        return f"Every rule had a figure for {look.percent(most['share'])} of attempts"
    if rest:
        said += f", {rest[-1]['setting']} for {look.percent(rest[-1]['share'])}"
    return said


def _subtitle(shown: pl.DataFrame, more_classes: int, more_settings: int) -> str:
    attempts = look.count(int(_overall(shown)["attempts"][0]), "attempt")
    said = (
        f"Share of attempts whose route had a success rate when the router read it; {attempts} of known calls, counted "
        "per class. Busy routes have the first half of all attempts, middling ones the next 40 %, quiet ones the rest."
    )
    said += f" {look.count(more_classes, 'class', 'classes')} not shown." if more_classes else ""
    return said + (f" {look.count(more_settings, 'rule')} not shown." if more_settings else "")


def _alt(shown: pl.DataFrame, title: str) -> str:
    parts = []
    for (group, key), part in shown.group_by("group", "key", maintain_order=True):
        if group != ALL_ATTEMPTS:
            shares = ", ".join(f"{row['setting']} {look.percent(row['share'])}" for row in part.to_dicts())
            parts.append(f"{key or '(none)'} {group}: {shares}")
    return f"Dot plot of shares from 0 to 100 %. {title}." + (f" {'; '.join(parts)}." if parts else "")
