"""One place for how charts look and speak: colours, shapes, dashes, number and time formats, titles, empty charts.

Colours keep a contrast of at least 3 to 1 against their background and differ in lightness too; wherever a colour
means something, a shape, a dash or a label says the same.
"""

from __future__ import annotations

import datetime as dt
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import altair as alt
import polars as pl

from replay.errors import ReplayError

AnyChart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart

MAX_CATEGORIES = 8
MIN_WIDTH, MAX_WIDTH = 320, 4_000
ROW_PX = 24
TITLE_PX, SUBTITLE_PX, LABEL_PX = 15, 12, 11
ROUTE_LABEL_CHARS = 38

FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
SHARE_FORMAT, COUNT_FORMAT = ".0%", ",d"


@dataclass(frozen=True)
class Theme:
    """The colours of one background."""

    background: str
    text: str
    muted: str
    grid: str
    band: str
    failed: str
    colours: tuple[str, ...]


THEMES: Mapping[str, Theme] = {
    "light": Theme(
        background="#ffffff",
        text="#1c1f24",
        muted="#5a616b",
        grid="#e3e6ea",
        band="#dfe9df",
        failed="#b3261e",
        colours=("#0067a5", "#c44e00", "#00795a", "#a63d7e", "#4a3a00", "#2b1d6e", "#3f7f9f", "#8a6a00"),
    ),
    "dark": Theme(
        background="#16191d",
        text="#eceff3",
        muted="#a8b0bb",
        grid="#343a42",
        band="#26352b",
        failed="#ff8a80",
        colours=("#5ab4f0", "#ff9152", "#3fcba0", "#f08cc8", "#f5e6a0", "#7c74ff", "#c5f0ff", "#9a9a9a"),
    ),
}
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "triangle-right", "triangle-left", "cross")
DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (4, 1), (1, 3), (10, 4), (3, 3, 1, 3))
FAILED_SHAPE = "M-0.7,-0.7L0.7,0.7M0.7,-0.7L-0.7,0.7"


def theme_of(name: str) -> Theme:
    """Return a theme by name, or refuse the name.

    >>> theme_of("dark").background
    '#16191d'
    """
    if name not in THEMES:
        raise ReplayError(f"The theme {name!r} is not known; expected one of {', '.join(THEMES)}. Give one of these.")
    return THEMES[name]


def require(frame: pl.DataFrame, columns: Mapping[str, Any], chart: str) -> pl.DataFrame:
    """Return a frame with a chart's columns in their types; refuse one that lacks a column or holds another sort.

    Whole numbers may be of any width and stand for figures; an all-null column stands for figures or texts.
    """
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ReplayError(
            f"The {chart} chart was given a frame without {', '.join(missing)}; expected the columns "
            f"{', '.join(columns)}. Make it with the chart's own loader, or add them."
        )
    for name, wanted in columns.items():
        if not _fits(frame[name], wanted):
            holes = " with nulls" if frame[name].dtype.is_integer() else ""
            raise ReplayError(
                f"The {chart} chart was given the column {name} as {frame[name].dtype}{holes}; expected "
                f"{_SAID[wanted]}. Make the frame with the chart's own loader, or cast the column."
            )
    return frame.with_columns(pl.col(name).cast(wanted) for name, wanted in columns.items())


_SAID: dict[Any, str] = {
    pl.Int64: "whole numbers without nulls",
    pl.Float64: "numbers",
    pl.String: "texts",
    pl.Boolean: "true and false",
}


def _fits(column: pl.Series, wanted: Any) -> bool:
    if wanted == pl.Int64:
        return column.dtype.is_integer() and not column.null_count()
    if wanted == pl.Float64:
        return column.dtype.is_numeric() or column.dtype == pl.Null
    if wanted == pl.String:
        return column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)
    return bool(column.dtype == wanted)


def require_width(width: int) -> None:
    """Refuse a width at which nothing can be read, or that no screen has."""
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise ReplayError(
            f"The width {width} px is out of range; expected {MIN_WIDTH} to {MAX_WIDTH} px. Give 600 or 1200."
        )


def percent(share: float | None, digits: int = 1) -> str:
    """Write a share; never an untrue 0 % or 100 %, a dash where there is none.

    >>> percent(0.3169), percent(1.0), percent(0.99999), percent(None)
    ('31.7 %', '100 %', '> 99.9 %', '–')
    """
    if share is None:
        return "–"
    least = 10.0 ** (-2 - digits)
    if 0 < share < least:
        return f"< {least:.{digits}%}".replace("%", " %")
    if 1 - least < share < 1:
        return f"> {1 - least:.{digits}%}".replace("%", " %")
    return f"{share * 100:.{digits}f}".removesuffix("." + "0" * digits) + " %"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Write a count with its noun.

    >>> count(1, "route"), count(1200, "attempt"), count(2, "reply", "replies")
    ('1 route', '1,200 attempts', '2 replies')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def signed(value: float) -> str:
    """Write a difference with its sign, a true minus, and three significant digits.

    >>> signed(-0.00288), signed(0.1294), signed(0.0)
    ('−0.00288', '+0.129', '0')
    """
    if value == 0:
        return "0"
    digits = min(8, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:+.{digits}f}".replace("-", "−")


def milliseconds(value: float) -> str:
    """Write a latency in the unit that reads best.

    >>> milliseconds(440.2), milliseconds(16_200.0), milliseconds(150_000.0)
    ('440 ms', '16.2 s', '2.5 min')
    """
    if value < 1_000:
        return f"{value:.0f} ms"
    return f"{value / 1_000:.1f} s" if value < 120_000 else f"{value / 60_000:.1f} min"


def duration(length_ms: int) -> str:
    """Write a duration in its two largest units.

    >>> duration(15_720_000), duration(90_000), duration(400), duration(90_000_000)
    ('4 h 22 min', '1 min 30 s', '0 s', '1 d 1 h')
    """
    left, parts = length_ms // 1_000, []
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        number, left = divmod(left, seconds)
        parts += [f"{number} {unit}"] if number else []
    return " ".join(parts[:2]) or "0 s"


def ticks_125(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten within bounds above 0, thinned where these are many.

    >>> ticks_125(300, 4_500), ticks_125(900, 1_900)
    ([500.0, 1000.0, 2000.0], [1000.0, 1200.0, 1500.0])
    >>> ticks_125(0.5, 1e6)
    [1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0, 1000000.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{power}") for power in powers for step in (1, 2, 5)]
    within = [tick for tick in ticks if low <= tick <= high]
    if len(within) < 3:
        return [
            t for p in powers for s in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if low <= (t := float(f"{s}e{p}")) <= high
        ]
    return within if len(within) <= 9 else [tick for tick in within if f"{tick:e}".startswith("1.0")]


def instant(at_ms: int) -> str:
    """Write an instant in UTC, to the minute.

    >>> instant(1772409600000)
    '2 Mar 2026 00:00 UTC'
    """
    at = dt.datetime.fromtimestamp(at_ms // 1000, dt.UTC)
    return f"{at.day} {at:%b %Y %H:%M} UTC"


def span(first_ms: int, last_ms: int) -> str:
    """Write the days from one instant to another, in UTC.

    >>> span(1772409600000, 1773014337000), span(0, 1000)
    ('2 Mar 2026 to 8 Mar 2026 UTC', '1 Jan 1970 UTC')
    """
    first, last = (
        f"{a.day} {a:%b %Y}" for a in (dt.datetime.fromtimestamp(t // 1000, dt.UTC) for t in (first_ms, last_ms))
    )
    return f"{first} UTC" if first == last else f"{first} to {last} UTC"


def shorten(text: str, limit: int = ROUTE_LABEL_CHARS) -> str:
    """Cut a long label in its middle, where route keys differ least.

    >>> shorten("antseed|atlas-mini|peer-aster"), shorten("abcdefghij", 7)
    ('antseed|atlas-mini|peer-aster', 'abc…hij')
    """
    if len(text) <= limit:
        return text
    head = limit // 2
    return f"{text[:head]}…{text[len(text) - (limit - head - 1) :]}"


def labels(keys: Sequence[str], limit: int = ROUTE_LABEL_CHARS) -> list[str]:
    """Return a short label per key, all different: where cutting makes two alike, a number tells them apart.

    A direct route names its provider twice; its label names it once.

    >>> labels(["p|m|p", "p|m|peer", "", "aaaaXbbbb", "aaaaYbbbb"], 7)
    ['p|m', 'p|m…eer', '(none)', 'aaa…bbb', 'aaa…bbb (2)']
    """
    seen: dict[str, int] = {}
    made = []
    for key in keys:
        parts = key.split("|")
        said = "|".join(parts[:2]) if len(parts) == 3 and parts[2] in ("", parts[0]) and parts[0] else key
        label = shorten(said if said.strip("|") else "(none)", limit)
        seen[label] = seen.get(label, 0) + 1
        made.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return made


def wrap(text: str, width_px: int, font_px: int) -> list[str]:
    """Break a line of text so that it fits: letters are about half their size wide, in bold a little more."""
    letter_px = font_px * (0.54 if font_px >= TITLE_PX else 0.5)
    kept = text.replace(" %", "\u00a0%")  # a figure and its sign stay on one line
    lines = textwrap.wrap(kept, max(20, int(width_px / letter_px)), break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines] or [""]


def finish(
    chart: Any, *, title: str, subtitle: str, alt_text: str, width: int, theme: str, plot: tuple[int, int] | None
) -> AnyChart:
    """Give a chart its title, subtitle, alt text and theme; the headings' height is added to that of the plot.

    `plot`: width and height of a view with its axes and legend. Without it (facets) the views already have their size.
    """
    look = theme_of(theme)
    heading = alt.TitleParams(
        text=wrap(title, width - 16, TITLE_PX), subtitle=wrap(subtitle, width - 16, SUBTITLE_PX), anchor="start"
    )
    above = len(heading.text) * (TITLE_PX + 2) + len(heading.subtitle) * (SUBTITLE_PX + 2)
    sized = {"width": plot[0], "height": plot[1] + above, "autosize": _FIT} if plot else {}
    return _configured(chart.properties(title=heading, description=alt_text, background=look.background, **sized), look)


_SENTENCE_PX = 13
_FIT = alt.AutoSizeParams(type="fit", contains="padding")


def sentence(text: str, *, title: str, width: int, theme: str) -> AnyChart:
    """Return a chart that says in one sentence why there is nothing to draw."""
    look = theme_of(theme)
    lines = wrap(text, width - 60, _SENTENCE_PX)
    marks = (
        alt.Chart(pl.DataFrame({"text": ["\n".join(lines)]}))
        .mark_text(fontSize=_SENTENCE_PX, color=look.muted, align="left", baseline="top", lineBreak="\n", lineHeight=18)
        .encode(x=alt.value(6), y=alt.value(6), text="text:N")
    )
    heading = alt.TitleParams(text=wrap(title, width - 16, TITLE_PX), anchor="start")
    made = marks.properties(
        title=heading, description=text, background=look.background, width=width - 20, height=20 + 18 * len(lines)
    )
    return _configured(made, look)


def _configured(chart: Any, look: Theme) -> AnyChart:
    configured: AnyChart = (
        chart.configure(font=FONT)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=look.text,
            titleColor=look.muted,
            gridColor=look.grid,
            domainColor=look.muted,
            tickColor=look.muted,
            labelFontSize=LABEL_PX,
            titleFontSize=SUBTITLE_PX,
            titleFontWeight="normal",
            labelLimit=320,
            labelOverlap="greedy",
        )
        .configure_title(
            color=look.text,
            subtitleColor=look.muted,
            fontSize=TITLE_PX,
            subtitleFontSize=SUBTITLE_PX,
            subtitlePadding=5,
            offset=12,
        )
        .configure_legend(
            labelColor=look.text,
            titleColor=look.muted,
            labelFontSize=LABEL_PX,
            titleFontSize=SUBTITLE_PX,
            titleFontWeight="normal",
            labelLimit=280,
            orient="bottom",
            direction="horizontal",
            symbolSize=90,
        )
        .configure_header(labelColor=look.text, titleColor=look.muted, labelFontSize=SUBTITLE_PX)
    )
    return configured


def legend_columns(names: Sequence[str], width: int) -> int:
    """Return how many legend entries fit beside each other.

    >>> legend_columns(["production-now", "production-before"], 600)
    3
    """
    longest = max((len(name) for name in names), default=1)
    return max(1, (width - 40) // (min(280, longest * 7) + 30))


def legend_px(names: Sequence[str], width: int) -> int:
    """Return the height that a legend's rows beyond the first take.

    >>> legend_px(["production-now", "production-before"], 600), legend_px(["a-long-name-of-a-setting"] * 8, 600)
    (0, 51)
    """
    return (math.ceil(len(names) / legend_columns(names, width)) - 1) * 17
