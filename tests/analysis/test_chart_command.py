"""Charts from a run folder, and the command that writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.charts import CHARTS
from replay.cli import run_cli
from replay.errors import ReplayError
from replay.ledger.mirror import open_mirror

NOON_MS = 1_772_452_800_000

each = pytest.mark.parametrize("name", CHARTS)


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
    assert CHARTS[name].draw(frame).to_dict()["description"]


def test_an_option_a_chart_does_not_have_is_refused(run_folder: Path) -> None:
    """The message says which options there are."""
    with pytest.raises(ReplayError, match="given the option route; it takes setting"):
        CHARTS["tools"].frame(run_folder, route="a|m|a")


def test_cost_deviation_is_that_of_the_ledger(run_folder: Path) -> None:
    """1,000 tokens at 1 USD per million are 0.001 USD; 0.0012 was charged."""
    assert CHARTS["cost"].frame(run_folder)["deviation"].to_list() == pytest.approx([1.2, 1.2])


@pytest.mark.parametrize("name", ["cost", "tools"])
def test_a_mirror_is_enough_for_what_only_reads_it(name: str, run_folder: Path, tmp_path: Path) -> None:
    """Without a run, the mirror gives the same frame as through the run made from it."""
    mirror, out = run_folder.parent / "ledger.duckdb", tmp_path / "chart.svg"
    assert CHARTS[name].frame(None, mirror).equals(CHARTS[name].frame(run_folder))
    assert run_cli(["chart", name, "--mirror", str(mirror), "-o", str(out)]) == 0
    assert out.read_text(encoding="utf-8").startswith("<svg")


def test_the_tools_rule_of_a_preset_needs_no_run(run_folder: Path) -> None:
    """Without a run the setting names a preset."""
    frame = CHARTS["tools"].frame(None, run_folder.parent / "ledger.duckdb", setting="production-before")
    assert frame["rule"][0].startswith("the sticky rule")


def test_a_chart_that_needs_a_run_says_so() -> None:
    """The message says what it needs."""
    with pytest.raises(ReplayError, match=r"stamped chart was given no run; it needs a run's folder\."):
        CHARTS["stamped"].frame(None, Path("ledger.duckdb"))


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


def test_the_command_alone_lists_the_charts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every chart is listed with its documentation, on one line where the terminal is wide."""
    monkeypatch.setenv("COLUMNS", "160")
    assert run_cli(["chart"]) == 0
    listed = capsys.readouterr().out
    assert all(spec.documentation in listed for spec in CHARTS.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope", "RUN", "-o", "x.png"], "There is no chart 'nope'"),
        (["cost", "RUN"], "needs a run's folder and -o FILE"),
        (["stamped", "-o", "x.png", "--mirror", "gone.duckdb"], "needs a run's folder and -o FILE"),
        (["cost", "-o", "x.png", "--mirror", "gone.duckdb"], "The mirror is not at gone.duckdb"),
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
