from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
from pathlib import Path

import polars as pl
import pytest

from analysis.charts import CHARTS
from replay import record, report
from replay.cli import run_cli

ORDER = [
    "Verdict", "Reproduction and audit", "What was inferred", "Figures with intervals", "Charts", "Tables",
    "What these numbers cannot say", "Inputs and settings",
]  # fmt: skip


def test_the_report_has_a_reviewers_order(written: Path) -> None:
    """Verdict first, limits and inputs last."""
    assert re.findall(r"<h2>(.*?)</h2>", written.read_text()) == ORDER
    assert re.findall(r"^## (.*)$", written.with_suffix(".md").read_text(), re.MULTILINE) == ORDER


def test_every_chart_is_there_small_enough_and_offline(written: Path) -> None:
    """All of the registry's charts, under 5 MB, and no SVG that loads anything."""
    page = written.read_text()
    assert re.findall(r'id="chart-(\w+)"', page) == list(CHARTS)
    assert written.stat().st_size < 5_000_000
    for data in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page):
        svg = base64.b64decode(data).decode()
        assert not re.findall(r'(?:href|src)="(?!#|data:)', svg)
        assert "<script" not in svg


def test_the_markdown_links_to_files_that_exist(written: Path) -> None:
    """Each picture of the twin is a PNG beside it."""
    links = re.findall(r"!\[[^\n]*\]\(<([^>]+)>\)", written.with_suffix(".md").read_text())
    assert len(links) == len(CHARTS)
    for link in links:
        assert (written.parent / link).read_bytes().startswith(b"\x89PNG")


def test_the_figures_are_those_of_the_comparison(written: Path, runs: Path) -> None:
    """The leading difference and the flips in the page are the ones stored in the run's folder."""
    stored = pl.read_parquet(runs / "both" / "compare" / "differences.parquet")
    asked = {"question": "as read", "metric": "brier", "over": "all", "scope": "all"}
    (row,) = stored.filter(**asked).iter_rows(named=True)
    page = written.read_text()
    assert f'<td class="number">{row["difference"]:+.4f}</td>'.replace("-", "−") in page
    flips = pl.read_parquet(runs / "both" / "compare" / "flip_summary.parquet").filter(group="all")
    assert f'<td>all decisions</td><td></td><td class="number">{flips["flips"][0]:,}</td>' in page
    assert flips["flips"][0] > 10


@pytest.mark.slow
def test_every_command_in_it_runs(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command line is one that `replay` accepts, with exit code 0."""
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"```sh\n(.*?)\n```", written.with_suffix(".md").read_text())
    assert len(set(lines)) > 8
    for line in sorted(set(lines)):
        name, *arguments = shlex.split(line)
        assert name == "replay"
        if arguments[0] == "run":
            arguments[-1] = str(tmp_path / "again")
        assert run_cli(arguments) == 0, line
    again = json.loads((tmp_path / "again" / "record.json").read_text())
    assert again == record.read(written.parents[1] / "both").record


def test_the_same_run_gives_the_same_bytes(written: Path, runs: Path) -> None:
    """A second report of the same run does not differ, pictures included."""
    first = {path.name: path.read_bytes() for path in written.parent.iterdir()}
    assert run_cli(["report", str(runs / "both"), "-o", str(written)]) == 0
    assert {path.name: path.read_bytes() for path in written.parent.iterdir()} == first


def test_a_single_setting_has_a_report(runs: Path) -> None:
    """Nothing flips and nothing differs, and the page says so instead of failing."""
    assert run_cli(["report", str(runs / "now")]) == 0
    page = (runs / "now" / "report.html").read_text()
    assert "One setting was replayed, so there is nothing that flips or differs." in page
    assert not (runs / "now" / "compare").exists()


def test_two_runs_share_a_report(runs: Path, tmp_path: Path) -> None:
    """Settings of two folders stand against each other, each told by its folder where names are alike."""
    copy = tmp_path / "copy"
    shutil.copytree(runs / "now", copy)
    stored = [record.read(runs / "now"), record.read(copy)]
    compared = report.gather(stored)
    document = report.build(stored, compared, [], None)
    assert document.title == "production-now (now) against production-now (copy)"
    assert [part.title for part in document.sections] == ORDER


def test_a_failed_audit_is_said_in_red(runs: Path, tmp_path: Path) -> None:
    """A mismatch is marked bad among the proofs and among the facts above everything."""
    copy = tmp_path / "copy"
    shutil.copytree(runs / "now", copy)
    made = json.loads((copy / "record.json").read_text())
    made["replayed"][0]["audit"] |= {"mismatches": 2, "first_mismatches": ["call 1, route <b>: count is 1, 2"]}
    (copy / "record.json").write_text(json.dumps(made))
    stored = [record.read(copy)]
    document = report.build(stored, report.gather(stored), [])
    assert ("Audit mismatches", "2", "bad") in document.facts
    page = report.to_html(document)
    assert '<li class="bad"><span class="aside">Does not hold: </span>Audit of production-now FAILED: 2' in page
    assert "route &lt;b&gt;: count" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "is no run's folder"),
        (["both", "-o", "x.pdf"], "expected a name that ends in .html"),
        (["both", "-o", "ledger.duckdb/report.html"], "could not be written"),
    ],
)
def test_what_cannot_be_reported_is_said(
    runs: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input ends with one paragraph and exit code 2."""
    monkeypatch.chdir(runs)
    assert run_cli(["report", *arguments]) == 2
    assert said in capsys.readouterr().err
