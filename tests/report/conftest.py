from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from replay import engine, record
from replay.durations import instant_ms
from replay.ledger.lacks import lacks
from replay.ledger.load import load_ledger
from replay.ledger.mirror import open_mirror
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, demo_mirror: Path) -> Path:
    """A folder with the demo's mirror and two runs of six of its hours: `both` presets, and `now` alone."""
    folder = tmp_path_factory.mktemp("runs")
    mirror = folder / "ledger.duckdb"
    shutil.copy(demo_mirror, mirror)
    with open_mirror(mirror) as connection:
        ledger, inferred = load_ledger(connection), lacks(connection)
    since_ms, until_ms = instant_ms("2026-03-03T09:00:00Z"), instant_ms("2026-03-03T15:00:00Z")
    for name, settings in (("both", [PRODUCTION_NOW, PRODUCTION_BEFORE]), ("now", [PRODUCTION_NOW])):
        done = engine.run(ledger, settings, None, since_ms, until_ms)
        made = record.make_record(done, ledger.identity, None, inferred, since_ms, until_ms)
        record.write(folder / name, made, done, mirror)
    return folder


@pytest.fixture(scope="session")
def written(runs: Path) -> Path:
    """The report of both settings, as the command writes it."""
    from replay.cli import run_cli

    assert run_cli(["report", str(runs / "both"), "-o", str(runs / "out" / "report.html")]) == 0
    return runs / "out" / "report.html"
