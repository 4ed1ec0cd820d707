"""Charts by their data and encodings, never by pixels."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import charts
from analysis.charts import CHARTS, times
from analysis.charts import theme as look
from replay.errors import ReplayError

HOUR_MS = 3_600_000
NOON_MS = 1_772_452_800_000

RULES = pl.DataFrame(
    {
        "route_key": "p|m|p",
        "series": ["recorded", "recorded", "now", "now", "before", "before"],
        "bin_start_ms": [0, 5 * HOUR_MS] * 3,
        "bin_ms": HOUR_MS,
        "value": [1.0, 0.5, 0.9, None, 0.8, 0.4],
        "attempts": [3, 2, 3, 0, 3, 2],
        "failed": [0, 1] * 3,
        "segment": [0, 1] * 3,
    }
)
FLIPS = pl.DataFrame(
    {
        "setting_a": "now",
        "setting_b": "before",
        "bin_start_ms": [0, HOUR_MS] * 2,
        "bin_ms": HOUR_MS,
        "cause": ["latency"] * 2 + ["tools"] * 2,
        "flips": [3, 1, 0, 2],
        "decisions": 10,
    }
)
DIFFERENCES = pl.DataFrame(
    {
        "scope": ["all", *(f"p|m|{i}" for i in range(300))],
        "question": "as read",
        "metric": "brier",
        "over": "all",
        "setting_a": "now",
        "setting_b": "before",
        "difference": [-0.02, 0.01, *([9.0] * 299)],
        "low": [-0.03, -0.01, *([None] * 299)],
        "high": [-0.01, 0.03, *([None] * 299)],
        "attempts": list(range(301, 0, -1)),
    }
)
STAMPED = pl.DataFrame(
    {
        "setting": ["now", "before"] * 2,
        "group": ["all", "all", "routes", "routes"],
        "key": ["all", "all", "busy", "busy"],
        "routes": 1,
        "attempts": 10,
        "stamped": [6, 9, 5, 10],
        "share": [0.6, 0.9, 0.5, 1.0],
    }
)
TOOLS = pl.DataFrame(
    {
        "route_key": ["p|m|x", "p|m|y"],
        "requests": [40, 30],
        "emitted": [0, 20],
        "most_silent": [25, 3],
        "condemned": [1, 0],
        "condemned_ms": [60_000, 0],
        "min_samples": 20,
        "rule": "the window rule",
        "emission_rate": 0.5,
        "chance": [0.5**25, 0.5**3],
    }
)
COST = pl.DataFrame(
    {
        "provider_id": ["a", "b", "c"],
        "calls": 30,
        "cost_micro": [2_000_000, 1_000_000, 0],
        "compared": [30, 30, 0],
        "deviation": [1.25, 1.0, None],
        "signal": ["reported", "derived", None],
        "warn": [True, False, False],
    }
)
FRAMES = {
    "reliability": RULES,
    "latency": RULES.with_columns(pl.col("value") * 1000),
    "flips": FLIPS,
    "differences": DIFFERENCES,
    "stamped": STAMPED,
    "tools": TOOLS,
    "cost": COST,
}

each = pytest.mark.parametrize("name", CHARTS)
themed = pytest.mark.parametrize("theme", look.THEMES)


def drawn(name: str, frame: pl.DataFrame | None = None, **options: Any) -> dict[str, Any]:
    """Return a chart as Vega-Lite."""
    made: dict[str, Any] = CHARTS[name].draw(FRAMES[name] if frame is None else frame, **options).to_dict()
    return made


def title(name: str, frame: pl.DataFrame | None = None) -> str:
    """Return the title as one line."""
    return " ".join(drawn(name, frame, width=4000)["title"]["text"])


def rows(chart: dict[str, Any], column: str) -> list[dict[str, Any]]:
    """Return the rows of the chart's data sets that have a column."""
    return [row for data in chart["datasets"].values() for row in data if column in row]


def within(node: Any, key: str) -> Iterator[Any]:
    """Yield every value under a key, at any depth outside the data."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            elif name != "datasets":
                yield from within(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from within(value, key)


@each
def test_a_registered_chart_is_documented(name: str) -> None:
    """A chart has a name, one line of documentation, documented columns, an example, and is exported."""
    spec = CHARTS[name]
    text = spec.draw.__doc__ or ""
    assert spec.name == name
    assert spec.documentation.endswith(".")
    assert "\n" not in spec.documentation
    assert f">>> {name}(frame)" in text
    assert "Columns:" in text
    assert name in charts.__all__
    if "as for" not in text:
        assert all(f"`{column}`" in text for column in spec.columns)


@themed
@each
def test_a_chart_has_alt_text_that_says_its_finding(name: str, theme: str) -> None:
    """Alt text holds the title's finding and more than that; nothing in it is missing or not a number."""
    made = drawn(name, theme=theme, width=4000)
    assert " ".join(made["title"]["text"]) in made["description"]
    assert len(made["description"]) > len(" ".join(made["title"]["text"])) + 20
    assert not {"None", "nan", "null"} & set(made["description"].split())


@themed
@each
def test_an_empty_frame_gives_a_sentence(name: str, theme: str) -> None:
    """Without data there is a chart whose alt text is the one sentence it shows."""
    made = drawn(name, pl.DataFrame(schema=CHARTS[name].columns), theme=theme)
    assert made["description"].startswith("There is nothing to draw: ")
    assert rows(made, "text")[0]["text"].replace("\n", " ") == made["description"]


@each
def test_a_missing_column_is_named(name: str) -> None:
    """The message names the column that is missing and those expected."""
    column = list(CHARTS[name].columns)[-1]
    with pytest.raises(ReplayError, match=f"{name} chart was given a frame without {column}; expected"):
        drawn(name, FRAMES[name].drop(column))


@each
def test_a_wrong_type_is_named(name: str) -> None:
    """Texts where numbers are expected, and holes in whole numbers, are refused with the column's name."""
    for column, wanted in CHARTS[name].columns.items():
        if wanted in (pl.Int64, pl.Float64):
            with pytest.raises(ReplayError, match=f"the column {column} as String; expected"):
                drawn(name, FRAMES[name].with_columns(pl.lit("x").alias(column)))
        if wanted == pl.Int64:
            with pytest.raises(ReplayError, match=f"the column {column} as Int64 with nulls"):
                drawn(name, FRAMES[name].with_columns(pl.lit(None, dtype=pl.Int64).alias(column)))


@each
def test_an_impossible_width_or_theme_is_refused(name: str) -> None:
    """Neither gives a picture nobody can read."""
    with pytest.raises(ReplayError, match="width 5 px"):
        drawn(name, width=5)
    with pytest.raises(ReplayError, match="theme 'sepia'"):
        drawn(name, theme="sepia")


@each
def test_colour_is_never_alone(name: str) -> None:
    """Where colour tells categories apart, shape, dashes or a panel's heading tell them apart as well."""
    made = drawn(name)
    for encoding in within(made, "encoding"):
        if "field" in encoding.get("color", {}):
            other = {"shape", "strokeDash", "y"} & {key for key in encoding if "field" in encoding[key]}
            assert other or "facet" in made, encoding


@each
def test_the_legend_is_short_and_has_no_selection(name: str) -> None:
    """Categories are capped, and layered charts have no selections."""
    made = drawn(name)
    assert all(len(scale.get("domain", [])) <= look.MAX_CATEGORIES + 1 for scale in within(made, "scale") if scale)
    assert not list(within(made, "params"))


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour (WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, 1 to 21 (WCAG 2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@themed
def test_contrast_is_enough(theme: str) -> None:
    """Marks have at least 3 to 1 against their background, text at least 4.5 to 1."""
    looks = look.THEMES[theme]
    assert all(contrast(colour, looks.background) >= 3 for colour in looks.colours)
    assert all(contrast(text, looks.background) >= 4.5 for text in (looks.text, looks.muted, looks.failed))
    assert len(set(looks.colours)) == len(look.SHAPES) == len(look.DASHES) == look.MAX_CATEGORIES


SEEN_AS = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
}  # Machado, Oliveira, Fernandes 2009, severity 1


def seen(colour: str, vision: str) -> tuple[float, float, float]:
    """Return the L*a*b* of a colour as a colour-blind reader sees it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    red, green, blue = (
        min(1.0, max(0.0, sum(w * p for w, p in zip(row, linear, strict=True)))) for row in SEEN_AS[vision]
    )
    xyz = (
        (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047,
        0.2126 * red + 0.7152 * green + 0.0722 * blue,
        (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883,
    )
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@themed
@pytest.mark.parametrize("vision", SEEN_AS)
def test_the_first_six_colours_differ_for_colour_blind_readers(theme: str, vision: str) -> None:
    """The closest two of them are at least 10 apart in L*a*b*."""
    colours = [seen(colour, vision) for colour in look.THEMES[theme].colours[:6]]
    assert min(math.dist(a, b) for a, b in itertools.combinations(colours, 2)) >= 10


def labels_of(first_ms: int, last_ms: int, width: int = 600) -> list[list[str]]:
    """Return the lines of a time axis's labels."""
    axis = times.time_axis(first_ms, last_ms, 60_000, width).to_dict()
    return list(json.loads(axis["labelExpr"].partition("}[")[0] + "}").values())


def test_one_minute_has_hours_and_its_date() -> None:
    """One call: every label is an hour and minute, the first one also says the day."""
    assert labels_of(NOON_MS, NOON_MS + 60_000)[:2] == [["11:56", "2 Mar 2026"], ["11:58"]]


def test_a_week_has_days_and_its_year() -> None:
    """Days in one form, the year under the first and under that of a new year."""
    new_year = 1_767_225_600_000
    assert labels_of(new_year - 2 * 24 * HOUR_MS, new_year + 2 * 24 * HOUR_MS) == [
        ["30 Dec", "2025"], ["31 Dec"], ["1 Jan", "2026"], ["2 Jan"], ["3 Jan"],
    ]  # fmt: skip


def test_long_spans_have_months_with_years() -> None:
    """Over 300 days every label has its year."""
    assert labels_of(NOON_MS, NOON_MS + 400 * 24 * HOUR_MS) == [
        ["May 2026"], ["Jul 2026"], ["Sep 2026"], ["Nov 2026"], ["Jan 2027"], ["Mar 2027"],
    ]  # fmt: skip


@given(st.integers(0, 2**42), st.integers(1, 2**41), st.integers(3, 10))
def test_ticks_are_few_and_within_their_span(first: int, length: int, most: int) -> None:
    """No span has more ticks than asked for, and none lies outside."""
    at = [tick for tick, *_ in times.ticks_utc(first, first + length, most)]
    assert len(at) <= most
    assert all(first <= tick <= first + length for tick in at)


def test_rules_are_drawn_over_the_outcomes() -> None:
    """Every value is in the data at its bin's middle, the bin without a value is not, and lines carry segments."""
    made = drawn("reliability")
    points = {(row["series"], row["at_ms"]): row["value"] for row in rows(made, "value")}
    half = HOUR_MS // 2
    assert points["recorded: share ok", 5 * HOUR_MS + half] == 0.5
    assert points["before", half] == 0.8
    assert ("now", 5 * HOUR_MS + half) not in points
    (line,) = [layer for layer in made["layer"] if layer["mark"]["type"] == "line"]
    assert {detail["field"] for detail in line["encoding"]["detail"]} == {"series", "segment"}
    assert made["layer"][0]["encoding"]["x"]["scale"]["type"] == "utc"


def test_failed_attempts_are_marked() -> None:
    """Only the bin that holds a failed attempt has a mark."""
    marked = [row for row in rows(drawn("reliability"), "series") if row["series"] == "bin with a failed attempt"]
    assert [row["failed"] for row in marked] == [1]


def test_latency_is_logarithmic_in_ms() -> None:
    """The axis is logarithmic and says its unit."""
    y = drawn("latency")["layer"][0]["encoding"]["y"]
    assert (y["scale"]["type"], y["axis"]["title"]) == ("log", "latency (ms, logarithmic)")


def test_reliability_title_says_how_far_apart_the_rules_are() -> None:
    """The only bin has 0.9 and 0.8."""
    assert title("reliability", RULES.filter(bin_start_ms=0)) == "now and before are up to 10 points apart on p|m"


def test_a_rule_without_a_figure_is_read_as_certain_in_the_title() -> None:
    """Read as 100 %, the silent rule is 60 points from 40 %, which is more than the 10 where both have a figure."""
    assert title("reliability") == "now has no figure while before falls to 40 % on p|m"


def test_a_single_stamp_among_many_attempts_is_not_the_finding() -> None:
    """One stamp of 0 among four attempts is read as 75 % on average: 40 % of all attempts is further from 100 %."""
    stamped = RULES.with_columns(
        value=pl.Series([0.75, 0.5, None, None, 0.0, 0.4]), attempts=pl.Series([4, 2, 0, 0, 1, 2])
    )
    assert title("reliability", stamped) == "now has no figure while before falls to 40 % on p|m"


def test_the_title_counts_what_is_drawn_where_every_rule_has_a_figure() -> None:
    """Points drawn at 100 % and 0 % are 100 points apart, however few attempts are behind one."""
    both = RULES.filter(bin_start_ms=0).with_columns(value=pl.Series([0.75, 1.0, 0.0]), attempts=pl.Series([4, 4, 1]))
    assert title("reliability", both) == "now and before are up to 100 points apart on p|m"


def test_latency_title_counts_only_figures_there_are() -> None:
    """Without a figure there is no latency to compare: only the first bin's 900 and 800 ms count."""
    assert title("latency") == "now and before are up to 1.1 times apart on p|m"


def test_more_rules_than_colours_are_said() -> None:
    """Of ten rules seven are drawn, and the subtitle says that three are not."""
    ten = pl.concat([RULES.filter(series="now").with_columns(series=pl.lit(f"rule {i}")) for i in range(10)])
    made = drawn("reliability", pl.concat([RULES.filter(series="recorded"), ten]))
    assert "3 more rules not shown." in " ".join(made["title"]["subtitle"])
    assert len({row["series"] for row in rows(made, "value")}) == 8


def test_flips_have_one_panel_per_cause() -> None:
    """Panels carry their cause and total, most first; the title's share is of all decisions."""
    made = drawn("flips")
    assert made["facet"]["row"]["sort"] == ["latency: 4 flips", "tools: 2 flips"]
    assert sum(row["flips"] for row in rows(made, "flips")) == 6
    assert title("flips") == "30 % of decisions flip between now and before, most by latency"


def test_ties_are_stated_apart() -> None:
    """Ties are in neither the title's share nor the subtitle's flips, and their panel, the last, says so."""
    tied = FLIPS.with_columns(cause=pl.col("cause").replace({"latency": "tie"}))
    made = drawn("flips", tied)
    assert title("flips", tied) == "10 % of decisions flip between now and before, most by tools; 4 ties apart"
    assert "2 flips in 20 decisions" in " ".join(made["title"]["subtitle"])
    assert made["facet"]["row"]["sort"] == ["tools: 2 flips", "ties (apart): 4"]


def test_only_ties_are_no_flips() -> None:
    """Where all are ties, no decision flips."""
    assert title("flips", FLIPS.with_columns(cause=pl.lit("tie")).filter(flips=3)) == (
        "No decision flips between now and before; 3 ties apart"
    )


def test_flips_begin_at_zero() -> None:
    """Bars stand on zero."""
    assert drawn("flips")["spec"]["encoding"]["y2"] == {"datum": 0}


def test_differences_show_the_leading_routes_and_say_so() -> None:
    """All routes and the twenty with most attempts, of three hundred."""
    made = drawn("differences")
    assert len(rows(made, "verdict")) >= 21
    assert len({row["route"] for row in rows(made, "verdict")}) == 21
    assert "the 20 of 300 routes with most attempts" in " ".join(made["title"]["subtitle"])


def test_differences_say_which_direction_is_better() -> None:
    """Both ends of the axis name the setting that they speak for, and zero has a line."""
    made = drawn("differences")
    assert {"← now better", "before better →"} <= {row["said"] for row in rows(made, "said")}
    assert rows(made, "zero") == [{"zero": 0.0}]


@pytest.mark.parametrize(
    ("difference", "low", "high", "said"),
    [
        (-0.02, -0.03, -0.01, "now predicts better than before"),
        (0.02, 0.01, 0.03, "before predicts better than now"),
        (0.02, -0.01, 0.03, "No difference shown between now and before"),
        (0.02, None, None, "Not decided between now and before"),
    ],
)
def test_differences_title_follows_the_interval(
    difference: float, low: float | None, high: float | None, said: str
) -> None:
    """A rule is called better only where the interval excludes zero."""
    row = DIFFERENCES.head(1).with_columns(
        difference=pl.lit(difference), low=pl.lit(low, dtype=pl.Float64), high=pl.lit(high, dtype=pl.Float64)
    )
    assert title("differences", row).startswith(said + (":" if low is not None else ","))


def test_points_without_interval_do_not_stretch_the_axis() -> None:
    """A difference of 9 without an interval is written at the axis's end."""
    made = drawn("differences")
    (domain,) = {tuple(scale["domain"]) for scale in within(made, "scale") if scale.get("clamp")}
    assert domain[0] < -0.03
    assert 0.03 < domain[1] < 0.1
    assert "+9.00" in {row["said"] for row in rows(made, "said")}


def test_stamped_shares_run_from_nothing_to_all() -> None:
    """The axis is the whole range, and rows carry what they count."""
    made = drawn("stamped")
    assert next(scale["domain"] for scale in within(made, "scale") if scale.get("nice") is False) == [0, 1]
    assert {row["class"] for row in rows(made, "share")} == {"all attempts · 10", "busy routes (1) · 10"}


def test_tools_mark_the_condemned_and_the_threshold() -> None:
    """The condemned route has a cross, the threshold its line, and the three counts their points."""
    made = drawn("tools")
    points = {(row["route"], row["measure"]): row["count"] for row in rows(made, "measure")}
    assert points["× p|m|x", "most silent requests in a window"] == 25
    assert points["p|m|y", "answered with a tool call"] == 20
    assert [row["count"] for row in rows(made, "said")] == [20]


@pytest.mark.parametrize(("emitted", "align"), [(1_000_000, "left"), (0, "right")])
def test_the_threshold_is_written_where_there_is_room(emitted: int, align: str) -> None:
    """Left of its line where the line is near the right end."""
    one = TOOLS.head(1).with_columns(requests=pl.lit(emitted), emitted=pl.lit(emitted))
    (mark,) = {m["align"] for m in within(drawn("tools", one), "mark") if m.get("color") == "#b3261e" and "align" in m}
    assert mark == align


def test_tools_write_the_chance_of_silence() -> None:
    """At p = 50 %, three silent requests in a row have a chance of 12.5 %."""
    made = drawn("tools")
    assert {(row.get("route"), row["written"]) for row in rows(made, "written")} == {
        ("× p|m|x", "< 0.1 %"),
        ("p|m|y", "12.5 %"),
        (None, "chance"),
    }
    assert "p = 50 %." in " ".join(made["title"]["subtitle"])


def test_without_any_tool_call_there_is_no_chance() -> None:
    """Then nothing is known of p, and the subtitle says so."""
    made = drawn("tools", TOOLS.with_columns(pl.lit(None).alias("emission_rate"), pl.lit(None).alias("chance")))
    assert not rows(made, "written")
    assert "No route ever called a tool" in " ".join(made["title"]["subtitle"])


def test_charges_that_have_no_ratio_are_drawn_and_told() -> None:
    """Charged though listed free, and nothing charged, warn in the title and stand at the axis's ends in words."""
    frame = COST.with_columns(warn=pl.lit(True), deviation=pl.Series([1.25, 0.0, None]))
    made = drawn("cost", frame)
    at = {row["provider"][0]: row["at"] for row in rows(made, "signal")}
    assert at["b"] < 0.85 < 1.25 < at["c"]
    assert {row["provider"][0]: row["said"] for row in rows(made, "said")} == {
        "b": "charged nothing",
        "c": "charged though listed free",
    }
    assert title("cost", frame) == (
        "3 of 3 providers charge off their list price: b charged nothing, c charged though listed free and 1 more"
    )


def test_a_warning_is_shown_however_small_its_cost() -> None:
    """Of the one provider shown, it is the one that warns."""
    frame = COST.with_columns(warn=pl.Series([False, True, False]))
    assert [row["provider"] for row in rows(drawn("cost", frame, top=1), "signal")] == ["b · 30 calls, 1.00 USD"]


def test_cost_says_who_reports() -> None:
    """One reports its own figure, two report their own."""
    quiet = COST.with_columns(warn=pl.lit(False), deviation=pl.lit(1.0))
    assert title("cost", quiet) == "None of 3 providers warns; only 1 of them reports its own figure"
    two = quiet.with_columns(signal=pl.Series(["reported", "reported", "derived"]))
    assert title("cost", two) == "None of 3 providers warns; only 2 of them report their own figures"


def test_cost_shows_signal_volume_and_band() -> None:
    """Each provider carries its calls and cost; the band is 15 % wide on either side."""
    made = drawn("cost")
    points = {row["provider"]: row["signal"] for row in rows(made, "provider")}
    assert points == {"a · 30 calls, 2.00 USD": "reported, warns", "b · 30 calls, 1.00 USD": "derived"}
    (band,) = rows(made, "low")
    assert (band["low"], band["high"]) == (0.85, 1.15)


def test_far_deviations_get_a_logarithmic_axis() -> None:
    """Thirty times the list price and a fiftieth of it are on one axis."""
    frame = COST.with_columns(deviation=pl.Series([30.0, 0.02, None]))
    assert "log" in {scale.get("type") for scale in within(drawn("cost", frame), "scale") if scale}
