"""The example host on a real PostgreSQL, driven by the real OpenAI client."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from openai import OpenAI
from psycopg.rows import dict_row

from replay.ledger.store import Store

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="session")
def example() -> Iterator[Callable[[str], Any]]:
    """Imports an example by name, as a script would: with its folder on the path."""
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="session")
def upstream(example: Callable[[str], Any]) -> Any:
    """The examples' fake provider, a class."""
    return example("upstreams").Upstream


class Client:
    """The host's store, and OpenAI clients by their API key."""

    def __init__(self, port: int, store: Store, database: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.store = store
        self.database = database
        self._clients: list[OpenAI] = []

    def of(self, key: str) -> OpenAI:
        """A client that never retries: what the host does is what is seen."""
        client = OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)
        self._clients.append(client)
        return client

    def say(self, text: str = "hello there", key: str = "key-ann", model: str = "auto", **more: Any) -> Any:
        """Ask for a completion; the raw response, whose `headers` say what was routed."""
        completions = self.of(key).chat.completions.with_raw_response
        return completions.create(model=model, messages=[{"role": "user", "content": text}], **more)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """What was recorded, once all of it is written."""
        assert self.store.drain(10).left == 0
        with psycopg.connect(self.database, row_factory=dict_row) as connection:
            return connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()  # type: ignore[call-overload]

    def close(self) -> None:
        """Close every client."""
        for client in self._clients:
            client.close()


Serve = Callable[..., AbstractContextManager[Client]]


@pytest.fixture
def serve(postgres_url: str, upstream: Any, example: Callable[[str], Any]) -> Serve:
    """A context manager: the host over the given upstreams (by provider), the others answering at once.

    On this test's own database it begins when the tables are there.
    """
    host_module = example("openai_host")

    @contextmanager
    def serving(url: str = postgres_url, **given: Any) -> Iterator[Client]:
        upstreams = {name: upstream(0) for name in ("bazaar", "meadow", "summit")} | given
        with Store(url) as store, host_module.Host(0, store, upstreams) as host:
            assert url != postgres_url or store.ready(20)
            thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            client = Client(host.server_address[1], store, url)
            try:
                yield client
            finally:
                client.close()
                host.shutdown()
                thread.join()

    return serving
