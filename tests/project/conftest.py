"""A copy of the checkout, made of links, in which a reader's commands can be run without touching the real one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
SHARED = ROOT.parent / "shared"
_MADE_BY_USE = {".git", ".venv", ".hypothesis", "demo", "runs", "build", "dist"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a checkout after `make install`, with ../shared beside it where there is one."""
    folder = tmp_path / "project"
    folder.mkdir()
    for entry in ROOT.iterdir():
        made = entry.name in _MADE_BY_USE or entry.suffix in (".duckdb", ".egg-info") or entry.name.endswith("_cache")
        if not made:
            (folder / entry.name).symlink_to(entry)
    venv = folder / ".venv"
    venv.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name in ("bin", "lib", "lib64", "pyvenv.cfg"):
            (venv / entry.name).symlink_to(entry)
    (venv / ".installed").touch()  # newer than pyproject.toml and constraints.txt: make has nothing to install
    if SHARED.is_dir():
        (tmp_path / "shared").symlink_to(SHARED)
    return folder


@pytest.fixture
def environment() -> dict[str, str]:
    """A newcomer's environment: nothing of this pytest, of the make around it, or of an active virtual one."""
    ours = ("PYTEST_", "MAKE", "VIRTUAL_ENV", "PYTHON", "MFLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    # `make test` on the page runs one small file here, not this test again.
    return {**kept, "COLUMNS": "120", "BROWSER": "true", "PYTEST_ADDOPTS": "tests/core/test_normal.py"}


@pytest.fixture
def with_demo(checkout: Path, request: pytest.FixtureRequest) -> Callable[[], None]:
    """Puts the demo's ledger where `make demo` leaves it; it is recorded only if this is called."""

    def put() -> None:
        demo_mirror = request.getfixturevalue("demo_mirror")
        (checkout / "demo").mkdir(exist_ok=True)
        shutil.copy(demo_mirror, checkout / "demo" / "ledger.duckdb")

    return put
