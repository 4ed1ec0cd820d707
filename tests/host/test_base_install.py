"""The example host as production has it: the base install alone, a database that comes later, and an end in order."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from openai import OpenAI
from psycopg import sql
from psycopg.conninfo import make_conninfo

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
HEAVY = ("duckdb", "polars", "numpy", "numba", "pyarrow", "altair", "marimo", "typer", "rich", "openai")
ALONE = f"""
import runpy, sys

class Refused:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(f"{{name}} is not in the base install")

sys.meta_path.insert(0, Refused())
sys.argv = ["openai_host.py", "--port", "0"]
sys.path.insert(0, "examples")
runpy.run_path("examples/openai_host.py", run_name="__main__")
"""


@pytest.mark.slow
def test_the_host_needs_the_base_install_alone_and_writes_what_is_queued_when_it_is_stopped(postgres_url: str) -> None:
    """A real process without the workbench: it serves a client, and on SIGTERM the call is in the ledger."""
    environment = {**os.environ, "DATABASE_URL": postgres_url}
    command = [sys.executable, "-c", ALONE]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        url = host.stdout.readline().split()[-1]
        with OpenAI(base_url=url, api_key="k", max_retries=0) as client:
            client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "hello"}])
        host.send_signal(signal.SIGTERM)
        assert host.wait(20) == 0
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT status, evidence_state FROM calls").fetchall() == [(200, "ok")]


def test_without_a_connection_string_the_host_says_what_it_needs() -> None:
    """One sentence, no traceback."""
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    done = subprocess.run([sys.executable, "examples/openai_host.py"], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("no connection string was given and DATABASE_URL is not set")
    assert b"Traceback" not in done.stderr


@pytest.fixture
def later(postgres_server: str) -> Iterator[Any]:
    """A database that does not exist: its connection string, and what creates it."""
    name = f"replay_test_{secrets.token_hex(8)}"

    def run(statement: str) -> None:
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))

    yield make_conninfo(postgres_server, dbname=name), lambda: run("CREATE DATABASE {}")
    run("DROP DATABASE IF EXISTS {} WITH (FORCE)")


@pytest.mark.slow
def test_with_the_database_away_it_routes_on_defaults_and_says_so_once_it_can(serve: Any, later: Any) -> None:
    """Calls are answered, unmetered; their rows reach the ledger when the database does, with what they lacked."""
    url, create = later
    with serve(url) as client:
        away = [client.say(extra_headers={"x-session-id": "s"}) for _ in range(3)]
        create()
        assert len(client.rows("calls")) == 3
        for _ in range(200):
            back = client.say(extra_headers={"x-session-id": "s"})
            client.store.drain(10)
            if "x-route-session-calls" in back.headers:
                break
        states = [row["evidence_state"] for row in client.rows("calls")]
    assert [answer.headers["x-route-chosen"] for answer in away] == ["bazaar|atlas|peer-fig"] * 3
    assert ["x-route-session-calls" in answer.headers for answer in away] == [False] * 3
    assert states[:3] == ["unavailable"] * 3
    assert (states[-1], int(back.headers["x-route-session-calls"])) == ("ok", len(states))
