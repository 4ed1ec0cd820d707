"""The pytest plugin, used from another folder as another repository would: what it collects, says and imports."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replay.gate.differences import CHECKS
from replay.pytest_plugin import CHECKS as TESTS

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
HEAVY = ("duckdb", "polars", "numpy", "numba", "pyarrow", "typer", "rich", "psycopg", "replay.settings", "replay.core")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder with this plugin alone, by name: installed or not, it is loaded once."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**kept, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-p", "replay.pytest_plugin", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_check_is_a_test() -> None:
    """The plugin, which must not import the engine to name them, knows the same checks."""
    assert TESTS == CHECKS


@pytest.mark.slow
def test_one_test_per_scenario_and_check(suite: Path) -> None:
    """Green on unchanged code; a suite beside other tests, none of which run twice."""
    (suite.parent / "test_own.py").write_text("def test_own() -> None:\n    pass\n")
    done = run(suite.parent, "--replay-suite", "suite.toml", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line.split()[0] for line in done.stdout.splitlines() if "PASSED" in line]
    assert told == [*(f"suite.toml::small::{name}" for name in CHECKS), "test_own.py::test_own"] or told == [
        "test_own.py::test_own",
        *(f"suite.toml::small::{name}" for name in CHECKS),
    ]


@pytest.mark.slow
def test_the_report_is_the_failure_text_and_goes_to_junit(suite: Path, doctored: Any, putting: Any) -> None:
    """Only the tests whose part differs fail; no traceback; JUnit carries the same text."""
    doctored("decisions", putting("success_rate_1", 40, 0.25))
    done = run(suite.parent, "--replay-suite", "suite.toml", "--junit-xml", "junit.xml")
    assert done.returncode == 1
    assert "FAILED suite.toml::small::decisions" in done.stdout
    assert "1 failed, 6 passed" in done.stdout
    assert "Traceback" not in done.stdout
    (failed,) = ElementTree.parse(suite.parent / "junit.xml").iter("failure")
    for text in (done.stdout, failed.text or ""):
        assert "First divergence: call 41 at " in text
        assert "Likely cause: reliability evidence; " in text
        assert "Reproduce: replay check suite.toml small --diff small.parquet" in text


@pytest.mark.slow
def test_a_suite_in_the_settings_is_part_of_whole_runs_only(suite: Path) -> None:
    """`replay_suite` in pytest.ini: with no arguments it runs; a named test runs alone."""
    folder = suite.parent
    (folder / "pytest.ini").write_text("[pytest]\nreplay_suite = suite.toml\n")
    (folder / "test_own.py").write_text("def test_own() -> None:\n    pass\n")
    assert "8 tests collected" in run(folder, "--collect-only", "-q").stdout
    assert "1 test collected" in run(folder, "--collect-only", "-q", "test_own.py").stdout
    done = run(folder, "suite.toml::small::input")
    assert "1 passed" in done.stdout, done.stdout


@pytest.mark.slow
def test_what_cannot_be_compared_fails_once(suite: Path) -> None:
    """No baseline: the test of the input says so, and the others are skipped, not passed."""
    import shutil

    shutil.rmtree(suite.parent / "baselines")
    done = run(suite.parent, "--replay-suite", "suite.toml")
    assert "1 failed, 6 skipped" in done.stdout
    assert "there is no baseline at" in done.stdout


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda text: text.replace("guards", "gaurds"), 2, "has no guards; expected a text"),
        (lambda text: text.replace('"ledger"', '"gone"'), 1, "scenario small: there is no ledger at"),
        (lambda text: text.replace('"ledger"', '"gone"') + 'absent = "it is private"\n', 0, "7 skipped"),
    ],
    ids=["a wrong suite", "a lost ledger", "absent data"],
)
def test_what_is_wrong_is_said_without_a_traceback(
    suite: Path, change: Callable[[str], str], code: int, said: str
) -> None:
    """A suite that cannot be read stops the run; a ledger that is gone fails; absent data is skipped."""
    suite.write_text(change(suite.read_text()))
    done = run(suite.parent, "--replay-suite", "suite.toml", "-rs")
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_suite_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    """Pytest's own sentence and exit code."""
    done = run(tmp_path, "--replay-suite", "none.toml")
    assert done.returncode == 4
    assert "file or directory not found" in done.stderr


def test_nothing_heavy_is_imported_until_a_suite_is_named(tmp_path: Path) -> None:
    """Whoever has the package installed pays nothing for the plugin; collecting a suite imports the core alone."""
    (tmp_path / "test_own.py").write_text(
        f"import sys\n\n\ndef test_own() -> None:\n    assert not set({HEAVY!r}) & set(sys.modules)\n"
    )
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout


def test_collecting_a_suite_imports_no_engine(suite: Path) -> None:
    """Naming the tests of a suite reads TOML; only running them needs the workbench."""
    heavy = HEAVY[:-2]
    (suite.parent / "conftest.py").write_text(
        "import sys\n\n\ndef pytest_collection_finish() -> None:\n"
        f"    assert not set({heavy!r}) & set(sys.modules), set({heavy!r}) & set(sys.modules)\n"
    )
    done = run(suite.parent, "--replay-suite", "suite.toml", "--collect-only", "-q")
    assert done.returncode == 0, done.stdout
    assert "7 tests collected" in done.stdout
