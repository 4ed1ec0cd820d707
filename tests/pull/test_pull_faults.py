from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pulling import add_attempts, add_call, assert_same, held

from replay import queries
from replay.bench.servers import temporary_server
from replay.errors import ReplayError
from replay.ledger.lacks import lacks
from replay.ledger.mirror import open_mirror
from replay.ledger.pull import pull

Production = psycopg.Connection[Any]

PULL = """
import sys
from replay.ledger.pull import pull
pull(sys.argv[1], sys.argv[2], batch_rows=1000, say=lambda *told: print(*told, flush=True))
"""


@contextmanager
def _pulling(url: str, mirror: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that pulls in small batches and prints a line for each it has stored."""
    process = subprocess.Popen(
        [sys.executable, "-c", PULL, url, str(mirror)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _after_batches(process: subprocess.Popen[str], count: int) -> None:
    assert process.stdout is not None
    for _ in range(count):
        assert process.stdout.readline()


@pytest.mark.slow
def test_a_pull_killed_anywhere_is_taken_up_by_the_next(
    production: Production, postgres_url: str, mirror: Path
) -> None:
    """kill -9 at random points, while rows are written in between; in the end the mirror is the database."""
    chance = random.Random(7)
    add_attempts(production, 20_000)
    for _ in range(20):
        add_call(production, session_id="s")
    reached = 0
    for _ in range(5):
        with _pulling(postgres_url, mirror) as process:
            _after_batches(process, chance.randint(1, 4))
            time.sleep(chance.random() * 0.03)
            process.send_signal(signal.SIGKILL)
        with open_mirror(mirror) as connection:
            found = connection.execute("SELECT count(*), max(id) FROM route_observations").fetchone()
            state = connection.execute(
                "SELECT last_id FROM mirror_pulls WHERE target = 'route_observations'"
            ).fetchone()
        assert found is not None
        assert state == (found[1],) if found[0] else state is None
        assert found[0] >= reached
        reached = found[0]
        add_attempts(production, 500, first_ts=chance.randint(0, 10**6))
    assert reached > 0
    pull(postgres_url, mirror)
    assert_same(production, mirror)


@pytest.mark.slow
def test_nothing_is_lost_or_twice_while_four_writers_write(
    production: Production, postgres_url: str, mirror: Path
) -> None:
    """Transactions short and long, committed and rolled back, during repeated pulls."""
    done = threading.Event()

    def write(seed: int) -> None:
        chance = random.Random(seed)
        with psycopg.connect(postgres_url) as connection:
            while not done.is_set():
                for _ in range(chance.randint(1, 5)):
                    add_attempts(connection, chance.randint(1, 20), first_ts=chance.randint(0, 10**6))
                    add_call(connection, session_id=str(seed))
                    time.sleep(chance.choice((0, 0, 0.002, 0.2)))
                if chance.random() < 0.3:
                    connection.rollback()
                else:
                    connection.commit()

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for writer in writers:
        writer.start()
    try:
        late = 0
        for number in range(8):
            report = pull(postgres_url, mirror, batch_rows=200 if number % 2 else 5_000)
            late += sum(table.read - table.stored for table in report.tables)
    finally:
        done.set()
        for writer in writers:
            writer.join()
    pull(postgres_url, mirror)
    assert late > 0, "no pull read rows again that were there: the writers never overlapped it"
    assert_same(production, mirror, "calls", "route_observations")


@pytest.mark.slow
def test_a_pull_that_is_interrupted_stops_with_whole_batches(
    production: Production, postgres_url: str, mirror: Path
) -> None:
    """Ctrl-C in the middle: no half batch, the file is released, and the next pull goes on."""
    add_attempts(production, 20_000)
    with _pulling(postgres_url, mirror) as process:
        _after_batches(process, 3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert len(held(mirror, "route_observations")) % 1000 == 0
    with open_mirror(mirror) as connection:
        assert "route_observations was not pulled to its end" in " ".join(lacks(connection))
    pull(postgres_url, mirror)
    with open_mirror(mirror) as connection:
        assert "not pulled to its end" not in " ".join(lacks(connection))
    assert_same(production, mirror, "route_observations")


@pytest.mark.slow
def test_the_command_stopped_by_ctrl_c_says_what_is_stored(
    production: Production, postgres_url: str, mirror: Path
) -> None:
    """All attempts are stored and the calls wait for a lock: it says so and ends with 130; again, and it completes."""
    add_attempts(production, 20_000)
    add_call(production, session_id="s")
    command = [sys.executable, "-m", "replay", "pull", str(mirror)]
    environment = {**os.environ, "DATABASE_URL": postgres_url, "COLUMNS": "200"}
    with psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE calls IN ACCESS EXCLUSIVE MODE")
        running = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        waits = (
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'replay pull' AND wait_event_type = 'Lock' "
            "AND datname = current_database()"
        )
        while running.poll() is None and not production.execute(waits).fetchone():
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGINT)
        out, said = running.communicate(timeout=30)
    assert (running.returncode, out) == (130, "")
    assert said.strip() == (
        f"replay: stopped; what was read until then is stored in {mirror}: 20,000 of route_observations; the same "
        "command goes on from there"
    )
    assert len(held(mirror, "route_observations")) == 20_000
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr.strip()) == (0, "")
    assert_same(production, mirror)


@pytest.mark.slow
def test_a_server_that_goes_away_is_a_sentence(mirror: Path) -> None:
    """In mid-pull: what is stored stays, in whole batches, and the pull goes on when the server is back."""
    with temporary_server() as server:
        with psycopg.connect(server.url, autocommit=True) as production:
            production.execute(queries.ddl("schema"))
            add_attempts(production, 20_000)

        def stop(table: str, read: int, total: int) -> None:
            if read == 3_000:
                server.stop()

        with pytest.raises(ReplayError) as failure:
            pull(server.url, mirror, batch_rows=1000, say=stop)
        assert str(failure.value).startswith("PostgreSQL could not be read: ")
        assert "\n" not in str(failure.value)
        assert "SELECT" not in str(failure.value)
        rows = len(held(mirror, "route_observations"))
        assert 3_000 <= rows < 20_000
        assert rows % 1000 == 0
        with pytest.raises(ReplayError, match="PostgreSQL could not be read"):
            pull(server.url, mirror)
        server.start()
        pull(server.url, mirror)
        with psycopg.connect(server.url) as production:
            assert_same(production, mirror, "route_observations")


def test_a_statement_that_takes_too_long_is_stopped(production: Production, postgres_url: str, mirror: Path) -> None:
    """By the server, and the sentence says how to give it longer."""
    add_attempts(production, 10)
    with psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE route_observations IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(ReplayError, match=r"statement timeout \(give it longer with --timeout\)"):
            pull(postgres_url, mirror, statement_timeout_ms=50)
    pull(postgres_url, mirror)
    assert_same(production, mirror, "route_observations")
