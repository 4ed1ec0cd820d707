"""Rows pulled into a mirror against a plain COPY of the same rows to a file, and the memory that takes.

Both read a table of calls with recorded requests (about 800 bytes a row) and one of attempts, half of the rows each.
COPY and pull take turns, so that whoever else uses the machine slows both. The pull is a process of its own, whose
highest memory the kernel keeps.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from replay import queries
from replay.bench import Figure, Say, best_of
from replay.bench.servers import temporary_server
from replay.errors import ReplayError

ROWS = 5_000_000
QUICK_ROWS = 20_000
ROUNDS = 2
MEMORY_MB = 500
SHARE = 0.5

_CALLS = """INSERT INTO calls (ts, usage_event_id, session_id, consumer_sha, caller, route_key, provider_id,
    model_family, served_model_id, requested_model, status, latency_ms, tokens_in, tokens_out, tokens_total,
    tokens_cached, cost_usd,
    served_by, cost_basis, decided_at, evidence_at, request, policy_id, settings_id, replica, replica_seq,
    evidence_snapshot, evidence_state)
SELECT 1772409600 + n / 10, 'event-' || n, 'session-' || n / 7, md5((n % 1000)::text), 'caller-' || n % 100,
    'p' || n % 20 || '|m|p' || n % 20, 'p' || n % 20, 'm', 'model', 'family:m', 200, 1000 * random(), 1000 + n % 700,
    n % 900, 1000 + n % 700 + n % 900, n % 300, random() / 100, 'p' || n % 20, 'computed', 1772409600000 + n * 100,
    1772409600000 + n * 100 - 3, json_build_object('requirements', json_build_object('min_context', 8000 + n % 64),
        'needs', json_build_array('tools'), 'scope', null, 'tools', true, 'images', false, 'response_format', null,
        'seed', n, 'hot_route', 'p1|m|p1', 'credits', json_build_object('p1', n % 100, 'p2', 3.5))::text,
    'policy-0123456789abcdef', 'settings-0123456789abcdef', 'replica-1', n, '1000:1000:', 'ok'
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n"""

_ATTEMPTS = """INSERT INTO route_observations (ts, provider_id, model_family, served_by, ok, latency_ms, error_kind,
    http_status, tools_requested, tool_calls_emitted, started_at, request_id, attempt, candidate_attempt, replica,
    replica_seq)
SELECT 1772409600000 + n * 100, 'p' || n % 20, 'm', 'p' || n % 20, n % 11 <> 0, 1000 * random(),
    CASE WHEN n % 11 = 0 THEN 'timeout' END, 200, n % 3 = 0, n % 3 = 0, 1772409600000 + n * 100 - 50, 'event-' || n, 1,
    1, 'replica-1', n
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n"""

_PULL = """
import os, time
from pathlib import Path
from replay.ledger.pull import pull
began = time.perf_counter()
report = pull(os.environ["DATABASE_URL"], os.environ["MIRROR"], statement_timeout_ms=600_000)
took_s = time.perf_counter() - began
highest = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(sum(table.stored for table in report.tables), took_s, int(highest[0].split()[1]) / 1024)
"""


def bench_pull(say: Say, quick: bool, dsn: str | None) -> list[Figure]:
    """Return the rows per second of a COPY and of a pull, and the pull's highest memory in MB.

    `quick` takes few rows, which only shows that it works. `dsn` names a server on which a database may be created,
    and is dropped again; None starts one of our own.
    """
    rows = QUICK_ROWS if quick else ROWS
    with _database(dsn) as url, tempfile.TemporaryDirectory(prefix="replay-bench-") as folder:
        with psycopg.connect(url, autocommit=True) as connection:
            _fill(connection, rows, say)
        copied_s, pulled_s, memory_mb = float("inf"), float("inf"), 0.0
        for number in range(ROUNDS):
            say("COPY to a file, and pull", number, ROUNDS)
            copied_s = min(copied_s, best_of(1, lambda: _copy(url, Path(folder) / "copied")))
            mirror = Path(folder) / f"{number}.duckdb"
            stored, took_s, used_mb = _pull(url, mirror)
            if stored != rows:
                raise ReplayError(f"the pull stored {stored:,} of {rows:,} rows; expected all: please report this")
            mirror.unlink()
            pulled_s, memory_mb = min(pulled_s, took_s), max(memory_mb, used_mb)
    share = copied_s / pulled_s
    enough, fits = (None, None) if quick else (share >= SHARE, memory_mb <= MEMORY_MB)
    copy = Figure(f"COPY of {rows:,} rows to a file", rows / copied_s, "rows/s")
    return [
        copy,
        Figure(f"pull of {rows:,} rows", rows / pulled_s, "rows/s", copy.name, share, f"≥ {SHARE:g}×", enough),
        Figure(f"highest memory of a pull of {rows:,} rows", memory_mb, "MB", None, None, f"≤ {MEMORY_MB} MB", fits),
    ]


@contextmanager
def _database(dsn: str | None) -> Iterator[str]:
    if dsn is None:
        with temporary_server() as server:
            yield server.url
        return
    name = f"replay_bench_{secrets.token_hex(4)}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield make_conninfo(dsn, dbname=name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _fill(connection: psycopg.Connection[Any], rows: int, say: Say) -> None:
    connection.execute(queries.ddl("schema"))
    half, step = rows // 2, 100_000
    for first in range(1, half + 1, step):
        say("filling the tables", 2 * first, rows)
        bounds = {"first": first, "last": min(half, first + step - 1)}
        for statement in (_CALLS, _ATTEMPTS):
            connection.execute(statement.replace(" % ", " %% "), bounds)
    connection.execute("VACUUM ANALYZE")


def _copy(url: str, file: Path) -> None:
    with psycopg.connect(url) as connection:
        for table in ("calls", "route_observations"):
            with file.open("wb") as out, connection.cursor().copy(f"COPY {table} TO STDOUT") as rows:
                for row in rows:
                    out.write(row)


def _pull(url: str, mirror: Path) -> tuple[int, float, float]:
    # By the environment: others on the machine can read a command's words.
    environment = {**os.environ, "DATABASE_URL": url, "MIRROR": str(mirror)}
    done = subprocess.run([sys.executable, "-c", _PULL], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReplayError(f"the pull failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    stored, took_s, memory_mb = done.stdout.split()
    return int(stored), float(took_s), float(memory_mb)
