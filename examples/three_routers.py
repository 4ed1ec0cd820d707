"""Three router processes on one PostgreSQL that has a bad day, and then the proof: every decision replayed.

    python examples/three_routers.py                 # about half a minute
    python examples/three_routers.py --seconds 60 --outage-s 60     # a minute without the database

One process answers from threads, one from an event loop, one reuses its stamps for a moment, and commits late because
a trigger holds its transactions open. In the middle the server is restarted, and later gone for a while. Then the
ledger is pulled into a mirror and replayed with the visibility that was recorded; every decision whose evidence is
complete has to come out as it was made. Needs the workbench and the test extra (which brings a PostgreSQL).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from replay import engine, record
from replay.bench.servers import TemporaryServer, temporary_server
from replay.cli.show import console, print_record
from replay.engine import Run
from replay.ledger.lacks import lacks
from replay.ledger.load import load_ledger
from replay.ledger.mirror import open_mirror
from replay.ledger.pull import pull
from replay.ledger.store import Store
from router_process import SETTINGS, offers

SLOW = "slow router"
HELD = 491496240299  # an advisory lock of this experiment

SLOW_COMMITS = f"""
CREATE FUNCTION commit_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('application_name') = '{SLOW}' THEN
        PERFORM pg_sleep(0.3);
        PERFORM pg_advisory_xact_lock_shared({HELD});
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER commit_late AFTER INSERT ON route_observations FOR EACH STATEMENT EXECUTE FUNCTION commit_late();
"""
"""The slow router's rows wait in an open transaction, for a moment each time, and for as long as the lock is held."""


COUNT_ROWS = """
SELECT replica, count(*)
FROM (SELECT replica FROM calls UNION ALL SELECT replica FROM route_observations) AS calls_and_attempts
GROUP BY replica
"""


@dataclass(frozen=True)
class Experiment:
    """What each process said of itself, the rows in PostgreSQL that carry a replica's name, and the replay."""

    processes: dict[str, dict[str, Any]]
    rows: dict[str, int]
    run: Run

    @property
    def flipped_share(self) -> float:
        """The share of decisions that would differ, had every row been visible the moment its attempt ended."""
        one = self.run.replayed[0]
        return len(one.lag_flips or ()) / len(one.decisions)


def experiment(
    folder: Path,
    say: Callable[[str], None],
    *,
    seconds: float = 20,
    outage_s: float = 4,
    calls_per_second: float = 240,
    queue_size: int = 10_000,
) -> Experiment:
    """Run the processes through a bad day of their server, then pull and replay; the mirror is left in the folder.

    The load lasts `seconds` with the server and `outage_s` without it.
    """
    with temporary_server() as server:
        price_change_ms = round((time.time() + seconds / 2) * 1000)
        _prepare(server.url, price_change_ms)
        say(f"three processes, {calls_per_second:g} calls a second in all")
        common = ["--seconds", str(seconds + outage_s), "--calls-per-second", str(calls_per_second / 3)]
        common += ["--price-change-ms", str(price_change_ms), "--queue-size", str(queue_size)]
        started = [
            _start(server.url, "router-a", [*common]),
            _start(server.url, "router-b", [*common, "--loop"]),
            _start(make_conninfo(server.url, application_name=SLOW), "router-c", [*common, "--memo-ms", "200"]),
        ]
        _bad_day(server, seconds, outage_s, say)
        processes = dict(map(_ended, started))
        with psycopg.connect(server.url) as connection:
            rows: dict[str, int] = dict(connection.execute(COUNT_ROWS).fetchall())
        mirror = folder / "ledger.duckdb"
        pull(server.url, mirror)
    say(f"pulled {sum(rows.values()):,} rows; replaying")
    return Experiment(processes, rows, _replayed(folder, mirror))


def _prepare(url: str, price_change_ms: int) -> None:
    """Make the tables, record the candidates of today and of later, and the trigger that makes one process slow."""
    before, after = offers(price_change_ms)
    with Store(url, SETTINGS) as store:
        store.record_offers(before, 0)
        store.record_offers(after, price_change_ms)
        assert store.drain(30).left == 0
    with psycopg.connect(url) as connection:
        connection.execute(SLOW_COMMITS)


def _start(url: str, replica: str, arguments: list[str]) -> tuple[str, subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("router_process.py")), "--replica", replica, *arguments]
    environment = {**os.environ, "DATABASE_URL": url}
    return replica, subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def _bad_day(server: TemporaryServer, seconds: float, outage_s: float, say: Callable[[str], None]) -> None:
    """Hold a transaction open, restart the server, take it away; the processes go on all the while."""
    time.sleep(0.2 * seconds)
    say("the slow router's transactions are held open")
    with psycopg.connect(server.url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [HELD])
        time.sleep(min(3.0, 0.1 * seconds))
    time.sleep(0.1 * seconds)
    say("the server is restarted")
    server.stop()
    server.start()
    time.sleep(0.1 * seconds)
    say(f"the server is gone for {outage_s:g} s")
    server.stop()
    time.sleep(outage_s)
    server.start()
    say("it is back")


def _ended(started: tuple[str, subprocess.Popen[str]]) -> tuple[str, dict[str, Any]]:
    replica, process = started
    said, _ = process.communicate()
    assert process.returncode == 0, f"{replica} ended with {process.returncode}"
    return replica, json.loads(said.splitlines()[-1])


def _replayed(folder: Path, mirror: Path) -> Run:
    with open_mirror(mirror) as connection:
        ledger, inferred = load_ledger(connection), lacks(connection)
    done = engine.run(ledger, [SETTINGS])
    made = record.make_record(done, ledger.identity, None, inferred, None, None)
    record.write(folder / "run", made, done, mirror)
    print_record(console(), made, folder / "run")
    return done


def main() -> None:
    """Run the experiment, print what it shows, and exit with 1 unless everything was reproduced."""
    parser = argparse.ArgumentParser(description="Three routers on one PostgreSQL that has a bad day.")
    parser.add_argument("--seconds", type=float, default=20, help="of load while the server is there")
    parser.add_argument("--outage-s", type=float, default=4, help="how long it is gone")
    parser.add_argument("--calls-per-second", type=float, default=240, help="of all three together")
    parser.add_argument("--queue-size", type=int, default=10_000, help="rows that may wait; more are dropped")
    parser.add_argument("--folder", type=Path, help="where to leave the mirror and the run; else they are not kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        done = experiment(
            folder,
            print,
            seconds=given.seconds,
            outage_s=given.outage_s,
            calls_per_second=given.calls_per_second,
            queue_size=given.queue_size,
        )
    for replica, told in done.processes.items():
        print(f"{replica}: {told['calls']:,} calls, {told['written']:,} rows written, {told['dropped']:,} dropped;")
        print("    " + ", ".join(f"{count:,} {how}" for how, count in sorted(told["ended"].items())))
    print(f"With lag 0 assumed instead, {done.flipped_share:.2%} of the decisions flip.")
    sys.exit(not done.run.passed)


if __name__ == "__main__":
    main()
