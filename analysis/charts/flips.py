"""The decisions that flip over time, by what turned them."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.charts import theme as look
from analysis.series import FLIPS_OVER_TIME_SCHEMA, TIE

_PANELS_PX, _PANEL_PX, _AXIS_PX = 180, 54, 62


def flips(frame: pl.DataFrame, *, width: int = 600, theme: str = "light") -> look.AnyChart:
    """Draw how many decisions flip over time, one panel per cause, on one scale.

    Columns: those of `analysis.series.FLIPS_OVER_TIME_SCHEMA` (see `flips_over_time`): `setting_a`, `setting_b`,
    `bin_start_ms`, `bin_ms`, `cause`, `flips`, `decisions` (of the bin).

    >>> frame = pl.DataFrame({"setting_a": "now", "setting_b": "before", "bin_start_ms": [0, 3_600_000],
    ...     "bin_ms": 3_600_000, "cause": "latency", "flips": [3, 1], "decisions": [10, 10]})
    >>> flips(frame).to_dict()["title"]["text"]
    ['20 % of decisions flip between now and before, most by latency']
    """
    look.require(frame, FLIPS_OVER_TIME_SCHEMA, "flips")
    look.require_width(width)
    if frame.is_empty() or not frame["flips"].sum():
        said = "There is nothing to draw: no decision flips, or there are no two settings to compare."
        return look.sentence(said, title="No decision flips", width=width, theme=theme)
    by_cause = frame.group_by("cause", maintain_order=True).agg(pl.col("flips").sum())
    by_cause = by_cause.sort("flips", "cause", descending=[True, False])
    causes = by_cause["cause"].to_list()
    kept = causes[: look.MAX_CATEGORIES]
    title, subtitle = _title(frame, by_cause), _subtitle(frame, len(causes))
    return look.finish(
        _panels(frame.filter(pl.col("cause").is_in(kept)), by_cause.head(len(kept)), width, theme),
        title=title,
        subtitle=subtitle,
        alt_text=_alt(frame, by_cause, title),
        width=width,
        theme=theme,
        plot=None,
    )


def _panels(frame: pl.DataFrame, by_cause: pl.DataFrame, width: int, theme: str) -> look.AnyChart:
    named = {row["cause"]: f"{row['cause']}: {look.count(row['flips'], 'flip')}" for row in by_cause.to_dicts()}
    step = int(frame["bin_ms"][0])
    first, last = int(str(frame["bin_start_ms"].min())), int(str(frame["bin_start_ms"].max())) + step
    drawn = frame.filter(pl.col("flips") > 0).select(
        pl.col("cause").replace(named).alias("panel"),
        pl.col("bin_start_ms").alias("from_ms"),
        (pl.col("bin_start_ms") + step).alias("until_ms"),
        "flips",
        "decisions",
        pl.col("bin_start_ms").map_elements(look.instant, return_dtype=pl.String).alias("bin from (UTC)"),
    )
    colours, highest = look.theme_of(theme), int(str(drawn["flips"].max()))
    panels = list(named.values())
    axis = look.time_axis()
    bars = (
        alt.Chart(drawn)
        .mark_rect()
        .encode(
            x=alt.X("from_ms:T").scale(look.utc(first, last, step)).axis(axis),
            x2="until_ms:T",
            y2=alt.datum(0),
            y=alt.Y("flips:Q").axis(title=None, values=[0, _tick(highest)], format=look.COUNT_FORMAT),
            color=alt.Color("panel:N").scale(domain=panels, range=list(colours.colours[: len(panels)])).legend(None),
            tooltip=["panel:N", "bin from (UTC):N", "flips:Q", "decisions:Q"],
        )
        .properties(width=width - _AXIS_PX, height=max(_PANEL_PX, _PANELS_PX // len(panels)))
    )
    header = alt.Header(title=None, labelOrient="top", labelAnchor="start", labelPadding=2)
    panelled: look.AnyChart = bars.facet(row=alt.Row("panel:N").sort(panels).header(header), spacing=8)
    return panelled


def _tick(highest: int) -> int:
    """Return the largest of 1, 2 and 5 times a power of ten that is not above a count."""
    power: int = 10 ** (len(str(highest)) - 1)
    return max(step * power for step in (1, 2, 5) if step * power <= highest)


def _totals(frame: pl.DataFrame) -> tuple[int, int]:
    per_bin = frame.group_by("bin_start_ms").agg(pl.col("decisions").first())
    return int(frame["flips"].sum()), int(per_bin["decisions"].sum())


def _title(frame: pl.DataFrame, by_cause: pl.DataFrame) -> str:
    flipped, decided = _totals(frame)
    told = by_cause.filter(pl.col("cause") != TIE)
    most = f"most by {told['cause'][0]}" if told.height else "all of them ties"
    pair = f"{frame['setting_a'][0]} and {frame['setting_b'][0]}"
    return f"{look.percent(flipped / decided)} of decisions flip between {pair}, {most}"


def _subtitle(frame: pl.DataFrame, causes: int) -> str:
    flipped, decided = _totals(frame)
    step = int(frame["bin_ms"][0])
    first, last = int(str(frame["bin_start_ms"].min())), int(str(frame["bin_start_ms"].max())) + step - 1
    top = f" The {look.MAX_CATEGORIES} most frequent of {causes} causes." if causes > look.MAX_CATEGORIES else ""
    return (
        f"Flips per {look.duration(step)} by what turned them; {look.count(flipped, 'flip')} in "
        f"{look.count(decided, 'decision')}, bins from {look.span(first, last)}.{top}"
    )


def _alt(frame: pl.DataFrame, by_cause: pl.DataFrame, title: str) -> str:
    said = ", ".join(f"{row['cause']} {row['flips']:,}" for row in by_cause.to_dicts())
    worst = (
        frame.group_by("bin_start_ms")
        .agg(pl.col("flips").sum())
        .sort("flips", "bin_start_ms", descending=[True, False])
    )
    most = look.count(int(worst["flips"][0]), "flip")
    return f"Bar charts over time, one per cause. {title}. Flips by cause: {said}. Most at once: {most} from " + (
        f"{look.instant(int(worst['bin_start_ms'][0]))}."
    )
