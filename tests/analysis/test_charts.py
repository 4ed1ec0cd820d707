"""Charts by their data and encodings, never by pixels; and the command that writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis import charts
from analysis.charts import CHARTS
from analysis.charts import theme as look
from replay.cli import run_cli
from replay.errors import ReplayError
from replay.ledger.mirror import open_mirror

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
    """The only bin that both rules saw has 0.9 and 0.8."""
    assert title("reliability") == "now and before are up to 10 points apart on p|m"


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


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replay, under both presets, of forty calls of two routes, one of which fails every third time."""
    folder = tmp_path_factory.mktemp("charts")
    with open_mirror(folder / "ledger.duckdb", write=True) as connection:
        for i in range(40):
            provider, ts = ("a", "b")[i % 2], NOON_MS + i * 60_000
            ok = i % 3 != 0
            connection.execute(
                "INSERT INTO route_observations (id, ts, provider_id, model_family, served_by, ok, latency_ms, "
                "started_at, request_id, attempt, tools_requested, tool_calls_emitted) "
                "VALUES (?, ?, ?, 'm', ?, ?, 500, ?, ?, 1, true, ?)",
                [i, ts, provider, provider, ok, ts - 500, f"r{i}", i % 4 == 0],
            )
            connection.execute(
                "INSERT INTO calls (id, ts, usage_event_id, provider_id, model_family, served_by, status, latency_ms, "
                "tokens_in, tokens_out, cost_usd, cost_basis, decided_at, evidence_at) "
                "VALUES (?, ?, ?, ?, 'm', ?, ?, 500, 1000, 0, 0.0012, 'reported', ?, ?)",
                [i, ts // 1000, f"r{i}", provider, provider, 200 if ok else 500, ts - 500, ts - 500],
            )
        connection.execute("INSERT INTO provider_prices VALUES ('a', 'm', 1, 1, 1, 0), ('b', 'm', 1, 1, 1, 0)")
    run = folder / "run"
    both = ["-s", "production-now", "-s", "production-before"]
    run_cli(["run", str(folder / "ledger.duckdb"), *both, "--policy", "cheapest", "-o", str(run)])
    assert (run / "record.json").is_file()
    return run


@each
def test_the_loader_gives_what_the_chart_draws(name: str, run_folder: Path) -> None:
    """From a real run's folder to a chart, without a stored comparison."""
    frame = CHARTS[name].frame(run_folder)
    assert set(CHARTS[name].columns) <= set(frame.columns)
    assert frame.height <= 3_000
    assert drawn(name, frame)["description"]


def test_an_option_a_chart_does_not_have_is_refused(run_folder: Path) -> None:
    """The message says which options there are."""
    with pytest.raises(ReplayError, match="given the option route; it takes setting"):
        CHARTS["tools"].frame(run_folder, route="a|m|a")


def test_cost_deviation_is_that_of_the_ledger(run_folder: Path) -> None:
    """1,000 tokens at 1 USD per million are 0.001 USD; 0.0012 was charged."""
    assert CHARTS["cost"].frame(run_folder)["deviation"].to_list() == pytest.approx([1.2, 1.2])


@pytest.mark.parametrize(
    ("suffix", "begins"),
    [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF"), ("html", b"<!DOCTYPE html>"), ("json", b"{")],
)
def test_the_command_writes_every_format(suffix: str, begins: bytes, run_folder: Path, tmp_path: Path) -> None:
    """Each file begins as its format does."""
    out = tmp_path / f"chart.{suffix}"
    assert run_cli(["chart", "cost", str(run_folder), "-o", str(out), "--theme", "dark"]) == 0
    assert out.read_bytes().startswith(begins)


def test_html_and_svg_fetch_nothing(run_folder: Path, tmp_path: Path) -> None:
    """The page has no script, style sheet, font or image of another address; the SVG carries the alt text."""
    for suffix in ("html", "svg"):
        assert run_cli(["chart", "stamped", str(run_folder), "-o", str(tmp_path / f"chart.{suffix}")]) == 0
    page, picture = ((tmp_path / f"chart.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "svg"))
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert "@import" not in page
    assert "cdn." not in page
    assert "had a figure for" in picture


def test_the_json_is_the_chart(run_folder: Path, tmp_path: Path) -> None:
    """What is written is what the function draws, the same each time."""
    out = tmp_path / "chart.json"
    assert run_cli(["chart", "tools", str(run_folder), "-o", str(out), "--width", "1200"]) == 0
    expected = CHARTS["tools"].draw(CHARTS["tools"].frame(run_folder), width=1200).to_dict()
    assert json.loads(out.read_text(encoding="utf-8")) == expected


def test_the_command_alone_lists_the_charts(capsys: pytest.CaptureFixture[str]) -> None:
    """Every chart is listed with its documentation."""
    assert run_cli(["chart"]) == 0
    listed = capsys.readouterr().out
    assert all(spec.documentation in listed for spec in CHARTS.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope", "RUN", "-o", "x.png"], "There is no chart 'nope'"),
        (["cost", "RUN"], "needs a run's folder and -o FILE"),
        (["cost", "RUN", "-o", "x.bmp"], "asks for the format bmp"),
        (["cost", "no/run", "-o", "x.png"], "is no run's folder"),
        (["cost", "RUN", "-o", "x.png", "--mirror", "gone.duckdb"], "is not at gone.duckdb"),
        (["reliability", "RUN", "-o", "x.png", "--route", "x|y|z"], "'x|y|z' has no attempts"),
        (["differences", "RUN", "-o", "x.png", "--metric", "luck"], "The metric 'luck' is not known"),
        (["flips", "RUN", "-o", "no/folder/x.png"], "could not be written"),
    ],
)
def test_bad_words_are_one_paragraph(
    arguments: list[str],
    said: str,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, what was wrong, and no file."""
    monkeypatch.chdir(tmp_path)
    assert run_cli(["chart", *(str(run_folder) if word == "RUN" else word for word in arguments)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
