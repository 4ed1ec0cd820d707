"""Production's database as it is today and as it was before replay, and a path for the mirror."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replay import queries


@pytest.fixture
def production(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection, each statement its own transaction, to a database with production's schema of today."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(queries.ddl("schema"))
        yield connection


@pytest.fixture
def old_production(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The same with the tables of before replay: no column that was added, no new table."""
    before = queries.ddl("schema").split("-- New with replay.")[0]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(re.sub(r"ALTER TABLE[^;]*;", "", before))
        yield connection


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A path at which no mirror is yet."""
    return tmp_path / "ledger.duckdb"
