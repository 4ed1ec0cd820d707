from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pulling import add_attempts, add_call

from replay import queries
from replay.cli import run_cli
from replay.errors import ReplayError
from replay.ledger.importers import import_file
from replay.ledger.mirror import open_mirror
from replay.ledger.pseudonyms import Pseudonyms
from replay.ledger.pull import pull
from replay.ledger.verify import VerifyReport, _row_hash, verify

Production = psycopg.Connection[Any]
KEY = b"a key of more than sixteen bytes"
DAY_MS = 86_400_000


@pytest.fixture
def pulled(production: Production, postgres_url: str, mirror: Path) -> Path:
    """A mirror of three days of attempts, some calls, offers and prices."""
    for day in (0, 1, 2):
        add_attempts(production, 10, first_ts=day * DAY_MS)
    for caller in ("alice", "bob", None):
        add_call(production, ts=86_400, caller=caller, session_id="s", consumer_sha="", cost_usd=0.1)
    production.execute("INSERT INTO offer_history (valid_from, position, price_in) VALUES (1, 0, 0.5), (2, 1, null)")
    production.execute("INSERT INTO provider_prices VALUES ('p', 'm', 1, 2, 3, 4), ('q', 'm', 1, 2, 3, 4)")
    pull(postgres_url, mirror)
    return mirror


@contextmanager
def _changed(mirror: Path, statement: str) -> Iterator[None]:
    with open_mirror(mirror, write=True) as connection:
        connection.execute(statement)
    yield


def _rows(report: VerifyReport, what: str) -> dict[str, int]:
    return {table.name: getattr(table, what) for table in report.tables if getattr(table, what)}


def test_a_pulled_mirror_is_the_same(postgres_url: str, pulled: Path) -> None:
    """Every row of every table is compared."""
    report = verify(postgres_url, pulled)
    assert report.difference is None
    assert _rows(report, "rows") == {"route_observations": 30, "calls": 3, "offer_history": 2, "provider_prices": 2}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "UPDATE route_observations SET latency_ms = latency_ms + 1e-14 WHERE id = 15",
            "route_observations, 1970-01-02: row 15 differs in latency_ms",
        ),
        (
            "DELETE FROM route_observations WHERE id IN (22, 25)",
            "route_observations, 1970-01-03: row 22 is in the database and not in the mirror",
        ),
        (
            "INSERT INTO calls (id, ts) VALUES (0, 86400)",
            "calls, 1970-01-02: row 0 is in the mirror and not in the database",
        ),
        ("UPDATE calls SET consumer_sha = NULL WHERE id = 2", "calls, 1970-01-02: row 2 differs in consumer_sha"),
        ("UPDATE calls SET caller = '' WHERE id = 3", "calls, 1970-01-02: row 3 differs in caller"),
        (
            "UPDATE route_observations SET ts = ts + 86400000 WHERE id = 4",
            "route_observations, 1970-01-01: row 4 differs in ts",
        ),
        ("UPDATE offer_history SET price_in = 0 WHERE id = 2", "offer_history, 1970-01-01: row 2 differs in price_in"),
        (
            "UPDATE provider_prices SET updated_at = 5 WHERE provider_id = 'q'",
            "provider_prices: row q m differs in updated_at",
        ),
        (
            "DELETE FROM provider_prices WHERE provider_id = 'p'",
            "provider_prices: row p m is in the database and not in the mirror",
        ),
    ],
)
def test_the_first_difference_is_named(postgres_url: str, pulled: Path, statement: str, said: str) -> None:
    """By table, day, row and column; one bit of a double is enough."""
    with _changed(pulled, statement):
        assert verify(postgres_url, pulled).difference == said


def test_a_row_that_production_changes_behind_its_back_is_found(
    production: Production, postgres_url: str, pulled: Path
) -> None:
    """A ledger's rows never change; by their txid nothing was written, so it is a difference and not news."""
    production.execute("UPDATE calls SET cost_usd = 7 WHERE id = 1")
    assert verify(postgres_url, pulled).difference == "calls, 1970-01-02: row 1 differs in cost_usd"


def test_what_was_written_since_the_pull_is_no_difference(
    production: Production, postgres_url: str, pulled: Path
) -> None:
    """New rows, rows that committed late, offers and prices that changed: left out and counted."""
    with psycopg.connect(postgres_url) as slow:
        add_attempts(slow, 1)
        add_attempts(production, 1)
        pull(postgres_url, pulled)
        slow.commit()
    add_attempts(production, 2)
    production.execute("UPDATE offer_history SET valid_to = 5 WHERE id = 1")
    production.execute("UPDATE provider_prices SET price_in = 5 WHERE provider_id = 'p'")
    report = verify(postgres_url, pulled)
    assert report.difference is None
    late = _rows(report, "later")
    # The row pulled beside the open transaction may count too: its txid is above that one's.
    assert late == {"route_observations": 4, "offer_history": 1, "provider_prices": 1}
    pull(postgres_url, pulled)
    report = verify(postgres_url, pulled)
    assert (report.difference, _rows(report, "later")) == (None, {})


def test_what_production_deleted_is_no_difference(production: Production, postgres_url: str, pulled: Path) -> None:
    """Rows older than its oldest, closed offers and prices that are gone are counted; a hole in the middle is found."""
    production.execute(f"DELETE FROM route_observations WHERE ts < {DAY_MS}")
    production.execute("DELETE FROM provider_prices WHERE provider_id = 'p'")
    report = verify(postgres_url, pulled)
    assert report.difference is None
    assert _rows(report, "deleted") == {"route_observations": 10, "provider_prices": 1}
    production.execute("DELETE FROM route_observations WHERE id = 25")
    found = verify(postgres_url, pulled).difference
    assert found == "route_observations, 1970-01-03: row 25 is in the mirror and not in the database"


def test_rows_from_files_are_no_difference(postgres_url: str, pulled: Path, tmp_path: Path) -> None:
    """They are counted apart."""
    file = tmp_path / "more.csv"
    file.write_text("ts,provider_id,model_family,ok\n1000,p,m,true\n")
    import_file(file, pulled, source="route_observations")
    report = verify(postgres_url, pulled)
    assert report.difference is None
    assert _rows(report, "imported") == {"route_observations": 1}


def test_a_mirror_that_begins_later_is_compared_from_there(
    production: Production, postgres_url: str, mirror: Path
) -> None:
    """What `--since` left out is no difference."""
    add_attempts(production, 10)
    pull(postgres_url, mirror, since_ms=1_004)
    report = verify(postgres_url, mirror)
    assert report.difference is None
    assert _rows(report, "rows") == {"route_observations": 6}


def test_an_old_source_is_compared_in_the_columns_it_has(
    old_production: Production, postgres_url: str, mirror: Path
) -> None:
    """The others are named; tables it lacks are skipped."""
    add_attempts(old_production, 5)
    pull(postgres_url, mirror)
    report = verify(postgres_url, mirror)
    assert report.difference is None
    assert report.skipped == ("offer_history", "policies", "settings")
    assert "txid" in report.tables[1].unseen


def test_pseudonyms_are_compared_with_the_key(production: Production, postgres_url: str, mirror: Path) -> None:
    """Without it those columns are left out and named; another key is refused."""
    add_call(production, caller="alice", session_id="s")
    pull(postgres_url, mirror, pseudonyms=Pseudonyms(KEY))
    report = verify(postgres_url, mirror, pseudonyms=Pseudonyms(KEY))
    assert (report.difference, report.tables[0].unseen) == (None, ())
    with pytest.raises(ReplayError, match="another key was given"):
        verify(postgres_url, mirror, pseudonyms=Pseudonyms(KEY + b"!"))
    with _changed(mirror, "UPDATE calls SET session_id = 'other'"):
        report = verify(postgres_url, mirror)
        assert (report.difference, report.tables[0].unseen) == (None, ("session_id", "consumer_sha", "caller"))
        assert (
            verify(postgres_url, mirror, pseudonyms=Pseudonyms(KEY)).difference == "calls: row 1 differs in session_id"
        )


def test_a_mirror_that_was_never_pulled_is_refused(production: Production, postgres_url: str, mirror: Path) -> None:
    """There is nothing to compare it with."""
    with open_mirror(mirror, write=True):
        pass
    with pytest.raises(ReplayError, match="was never pulled"):
        verify(postgres_url, mirror)


def test_the_commands_say_what_they_found(
    production: Production,
    postgres_url: str,
    pulled: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 0 and 1; the verdict comes first."""
    monkeypatch.delenv("REPLAY_PSEUDONYM_KEY", raising=False)
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    assert run_cli(["verify", str(pulled)]) == 0
    assert capsys.readouterr().out.startswith(f"{pulled} holds what the database holds: 37 rows compared")
    with _changed(pulled, "DELETE FROM calls WHERE id = 1"):
        assert run_cli(["verify", str(pulled)]) == 1
    assert "calls, 1970-01-02: row 1 is in the database and not in the mirror." in capsys.readouterr().out
    assert run_cli(["pull", str(pulled), "--tables", "route_observations,policies"]) == 0
    assert "settings" not in capsys.readouterr().out
    monkeypatch.delenv("DATABASE_URL")
    assert run_cli(["pull", str(pulled)]) == 2
    assert "set DATABASE_URL" in capsys.readouterr().err


doubles = (
    st.none()
    | st.floats()
    | st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
)
words = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
numbers = st.none() | st.integers(-(2**63), 2**63 - 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(st.tuples(doubles, words, numbers, st.none() | st.booleans(), words), min_size=1, max_size=6))
def test_both_engines_hash_a_row_alike(production: Production, rows: list[tuple[Any, ...]]) -> None:
    """Any double, text, integer and boolean; two rows that differ have other hashes."""
    kinds = {"a": "DOUBLE", "b": "VARCHAR", "c": "BIGINT", "d": "BOOLEAN", "e": "VARCHAR"}
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE r (a DOUBLE, b VARCHAR, c BIGINT, d BOOLEAN, e VARCHAR)")
        connection.executemany("INSERT INTO r VALUES (?, ?, ?, ?, ?)", rows)
        ours = connection.execute(f"SELECT {_row_hash(kinds, 'duckdb')} FROM r").fetchall()
    hashed = _row_hash(kinds, "postgres")
    theirs = [
        production.execute(
            f"SELECT {hashed} FROM (SELECT %s::float8 a, %s::text b, %s::bigint c, %s::boolean d, %s::text e) r", row
        ).fetchone()
        for row in rows
    ]
    assert ours == theirs
    alike = {tuple("NaN" if isinstance(one, float) and math.isnan(one) else one for one in row) for row in rows}
    assert len(set(ours)) == len(alike)


def test_the_catalogue_of_a_mirror_knows_its_pulls(pulled: Path) -> None:
    """How far each table goes, by which snapshot, and whose rows they are."""
    with open_mirror(pulled) as connection:
        ways = dict(connection.execute("SELECT target, way FROM mirror_pulls").fetchall())
        [(database, key)] = connection.execute("SELECT database, pseudonym_key FROM mirror_source").fetchall()
    assert ways["calls"] == "txid"
    assert ways["offer_history"] == "row version"
    assert ways["policies"] == "whole"
    assert set(ways) == {name for name in ways if name in queries.ddl("schema")}
    assert database.split("/")[0].isdigit()
    assert key is None
