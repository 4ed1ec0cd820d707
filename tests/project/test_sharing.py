"""The Python of docs/sql-sharing.md is run: on a real PostgreSQL, and on the demo's mirror."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
PAGE = (ROOT / "docs" / "sql-sharing.md").read_text(encoding="utf-8")
PRODUCTION, WORKBENCH = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_snippet_for_production_runs_on_postgresql(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes the tables, writes one attempt, and reads its route's stats."""
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    left: dict[str, Any] = {}
    exec(PRODUCTION, left)
    assert left["rows"] == [("northlight", "atlas-mini", "northlight", 1.0, 812.5, 812, 1, 1, 1)]
    assert (left["success_rate"], left["latency_ms"], left["counts"]) == (1.0, 812, [1, 1, 1])


def test_the_snippet_for_the_workbench_runs_on_the_mirror(
    checkout: Path, with_demo: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives every route of the demo's week, 21 of them, with 6,939 attempts in all."""
    with_demo()
    monkeypatch.chdir(checkout)
    left: dict[str, Any] = {}
    exec(WORKBENCH, left)
    assert (len(left["rows"]), sum(row[6] for row in left["rows"])) == (21, 6_939)
