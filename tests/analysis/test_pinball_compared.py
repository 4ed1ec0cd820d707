"""Pinball loss from a ledger to what a person reads: `replay compare`, its frames, the report."""

from __future__ import annotations

import math
import re
from pathlib import Path

import polars as pl
import pytest

from analysis.report import to_html, to_markdown
from replay import record, report
from replay.cli import run_cli

SETTINGS = """
name = "{name}"
[latency]
rule = "quantile"
q = {q}
n = {n}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four attempts of one route, of 100, 200, 100 and 200 ms, replayed under three quantiles and a mean."""
    folder = tmp_path_factory.mktemp("pinball")
    rows = [f"{n},{n}0000,p,m,p,true,{ms}" for n, ms in enumerate((100, 200, 100, 200), start=1)]
    header = "id,ts,provider_id,model_family,served_by,ok,latency_ms"
    (folder / "attempts.csv").write_text("\n".join([header, *rows]) + "\n")
    mirror = str(folder / "ledger.duckdb")
    assert run_cli(["import", str(folder / "attempts.csv"), "--as", "route_observations", "--into", mirror]) == 0
    given = []
    for name, q, n in (("last", 0.9, 1), ("two", 0.9, 2), ("median", 0.5, 1)):
        (folder / f"{name}.toml").write_text(SETTINGS.format(name=name, q=q, n=n))
        given += ["-s", str(folder / f"{name}.toml")]
    assert run_cli(["run", mirror, *given, "-s", "production-now", "-o", str(folder / "run")]) == 0
    return folder / "run"


# The last predicts 100, 200, 100 of 200, 100, 200; the 0.9-quantile of two is the larger of them: 100, 200, 200.
LAST, TWO, MEDIAN = (0.9 + 0.1 + 0.9) / 3 * math.log(2), (0.9 + 0.1) / 3 * math.log(2), 0.5 * math.log(2)


def test_compare_prints_the_loss_of_every_quantile(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three settings have one, named with its q; the two of one quantile are paired; a mean has none."""
    monkeypatch.setenv("COLUMNS", "200")  # in a narrow terminal a name takes several lines
    assert run_cli(["compare", str(run)]) == 0
    said = capsys.readouterr().out
    rows = re.findall(r"pinball loss \(q = ([0-9.]+)\) +(\S+) +([0-9.]+) +3 ", said)
    assert rows == [("0.9", "last", f"{LAST:.4f}"), ("0.5", "median", f"{MEDIAN:.4f}"), ("0.9", "two", f"{TWO:.4f}")]
    paired = re.findall(r"pinball loss \(q = ([0-9.]+)\) +both stamped +(\S+)", said)
    assert paired == [("0.9", f"{LAST - TWO:+.4f}")]


def test_the_verdict_judges_quantiles_by_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Log latency error would favour the rule nearest the median; unlike figures of latency are not compared."""
    assert run_cli(["compare", str(run)]) == 0
    said = capsys.readouterr().out.split("Stamped:")[0]
    assert re.search(
        r"not decided between last and two at the attempt \(.*\): Pinball loss \(q = 0.9\) 0.4\d* vs", said
    )
    for other in ("median", "production-now"):
        assert (
            f"latency is not compared at the attempt: the rules of last and {other} predict different figures" in said
        )
    assert "Log latency error" not in said


def test_the_frames_hold_the_same(run: Path) -> None:
    """Not rounded, for who goes on from there."""
    assert run_cli(["compare", str(run)]) == 0
    figures = pl.read_parquet(run / "compare" / "figures.parquet").filter(
        pl.col("metric").str.starts_with("pinball"), question="at the attempt", scope="all"
    )
    found = dict(figures.select("setting", "value").iter_rows())
    assert found == pytest.approx({"last": LAST, "two": TWO, "median": MEDIAN}, rel=1e-15)


def test_the_report_shows_it(run: Path) -> None:
    """In HTML and Markdown, each with the figure."""
    stored = [record.read(run)]
    document = report.build(stored, report.gather(stored), [])
    for text in (to_html(document), to_markdown(document, "r")[0]):
        assert "pinball loss (q = 0.9)" in text
        assert f"{LAST:.4f}" in text


def test_a_chart_of_the_differences_takes_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the name that the tables show; a quantile that no pair shares is not known."""
    words = ["chart", "differences", str(run), "-o", str(tmp_path / "d.json"), "--against", "two", "--metric"]
    assert run_cli([*words, "pinball loss (q = 0.9)"]) == 0
    assert run_cli([*words, "pinball loss (q = 0.5)"]) == 2
    assert "expected one of brier, log loss, log latency error, pinball loss (q = 0.9)" in capsys.readouterr().err
