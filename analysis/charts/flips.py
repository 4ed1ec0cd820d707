"""The decisions that flip over time, by what turned them."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.charts import theme as look
from analysis.charts import times
from analysis.series import FLIPS_OVER_TIME_SCHEMA, TIE

_PANELS_PX, _PANEL_PX, _AXIS_PX = 180, 54, 62


def flips(frame: pl.DataFrame, *, width: int = 600, theme: str = "light") -> look.AnyChart:
    """Draw how many decisions flip over time, one panel per cause, on one scale; ties apart, in a panel of their own.

    Columns: those of `analysis.series.FLIPS_OVER_TIME_SCHEMA` (see `flips_over_time`): `setting_a`, `setting_b`,
    `bin_start_ms`, `bin_ms`, `cause`, `flips`, `decisions` (of the bin). Rows of the cause "tie" are no flips.

    >>> frame = pl.DataFrame({"setting_a": "now", "setting_b": "before", "bin_start_ms": [0, 3_600_000],
    ...     "bin_ms": 3_600_000, "cause": "latency", "flips": [3, 1], "decisions": [10, 10]})
    >>> flips(frame).to_dict()["title"]["text"]
    ['20 % of decisions flip between now and before, most by latency']
    """
    frame = look.require(frame, FLIPS_OVER_TIME_SCHEMA, "flips")
    look.require_width(width)
    if frame.is_empty() or not frame["flips"].sum():
        said = "There is nothing to draw: no decision flips, or there are no two settings to compare."
        return look.sentence(said, title="No decision flips", width=width, theme=theme)
    by_cause = frame.group_by("cause", maintain_order=True).agg(pl.col("flips").sum()).filter(pl.col("flips") > 0)
    by_cause = by_cause.sort(pl.col("cause") == TIE, "flips", "cause", descending=[False, True, False])
    ties = by_cause.filter(cause=TIE)
    kept = pl.concat([by_cause.filter(pl.col("cause") != TIE).head(look.MAX_CATEGORIES - ties.height), ties])
    title = _title(frame, by_cause)
    return look.finish(
        _panels(frame.filter(pl.col("cause").is_in(kept["cause"].to_list())), kept, width, theme),
        title=title,
        subtitle=_subtitle(frame, by_cause.height - kept.height),
        alt_text=_alt(frame, by_cause, title),
        width=width,
        theme=theme,
        plot=None,
    )


def _panel(cause: str, flips: int) -> str:
    return f"ties (apart): {flips:,}" if cause == TIE else f"{cause}: {look.count(flips, 'flip')}"


def _panels(frame: pl.DataFrame, by_cause: pl.DataFrame, width: int, theme: str) -> look.AnyChart:
    named = {row["cause"]: _panel(row["cause"], row["flips"]) for row in by_cause.to_dicts()}
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
    looks, highest = look.theme_of(theme), int(str(drawn["flips"].max()))
    panels = list(named.values())
    colours = [looks.muted if cause == TIE else looks.colours[i] for i, cause in enumerate(named)]
    axis = times.time_axis(first, last, step, width)
    bars = (
        alt.Chart(drawn)
        .mark_rect()
        .encode(
            x=alt.X("from_ms:T").scale(times.utc(first, last, step)).axis(axis),
            x2="until_ms:T",
            y2=alt.datum(0),
            y=alt.Y("flips:Q").axis(title=None, values=[0, _tick(highest)], format=look.COUNT_FORMAT),
            color=alt.Color("panel:N").scale(domain=panels, range=colours).legend(None),
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


def _totals(frame: pl.DataFrame) -> tuple[int, int, int]:
    """Return the flips without ties, the ties, and the decisions."""
    per_bin = frame.group_by("bin_start_ms").agg(pl.col("decisions").first())
    ties = int(frame.filter(cause=TIE)["flips"].sum())
    return int(frame["flips"].sum()) - ties, ties, int(per_bin["decisions"].sum())


def _title(frame: pl.DataFrame, by_cause: pl.DataFrame) -> str:
    flipped, ties, decided = _totals(frame)
    pair = f"between {frame['setting_a'][0]} and {frame['setting_b'][0]}"
    if not flipped:
        return f"No decision flips {pair}; {look.count(ties, 'tie')} apart"
    more = f"; {look.count(ties, 'tie')} apart" if ties else ""
    return f"{look.percent(flipped / decided)} of decisions flip {pair}, most by {by_cause['cause'][0]}{more}"


def _subtitle(frame: pl.DataFrame, left_out: int) -> str:
    flipped, ties, decided = _totals(frame)
    step = int(frame["bin_ms"][0])
    first, last = int(str(frame["bin_start_ms"].min())), int(str(frame["bin_start_ms"].max())) + step - 1
    rest = f" {look.count(left_out, 'rarer cause')} not shown." if left_out else ""
    tied = f" {look.count(ties, 'tie')}, decided by the order of candidates alone, not counted." if ties else ""
    return (
        f"Flips per {look.duration(step)} by what turned them; {look.count(flipped, 'flip')} in "
        f"{look.count(decided, 'decision')}, bins from {look.span(first, last)}.{tied}{rest}"
    )


def _alt(frame: pl.DataFrame, by_cause: pl.DataFrame, title: str) -> str:
    rows = by_cause.filter(pl.col("cause") != TIE).to_dicts()
    said = [f"Bar charts over time, one per cause. {title}."]
    if rows:
        worst = (
            frame.filter(pl.col("cause") != TIE)
            .group_by("bin_start_ms")
            .agg(pl.col("flips").sum())
            .sort("flips", "bin_start_ms", descending=[True, False])
            .row(0, named=True)
        )
        by = ", ".join(f"{row['cause']} {row['flips']:,}" for row in rows)
        said.append(f"Flips by cause: {by}.")
        said.append(f"Most at once: {look.count(worst['flips'], 'flip')} from {look.instant(worst['bin_start_ms'])}.")
    _, ties, decided = _totals(frame)
    return " ".join([*said, f"{look.count(ties, 'tie')} apart, in {look.count(decided, 'decision')}."])
