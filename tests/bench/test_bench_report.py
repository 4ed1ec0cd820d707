"""What came of benchmarks, as data, JSON, a page's table and a terminal's."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from replay.bench import Figure, report
from replay.bench.alone import alone
from replay.bench.report import BEGIN, BENCHES, END, Options, Report, Result
from replay.cli import run_cli
from replay.errors import ReplayError

FIGURES = [
    Figure("plain", 2.0, "rows/s"),
    Figure("ours", 50.0, "rows/s", "plain", 25.0, "≥ 20×", True),
    Figure("never", math.inf, "attempts"),
    Figure("memory", 600.25, "MB", None, None, "≤ 500 MB", False),
]
MACHINE = {"processor": "A CPU", "cores": "2", "memory": "24 GB", "system": "Linux x86_64"}
TOLD = Report(MACHINE, {"python": "3.11"}, False, [Result("store", FIGURES), Result("pull", [], "no server")])

Given = pytest.MonkeyPatch


@pytest.fixture
def stand_ins(monkeypatch: Given) -> None:
    """In place of the benchmarks: one that measures, one that cannot, one that is interrupted."""

    def cannot(say: object, options: Options) -> list[Figure]:
        raise ReplayError("there is no server")

    def interrupted(say: object, options: Options) -> list[Figure]:
        raise KeyboardInterrupt

    made = {"store": lambda say, options: FIGURES, "pull": cannot, "estimators": interrupted}
    monkeypatch.setattr(report, "BENCHES", made)


def test_json_and_back() -> None:
    """Everything survives, also a number that is none, and strict JSON it is."""
    text = report.to_json(TOLD)
    assert report.from_json(text) == TOLD
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data["results"][0]["figures"][2]["value"] is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "results": [{}]}'])
def test_what_is_no_report_is_refused(text: str) -> None:
    """Whatever is wrong, one sentence says what was expected."""
    with pytest.raises(ReplayError, match="expected a file written by replay bench --json"):
        report.from_json(text)


def test_the_table_of_a_page() -> None:
    """Only what something was aimed at, what was not measured, and where."""
    assert report.markdown(TOLD).splitlines() == [
        "| measured | | against | ratio | aim | reached |",
        "|---|--:|---|--:|---|---|",
        "| ours | 50.0 rows/s | plain | 25.0× | ≥ 20× | yes |",
        "| memory | 600 MB |  |  | ≤ 500 MB | no |",
        "| pull: not measured | | | | | |",
        "",
        "Measured with `replay bench` on A CPU, 2 cores, 24 GB, Linux x86_64; python 3.11.",
    ]


def test_the_table_takes_the_place_between_the_markers(tmp_path: Path) -> None:
    """What stands around it stays, and a second time changes nothing."""
    page = tmp_path / "README.md"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n", encoding="utf-8")
    report.into_page(page, TOLD)
    once = page.read_text(encoding="utf-8")
    assert once == f"above\n{BEGIN}\n{report.markdown(TOLD)}\n{END}\nbelow\n"
    report.into_page(page, TOLD)
    assert page.read_text(encoding="utf-8") == once


@pytest.mark.parametrize("text", [None, "", BEGIN, f"{END}\n{BEGIN}"])
def test_a_page_without_markers_is_refused_before_anything_runs(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str], stand_ins: None
) -> None:
    """Nothing is measured, and the page stays as it is."""
    page = tmp_path / "page.md"
    if text is not None:
        page.write_text(text, encoding="utf-8")
    assert run_cli(["bench", "store", "--markdown", str(page)]) == 2
    told = capsys.readouterr()
    assert "<!-- bench -->" in told.err
    assert told.out == ""
    assert text is None or page.read_text(encoding="utf-8") == text


def test_one_that_cannot_run_does_not_stop_the_others(
    stand_ins: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It says why, a missed aim is said, both without an error, and the JSON holds all."""
    file = tmp_path / "bench.json"
    assert run_cli(["bench", "pull", "store", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "pull cannot be measured here: there is no server" in out
    assert "600" in out
    assert "no" in out.split("600", 1)[1].splitlines()[0].split()
    read = report.from_json(file.read_text(encoding="utf-8"))
    assert read.results == [Result("pull", [], "there is no server"), Result("store", FIGURES)]
    assert read.machine == report.machine()


def test_what_was_measured_before_an_interruption_is_kept(
    stand_ins: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The JSON is written, the page is left alone, and the exit code is a shell's."""
    file, page = tmp_path / "bench.json", tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    assert run_cli(["bench", "store", "estimators", "--json", str(file), "--markdown", str(page)]) == 130
    assert "stopped; what was measured until then" in capsys.readouterr().err
    assert report.from_json(file.read_text(encoding="utf-8")).results == [Result("store", FIGURES)]
    assert page.read_text(encoding="utf-8") == f"{BEGIN}\n{END}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["speed"], "there is no benchmark 'speed'; expected some of store, pull, estimators, decisions, replays"),
        (["--quick", "--full"], "--quick only shows that it works"),
        (["--quick", "--markdown", "README.md"], "--quick only shows that it works"),
        (["--json", "/nowhere/at/all.json"], "The folder /nowhere/at for all.json does not exist"),
    ],
)
def test_bad_words_are_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing runs, the exit code is that of bad usage."""
    assert run_cli(["bench", *words]) == 2
    told = capsys.readouterr()
    assert said in " ".join(told.err.split())
    assert told.out == ""


def test_productions_database_is_not_measured_on(monkeypatch: Given) -> None:
    """DATABASE_URL, which a host has set, names no server to fill; BENCH_DATABASE_URL does."""
    given: list[str | None] = []

    def noted(say: object, options: Options) -> list[Figure]:
        given.append(options.dsn)
        return []

    monkeypatch.setattr(report, "BENCHES", {"store": noted})
    monkeypatch.setenv("DATABASE_URL", "postgresql://production/ledger")
    assert run_cli(["bench", "store"]) == 0
    monkeypatch.setenv("BENCH_DATABASE_URL", "postgresql://bench/empty")
    assert run_cli(["bench", "store"]) == 0
    assert given == [None, "postgresql://bench/empty"]


@pytest.mark.parametrize("name", ["store", "pull"])
@pytest.mark.parametrize("dsn", ["postgresql://me:s3cret@127.0.0.1:1/x", "postgresql://me:s3cret%zz@/x"])
def test_a_database_that_cannot_be_used_is_said_without_its_password(name: str, dsn: str) -> None:
    """Neither the address nor the password stands in the sentence, whichever part of the work met it."""
    (result,) = report.run([name], Options(quick=True, dsn=dsn), lambda what, done, total: None)
    assert result.figures == []
    assert result.cannot
    assert "s3cret" not in result.cannot


def test_what_fails_in_its_own_process_is_one_sentence() -> None:
    """It says what was to be measured and how it ended, so that the other benchmarks go on."""
    with pytest.raises(ReplayError, match=r"(?s)math.sqrt, to be measured, failed: .*ValueError"):
        alone("math", "sqrt", -1)


def test_the_store_needs_no_workbench_to_be_named() -> None:
    """Which benchmarks there are is known without importing any of them."""
    script = "import sys, replay.bench.report; print(sorted({'duckdb', 'polars', 'numpy', 'numba'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
    assert list(BENCHES) == ["store", "pull", "estimators", "decisions", "replays"]
