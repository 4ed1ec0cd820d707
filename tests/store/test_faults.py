"""The server goes away, the commit's answer is lost, the process ends or forks: nothing twice, the rest counted."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from store_rows import NOW_MS, attempt, call

from replay.bench.servers import TemporaryServer
from replay.errors import ReplayError
from replay.ledger.store import Drained, Store

Ask = Callable[..., list[dict[str, Any]]]
OpenStore = Callable[..., Store]
RunPython = Callable[..., CompletedProcess[str]]


@pytest.mark.slow
def test_a_server_that_stops_and_starts_again_loses_only_what_was_counted(own_server: TemporaryServer) -> None:
    """20,000 rows recorded meanwhile: recording never raises, nothing is written twice, order is kept."""
    store = Store(own_server.url, queue_size=6_000, retention_days=None)
    assert store.ready(20)
    restarted = threading.Event()

    def restart() -> None:
        own_server.stop()
        time.sleep(0.5)
        own_server.start()
        restarted.set()

    thread = threading.Thread(target=restart)
    try:
        for number in range(10_000):
            if number == 2_500:
                thread.start()
            store.record_attempt(attempt(number))
            store.record_call(call(number))
            time.sleep(0.0002)
        assert restarted.wait(30)
        done = store.close(30)
    finally:
        thread.join()
    assert (done.left, done.written + done.dropped) == (0, 20_001)
    assert done.dropped == store.health().dropped.get("queue_full", 0)
    with psycopg.connect(own_server.url) as connection:
        found = 0
        for table, column in (("calls", "usage_event_id"), ("route_observations", "request_id")):
            numbers = [int(name[1:]) for (name,) in connection.execute(f"SELECT {column} FROM {table} ORDER BY id")]
            assert numbers == sorted(set(numbers))
            found += len(numbers)
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    assert found == done.written - 1  # the settings


def test_with_the_server_away_reading_fails_at_once_and_recovers_by_itself(own_server: TemporaryServer) -> None:
    """The first reading may wait for a connection, the next ones do not; idle connections that died are passed over."""
    with Store(own_server.url, statement_timeout_ms=500, retention_days=None) as store:
        assert store.ready(20)
        readers = [threading.Thread(target=store.read, args=[NOW_MS]) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        own_server.stop()
        try:
            with pytest.raises(ReplayError):
                store.read(NOW_MS)
            for _ in range(200):  # would take over a minute if each waited
                with pytest.raises(ReplayError, match=r"cannot be reached|broken"):
                    store.read(NOW_MS)
            assert store.session_totals("s").calls == 0
        finally:
            own_server.start()
        for _ in range(200):
            with contextlib.suppress(ReplayError):
                store.read(NOW_MS)
                break
            time.sleep(0.05)
        assert store.read(NOW_MS).state == "ok"


def test_idle_connections_that_the_server_ended_are_no_failure(own_server: TemporaryServer) -> None:
    """After a restart between two readings, the second one takes a new connection."""
    with Store(own_server.url, retention_days=None, statement_timeout_ms=5_000) as store:
        assert store.ready(20)
        store.read(NOW_MS)
        own_server.stop()
        own_server.start()
        assert store.read(NOW_MS).state == "ok"
        assert store.health().failed_reads == {}


@pytest.mark.parametrize("fate", ["lose", "mute"])
def test_a_commit_without_an_answer_is_looked_up(open_store: OpenStore, proxy: Any, ask: Ask, fate: str) -> None:
    """Whether the server never got it, or committed and could not say so: every row is there once."""
    cut: list[bytes] = []

    def watch(piece: bytes) -> str:
        if (
            b"COMMIT" in piece
            and len(cut) < 3
            and ask("SELECT 1 AS n FROM pg_locks WHERE relation = 'calls'::regclass")
        ):
            cut.append(piece)
            return fate
        return "pass"

    store = open_store(proxy.url)
    store.drain(10)
    proxy.watch = watch
    for number in range(50):
        store.record_attempt(attempt(number))
        store.record_call(call(number))
    assert store.drain(30) == Drained(written=101, dropped=0, left=0)
    assert len(cut) == (3 if fate == "lose" else 1)
    for table, column in (("calls", "usage_event_id"), ("route_observations", "request_id")):
        rows = ask(f"SELECT {column} AS name FROM {table} ORDER BY id")
        assert [row["name"] for row in rows] == [f"e{number}" for number in range(50)]


def test_a_batch_cut_off_half_way_is_written_again(open_store: OpenStore, proxy: Any, ask: Ask) -> None:
    """The server ends the transaction it was part of."""
    cut: list[bytes] = []

    def watch(piece: bytes) -> str:
        if b"COPY calls" in piece and not cut:
            cut.append(piece)
            return "mute"
        return "pass"

    store = open_store(proxy.url)
    proxy.watch = watch
    store.record_attempt(attempt(1))
    store.record_call(call(1))
    assert store.drain(20) == Drained(written=3, dropped=0, left=0)
    assert len(cut) == 1
    assert ask("SELECT count(*) AS n FROM route_observations") == [{"n": 1}]


def test_closing_without_a_server_says_what_was_lost() -> None:
    """After the deadline, not after the server comes back; the lost rows are counted as dropped."""
    store = Store("host=/nowhere/at/all", retention_days=None)
    for number in range(7):
        store.record_attempt(attempt(number))
    assert store.drain(0.1).left == 8  # with the settings
    assert store.close(0.1) == Drained(written=0, dropped=0, left=8)
    assert store.health().dropped == {"closed": 8}
    assert store.health().queued == 0


def test_closing_while_a_lock_holds_up_the_writer_keeps_its_deadline(
    open_store: OpenStore, postgres_url: str, ask: Ask
) -> None:
    """What is in flight is broken off, and rolled back by the server."""
    store = open_store()
    store.drain(10)
    with psycopg.connect(postgres_url) as holder:
        holder.execute("LOCK TABLE route_observations IN EXCLUSIVE MODE")
        store.record_attempt(attempt(1))
        assert store.close(0.2).left == 1
    assert ask("SELECT * FROM route_observations") == []


def test_an_interpreter_that_ends_writes_its_queue(postgres_url: str, ask: Ask, run_python: RunPython) -> None:
    """10,000 rows are recorded and the program ends, without a word to the store."""
    done = run_python(
        "import sys; from store_rows import attempt; from replay.ledger.store import Store\n"
        "store = Store(sys.argv[1], retention_days=None)\n"
        "for number in range(9_990): store.record_attempt(attempt(number))",
        postgres_url,
        PYTHONPATH="tests:.",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert ask("SELECT count(*) AS n FROM route_observations") == [{"n": 9_990}]


def test_an_interpreter_that_ends_without_a_server_says_what_it_lost(run_python: RunPython) -> None:
    """After its deadline."""
    done = run_python(
        "from store_rows import attempt; import replay.ledger.store as module; module.EXIT_DEADLINE_S = 0.2\n"
        "store = module.Store('host=/nowhere/at/all')\n"
        "for number in range(9): store.record_attempt(attempt(number))",
        PYTHONPATH="tests:.",
    )
    assert done.returncode == 0
    assert "the interpreter ends with 10 recorded rows that were not written" in done.stderr
    assert "Traceback" not in done.stderr


FORK = """
import os, sys, warnings
from store_rows import attempt
from replay.ledger.store import Store

store = Store(sys.argv[1], retention_days=None)
assert store.ready(20)
store.read(0)
warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)  # that is what is tried
for number in range(500):
    store.record_attempt(attempt(number, replica="parent"))
child = os.fork()
if child == 0:
    assert store.health().queued == 0
    if sys.argv[2] == "writes":
        for number in range(500):
            store.record_attempt(attempt(number, replica="child"))
        assert len(store.read(0).stats) <= 1
        sys.exit()  # its own queue is written at its end
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
for number in range(500, 1000):
    store.record_attempt(attempt(number, replica="parent"))
assert store.read(0).state == "ok"
print(store.close(20), dict(store.health().failed_reads))
"""


@pytest.mark.parametrize("child", ["writes", "does nothing"])
def test_after_a_fork_each_process_has_its_own_rows(
    postgres_url: str, ask: Ask, run_python: RunPython, child: str
) -> None:
    """The child writes none of its parent's queue, and leaves its connections alone."""
    done = run_python(FORK, postgres_url, child, PYTHONPATH="tests:.")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Drained(written=1001, dropped=0, left=0) {}\n", "")
    rows = {row["replica"]: row["n"] for row in ask(
        "SELECT replica, count(*) AS n FROM route_observations GROUP BY replica"
    )}  # fmt: skip
    assert rows == {"parent": 1000, **({"child": 500} if child == "writes" else {})}


SECRET = "s3cr-et/p@ss w"


def test_no_secret_is_said_anywhere(
    postgres_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the password, not the connection string: in no error, log or health view, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    for broken in (f"postgresql://u:{SECRET}@[host/db", f"password='{SECRET}", f"host=h {SECRET}=1"):
        with pytest.raises(ReplayError, match="cannot be read") as error:
            Store(broken)
        said.append(str(error.value) + repr(error.value.__cause__))
    wrong = make_conninfo(postgres_url, dbname=SECRET, password=SECRET)
    for url in (wrong, make_conninfo(f"host=127.0.0.1 port=1 user=u dbname=d password='{SECRET}'")):
        monkeypatch.setenv("DATABASE_URL", url)
        with Store(statement_timeout_ms=200, retention_days=None) as store:
            store.record_attempt(attempt(1))
            store.drain(0.3)
            with pytest.raises(ReplayError) as error:
                store.read(NOW_MS)
            said += [
                str(error.value),
                repr(error.value.__cause__),
                repr(store.health()),
                repr(store),
                str(store.counters()),
            ]
            assert store.health().last_error is not None
            store.close(0.1)
    said += [
        record.getMessage() + str(record.exc_text) for record in caplog.records if record.name.startswith("replay")
    ]
    assert [text for text in said if SECRET in text or wrong in text] == []
    assert [one.getMessage() for one in caplog.records if f"password={SECRET}" in one.getMessage()] == []


@pytest.mark.slow
def test_no_log_names_the_server_that_is_away(own_server: TemporaryServer, caplog: pytest.LogCaptureFixture) -> None:
    """Neither its host nor the folder of its socket, at no level and by no logger: psycopg's pool has its own."""
    caplog.set_level(logging.DEBUG)
    host = str(conninfo_to_dict(own_server.url)["host"])
    store = Store(own_server.url, statement_timeout_ms=200, retention_days=None)
    assert store.ready(20)
    store.read(NOW_MS)
    own_server.stop()
    elsewhere = Store("host=nobody-there.invalid user=zz_user dbname=zz_data", statement_timeout_ms=200)
    for one in (store, elsewhere):
        for _ in range(2):
            with pytest.raises(ReplayError):
                one.read(NOW_MS)
        one.record_attempt(attempt(1))
        one.drain(1.5)  # meanwhile the pool gives up connecting, and says so
        one.close(0.1)
    own_server.start()
    said = [record.getMessage() + str(record.exc_text) for record in caplog.records if "pgserver" not in record.name]
    assert any(text.startswith("error connecting in 'route-replay-reads'") for text in said)
    hidden = (host, "nobody-there", "zz_user", "zz_data")
    assert [text for text in said if any(one in text for one in hidden)] == []


def test_without_any_connection_string_it_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(ReplayError, match="DATABASE_URL is not set"):
        Store()
