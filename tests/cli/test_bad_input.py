"""Bad input on the command line: one paragraph, the right exit code, no traceback, and nothing changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from replay.cli import run_cli
from replay.ledger.mirror import open_mirror

HEADER = "ts_utc,session,mode,provider,model,tokens_in,tokens_out,cost_usd,latency_s,status\n"
CALLS = [f"2025-01-0{day}T12:00:00Z,s{day},code,openai,gpt-4o,1000,100,0.01,3,ok\n" for day in range(1, 6)]
AIDER = ["--mapping", "aider_calls", "--into"]


def policy(filter_term: Any, score: Any) -> str:
    """Return a policy as JSON."""
    return json.dumps(["policy", filter_term, score, ["argmax"], ["id"], ["always", {"action": "abort"}]])


def nested(depth: int) -> Any:
    """Return a predicate of that depth."""
    term: Any = ["top"]
    for _ in range(depth - 1):
        term = ["not", term]
    return term


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small ledgers without recorded policies, a run of each, and files that are wrong in one way."""
    folder = tmp_path_factory.mktemp("bad")
    for name, count in (("five", 5), ("four", 4)):
        (folder / f"{name}.csv").write_text(HEADER + "".join(CALLS[:count]))
        mirror = str(folder / f"{name}.duckdb")
        assert run_cli(["import", str(folder / f"{name}.csv"), *AIDER, mirror]) == 0
        assert run_cli(["run", mirror, "--policy", "cheapest", "-o", str(folder / f"run-{name}")]) == 0
    with open_mirror(folder / "empty.duckdb", write=True):
        pass
    (folder / "text.duckdb").write_text("not a database")
    (folder / "row.csv").write_text(HEADER + CALLS[0] + CALLS[1].replace("1000", "many"))
    (folder / "unknown.toml").write_text('nonsense = 1\n[reliability]\nrule = "ema"\nalpha = 0.2\n')
    (folder / "inner.toml").write_text('[reliability]\nrule = "ema"\nalpha = 0.2\nalhpa = 0.3\n')
    (folder / "zero.toml").write_text('[reliability]\nrule = "window"\nwindow = "0m"\n')
    (folder / "broken.toml").write_text("[reliability\n")
    (folder / "field.json").write_text(policy(["top"], ["field", "bench_x"]))
    (folder / "deep.json").write_text(policy(nested(65), ["zero"]))
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def content(folder: Path) -> dict[str, str]:
    """Return every file below a folder with its hash."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


INFO = [
    (["info", "none.duckdb"], "There is no mirror at none.duckdb"),
    (["info", "text.duckdb"], "it is not a DuckDB file"),
    (["info", "."], "is a folder; expected a mirror file"),
]
IMPORT = [
    (["import", "none.csv", *AIDER, "new.duckdb"], "none.csv"),
    (["import", "row.csv", *AIDER, "new.duckdb"], "'many'"),
    (["import", "five.csv", "--mapping", "nobody", "--into", "new.duckdb"], "nobody"),
    (["import", "five.csv", "--into", "new.duckdb"], "Say what five.csv is"),
    (["import", "five.csv", "--as", "calls", "--into", "five.duckdb"], "five.csv"),
    (["import", "five.csv", *AIDER, "text.duckdb"], "it is not a DuckDB file"),
    (["import", "five.csv", *AIDER, "none/new.duckdb"], "does not exist"),
]
PRICES = [
    (["prices", "none.duckdb", "--from", "genai-prices"], "There is no mirror at none.duckdb"),
    (["prices", "five.duckdb", "--from", "none.csv"], "none.csv"),
]
RUN = [
    (["run", "none.duckdb"], "There is no mirror at none.duckdb"),
    (["run", "text.duckdb"], "it is not a DuckDB file"),
    (["run", "empty.duckdb"], "no attempts"),
    (["run", "five.duckdb"], "give one, for example --policy"),
    (["run", "five.duckdb", "--policy", "nobody"], "nobody"),
    (["run", "five.duckdb", "--policy", "field.json"], "undeclared field 'bench_x'"),
    (["run", "five.duckdb", "-s", "none.toml"], "production-now, production-before"),
    (["run", "five.duckdb", "-s", "unknown.toml"], "no key 'nonsense'"),
    (["run", "five.duckdb", "-s", "inner.toml"], "'alhpa'"),
    (["run", "five.duckdb", "-s", "zero.toml"], "window is 0 ms; expected more than 0"),
    (["run", "five.duckdb", "-s", "broken.toml"], "broken.toml"),
    (["run", "five.duckdb", "--window", "0m"], "window is 0 ms; expected more than 0"),
    (["run", "five.duckdb", "--window=-5m"], "expected a duration"),
    (["run", "five.duckdb", "--window", "soon"], "'soon' is not a duration"),
    (["run", "five.duckdb", "--alpha", "2"], "alpha is 2.0; expected more than 0 and at most 1"),
    (["run", "five.duckdb", "--replicas", "0"], "expected at least 1"),
    (["run", "five.duckdb", "--scale-price", "openai=cheap"], "expected a factor of 0 or more"),
    (["run", "five.duckdb", "--since", "never"], "'never' is not an instant"),
    (["run", "five.duckdb", "--declared", "field.json"], "given without a policy"),
]
SWEEP = [
    (["sweep", "none.duckdb", "--window", "5m"], "There is no mirror at none.duckdb"),
    (["sweep", "empty.duckdb", "--window", "5m"], "no attempts"),
    (["sweep", "five.duckdb"], "no grid was given"),
    (["sweep", "five.duckdb", "--window", "5m"], "give one, for example --policy"),
    (["sweep", "five.duckdb", "--window", "1m..60m"], "expected FROM..TO:N, such as 1m..60m:12"),
    (["sweep", "five.duckdb", "--window", "1m..2m:1"], "asks for 1 values; expected 2 to 10,000"),
    (["sweep", "five.duckdb", "--window", "1m,,5m"], "an empty value"),
    (["sweep", "five.duckdb", "--window", "5,15"], "--window has 5; expected durations with their unit"),
    (["sweep", "five.duckdb", "--window", "0m,5m"], "window is 0 ms; expected more than 0"),
    (["sweep", "five.duckdb", "--window=-5m,5m"], "expected a duration"),
    (["sweep", "five.duckdb", "--window", "5m,5m"], "two points"),
    (["sweep", "five.duckdb", "--alpha", "0.1,2"], "alpha is 2.0; expected more than 0 and at most 1"),
    (["sweep", "five.duckdb", "--alpha", "0.0..0.5:3"], "both ends have to be more than 0"),
    (["sweep", "five.duckdb", "--replicas", "1,0"], "expected at least 1"),
    (["sweep", "five.duckdb", "--tools-min", "1.5"], "--tools-min has 1.5; expected whole numbers"),
    (["sweep", "five.duckdb", "--grid", "none.toml"], "none.toml"),
    (["sweep", "five.duckdb", "--grid", "broken.toml"], "broken.toml"),
    (["sweep", "five.duckdb", "--grid", "unknown.toml"], "unknown.toml"),
    (["sweep", "five.duckdb", "--window", "5m", "--jobs", "0"], "0 jobs"),
    (
        ["sweep", "five.duckdb", "--window", "5m", "--since", "2025-01-02", "--until", "2025-01-01"],
        "not after its start",
    ),
    (["sweep", "five.duckdb", "--window", "5m", "--declared", "field.json"], "given without a policy"),
    (["sweep", "five.duckdb", "--window", "5m", "-o", "run-five"], "run-five is a folder"),
    (["sweep", "five.duckdb", "--window", "5m", "-o", "none/new"], "which does not exist"),
    (["sweep", "five.duckdb", "--window", "5m", "-o", "five.duckdb"], "exists and no sweep wrote it"),
    (["sweep", "five.duckdb", "--window", "5m", "-o", "run-five/decisions.parquet"], "exists and no sweep wrote it"),
]
OTHERS = [
    (["at", "yesterday", "five.duckdb"], "'yesterday' is not an instant"),
    (["at", "2025-01-01T10:20:00", "five.duckdb"], "has no offset"),
    (["at", "2025-01-01", "none.duckdb"], "There is no mirror at none.duckdb"),
    (["compare", "none"], "is no run's folder"),
    (["compare", "run-five"], "a comparison needs two"),
    (["settings", "production-later"], "production-now, production-before"),
    (["policy", "check", "field.json"], "$.policy[2].field[1]: undeclared field 'bench_x'"),
    (["policy", "check", "deep.json"], "term exceeds max depth 64"),
    (["policy", "check", "none.json"], "none.json"),
    (["cost", "empty.duckdb"], "no calls"),
    (["tools", "empty.duckdb"], "no attempts"),
    (["sql", "route_stat"], "expected one of"),
    (["vectors", "five.csv"], "five.csv"),
    (["demo", "run-five"], "holds files that no demo wrote"),
]
EVERY = [
    pytest.param(
        [*words, "-o", "new"] if words[0] in ("run", "sweep") and "-o" not in words else words, said, id=" ".join(words)
    )
    for words, said in (*INFO, *IMPORT, *PRICES, *RUN, *SWEEP, *OTHERS)
]


@pytest.mark.parametrize(("words", "said"), EVERY)
def test_bad_input_is_refused(words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One paragraph that says what was wrong, exit code 2, every file as it was."""
    before = content(folder)
    code = run_cli(words)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert said in err
    assert err.strip().startswith("replay: ")
    assert len(err.strip().splitlines()) == 1
    assert content(folder) == before


def test_runs_with_other_inputs_are_not_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3, and what differs."""
    before = content(folder)
    assert run_cli(["compare", "run-five", "run-four"]) == 3
    err = capsys.readouterr().err.strip()
    assert "not comparable: their inputs differ in calls" in err
    assert len(err.splitlines()) == 1
    assert content(folder) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["run"], "Missing argument"),
        (["run", "five.duckdb", "-o", "new", "--widow", "5m"], "No such option: --widow"),
        (["run", "five.duckdb", "-o", "new", "--alpha", "high"], "Invalid value for '--alpha'"),
    ],
)
def test_wrong_words_are_refused_with_the_usage(
    words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, the usage line, what was wrong, and nothing run."""
    before = content(folder)
    assert run_cli(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("Usage: ")
    assert said in err
    assert content(folder) == before


def test_a_ledger_without_evidence_at_an_instant_is_shown(folder: Path) -> None:
    """`replay at` of an empty mirror, or before the first attempt, says so instead of failing."""
    assert run_cli(["at", "2025-01-01", "empty.duckdb"]) in (0, 2)
    assert run_cli(["at", "2020-01-01", "five.duckdb"]) == 0


@pytest.mark.parametrize(("words", "code"), [(["info", "none.duckdb"], 2), (["compare", "run-five", "run-four"], 3)])
def test_the_process_ends_with_that_exit_code(words: list[str], code: int, folder: Path) -> None:
    """The command as a person starts it: one paragraph on standard error, no traceback."""
    done = subprocess.run([sys.executable, "-m", "replay", *words], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.strip().splitlines()) == 1
