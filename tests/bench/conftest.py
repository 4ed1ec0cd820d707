"""A small synthetic ledger, made once: 3,000 calls over 20 candidates."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.bench.synthetic import shipped, write_ledger

CALLS, CANDIDATES = 3_000, 20


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ledger's mirror; only read it."""
    path = tmp_path_factory.mktemp("bench") / "ledger.duckdb"
    write_ledger(path, CALLS, CANDIDATES, shipped("default"))
    return path
