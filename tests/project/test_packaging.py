"""What is built, what it brings along, and what the project's own machinery promises."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
PACKAGES = [name for name in ("replay", "analysis", "notebooks") if (ROOT / name).is_dir()]
HEAVY = ("duckdb", "polars", "numpy", "numba", "pyarrow", "altair", "marimo", "typer", "rich", "psycopg")
BASE = "import replay.queries, replay.core, replay.router, replay.prices, replay.settings, replay.ledger.memory"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources by the installed setuptools."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "__marimo__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True, capture_output=True, text=True)
    (built,) = out.glob("*.whl")
    return built


def _python(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run code with this Python, outside the checkout's folder."""
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    """SQL, presets, policies, mappings, aliases and py.typed included."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    made = {"__pycache__", "__marimo__"}
    assert names == {path.relative_to(ROOT).as_posix() for path in files if not made & set(path.parts)}
    for kind in ("replay/sql/route_stats.sql", "replay/presets/production-now.toml", "replay/ledger/aliases.toml",
                 "replay/core/policies/default.json", "replay/ledger/importers/mappings/aider_calls.toml",
                 "replay/py.typed", "analysis/py.typed"):  # fmt: skip
        assert kind in names


def test_the_wheel_works_outside_the_checkout_with_nothing_installed(wheel: Path) -> None:
    """The base room needs the standard library alone: it reads SQL, policies and presets from the wheel itself."""
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r})\n{BASE}\n"
        "from replay import queries, settings\nfrom replay.core import load_policy\n"
        "print(len(queries.names()), settings.load('production-now').name, load_policy('default')[0], queries.__file__)"
    )
    done = _python(code, "-S", "-I")
    assert done.returncode == 0, done.stderr
    sql = len(list((ROOT / "replay" / "sql").glob("*.sql"))) - 2  # without the two schemas
    assert done.stdout.split()[:3] == [str(sql), "production-now", "policy"]
    assert wheel.name in done.stdout


def test_the_base_install_imports_nothing_heavy() -> None:
    """Production shares the SQL and routes without the workbench, even where that is installed."""
    done = _python(f"{BASE}\nimport sys; print(sorted(set({HEAVY!r}) & set(sys.modules)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_without_the_workbench_the_command_says_what_to_install() -> None:
    """One line, exit code 1, no traceback."""
    done = _python("import sys; sys.modules['typer'] = None\nfrom replay.__main__ import main; main()")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "replay: typer is not installed. The command needs the workbench: pip install 'route-replay[workbench]'"
    ]


def test_constraints_pin_every_dependency_by_version_alone() -> None:
    """No addresses, no ranges; each direct dependency of the project is among them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    pinned = {line.partition("==")[0].lower() for line in lines}
    assert {re.split(r"[\[<>=]", one)[0].lower() for one in asked} - pinned == set()


def test_the_base_dependencies_are_psycopg_and_its_pool() -> None:
    """What production installs to share the SQL and to record."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [re.split(r"[<>=]", one)[0] for one in project["dependencies"]] == ["psycopg", "psycopg-pool"]


def test_make_refuses_a_python_that_is_too_old_or_absent(tmp_path: Path) -> None:
    """Before it makes anything."""
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for python, said in ((str(old), "is older than Python 3.11"), ("", "Python 3.11 or newer is needed")):
        command = ["make", "install", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert said in done.stdout + done.stderr
        assert not (tmp_path / "venv").exists()


def test_ci_runs_lint_and_tests_and_installs_the_browser() -> None:
    """The script is executable, stops at the first failure, and calls the same targets as a person."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines
    targets = [line.split()[1] for line in lines if line.startswith("make ")]
    assert targets == ["install", "lint", "test"]
    assert any("apt-get install" in line and "chromium chromium-driver" in line for line in lines)
