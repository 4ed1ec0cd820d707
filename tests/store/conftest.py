"""Stores on a real PostgreSQL, a server that can be stopped, and a proxy that sees and cuts what goes over the wire."""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from replay.bench.servers import TemporaryServer, temporary_server
from replay.ledger.store import Store

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())


@pytest.fixture(scope="session")
def own_server() -> Iterator[TemporaryServer]:
    """A server of this session's own, to be stopped and started."""
    with temporary_server() as server:
        yield server


@pytest.fixture(scope="session")
def shared_database(new_database: Callable[[], contextlib.AbstractContextManager[str]]) -> Iterator[str]:
    """One database for all tests of this room."""
    with new_database() as url:
        yield url


@pytest.fixture
def postgres_url(shared_database: str) -> Iterator[str]:
    """The connection string of an empty schema of this test's own: made in no time, unlike a database."""
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(shared_database, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
        yield make_conninfo(shared_database, options=f"-c search_path={name}")
        connection.execute(f"DROP SCHEMA {name} CASCADE")


@pytest.fixture
def open_store(postgres_url: str) -> Iterator[Callable[..., Store]]:
    """Opens stores on this test's database (or another) that are closed at its end; they are ready when returned."""
    with contextlib.ExitStack() as stack:

        def create(url: str = postgres_url, *, wait: bool = True, **options: Any) -> Store:
            store = stack.enter_context(Store(url, retention_days=options.pop("retention_days", None), **options))
            assert not wait or store.ready(20)
            return store

        yield create


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    """A store on an empty database, whose schema is complete."""
    return open_store()


@pytest.fixture
def ask(postgres_url: str) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Runs SQL on this test's database, apart from any store, and returns rows as dictionaries."""
    with psycopg.connect(
        postgres_url, autocommit=True, cursor_factory=psycopg.RawCursor, row_factory=dict_row
    ) as connection:

        def run(statement: str, *values: Any) -> list[dict[str, Any]]:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

        yield run


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a Python of its own."""

    def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
            env={"PATH": "/usr/bin:/bin", **environment},
        )

    return run


class Proxy:
    """Stands between a client and the server on a TCP port of its own.

    `turns` counts how often the direction changed to client → server: the round trips. `watch` is told every piece
    that the client sends and answers whether it goes on ("pass"), is lost ("lose"), or arrives without its answer
    ever coming back ("mute"); the connection is cut in both latter cases.
    """

    def __init__(self, url: str) -> None:
        parts = conninfo_to_dict(url)
        self._server = f"{parts['host']}/.s.PGSQL.{parts.get('port') or 5432}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = make_conninfo(url, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        self.turns = 0
        self.watch: Callable[[bytes], str] = lambda piece: "pass"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Stop listening and end every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._carry, args=[client])
                self._threads.append(thread)
                thread.start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(self._server)
            asking = False
            while self._listener.fileno() >= 0:
                for ready in select.select([client, server], [], [], 0.1)[0]:
                    piece = ready.recv(65536)
                    if not piece:
                        return
                    if ready is server:
                        asking = False
                        client.sendall(piece)
                        continue
                    self.turns += not asking
                    asking = True
                    fate = self.watch(piece)
                    if fate != "lose":
                        server.sendall(piece)
                    if fate != "pass":
                        if fate == "mute":
                            server.recv(65536)
                        return


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    """A proxy before this test's database; needs a server on a Unix socket, as our own is."""
    if not (conninfo_to_dict(postgres_url).get("host") or "").startswith("/"):
        pytest.skip("TEST_DATABASE_URL is not a Unix socket, which the proxy forwards to")
    made = Proxy(postgres_url)
    yield made
    made.close()
