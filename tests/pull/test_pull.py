from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pulling import add_attempts, add_call, assert_same, held, there

from replay import queries
from replay.errors import ReplayError
from replay.ledger.importers import import_file
from replay.ledger.lacks import lacks
from replay.ledger.mirror import open_mirror
from replay.ledger.pull import PullReport, pull
from replay.ledger.pull.source import open_source
from replay.ledger.pull.state import Pulled
from replay.ledger.pull.tables import describe

Production = psycopg.Connection[Any]


def _read(report: PullReport) -> dict[str, int]:
    return {table.name: table.read for table in report.tables if table.read}


def _ids(mirror: Path, table: str = "route_observations") -> list[int]:
    return [int(row["id"]) for row in held(mirror, table)]


def test_every_value_arrives_as_it_is(production: Production, postgres_url: str, mirror: Path) -> None:
    """Null and empty, quotes and line ends, the ends of bigint, and doubles to the last bit, in all seven tables."""
    for text in ("", None, "NULL", "\\N", 'a "quoted", text', "line\r\nend\ttab", "naïve 💡", "'; --", " x "):
        add_call(production, session_id=text, caller=text, request=text)
    for number in (0.1, -0.0, 5e-324, 1.7976931348623157e308, float("nan"), float("inf"), float("-inf"), None):
        add_call(production, latency_ms=number, cost_usd=number)
    add_call(production, ts=2**63 - 1, tokens_in=-(2**63), status=-(2**31), txid=None)
    production.execute(
        "INSERT INTO route_observations (ts, ok, tools_requested) VALUES (1, true, false), (2, false, null)"
    )
    production.execute(
        "INSERT INTO provider_prices VALUES ('p', 'm', 0.1, 'Infinity', null, 5), ('', '', null, 1, 2, 3)"
    )
    production.execute("INSERT INTO peer_offers (peer_id, service, max_concurrency) VALUES ('peer', 's', 2147483647)")
    production.execute("INSERT INTO offer_history (valid_from, position, has_tee) VALUES (1, 0, true), (2, 1, null)")
    production.execute("INSERT INTO policies VALUES ('i', '{}', '{}', '[]', null)")
    production.execute("INSERT INTO settings VALUES ('i', '{}', 1)")
    pull(postgres_url, mirror)
    assert_same(production, mirror)


def test_a_second_pull_reads_only_what_is_new(production: Production, postgres_url: str, mirror: Path) -> None:
    """Nothing where nothing was written; then the new rows and no other."""
    add_attempts(production, 30_000)  # more than the first batch
    assert _read(pull(postgres_url, mirror)) == {"route_observations": 30_000}
    assert _read(pull(postgres_url, mirror)) == {}
    add_attempts(production, 3)
    assert _read(pull(postgres_url, mirror)) == {"route_observations": 3}
    assert_same(production, mirror, "route_observations")


def test_late_rows_are_looked_for_by_an_index(production: Production, postgres_url: str) -> None:
    """Not by reading the ledger: PostgreSQL plans it so as soon as it knows the table's size."""
    for _ in range(20):
        add_attempts(production, 5_000)
    production.execute("VACUUM ANALYZE route_observations")
    with open_source(postgres_url, statement_timeout_ms=10_000) as source:
        table = describe(source, "route_observations")
        assert table is not None
        before = Pulled(100_000, source.snapshot, None, table.way, complete=True)
        late = table.written_since(before, source.snapshot)
    plan = production.execute(f"EXPLAIN {table.select()} WHERE id <= 100000 AND {late} ORDER BY id").fetchall()
    assert "route_observations_txid_idx" in str(plan)
    assert "Seq Scan" not in str(plan)


def test_rows_that_commit_late_are_found(production: Production, postgres_url: str, mirror: Path) -> None:
    """Ids handed out before others and committed after them, over several pulls; a rolled-back one never comes."""
    with psycopg.connect(postgres_url) as slow, psycopg.connect(postgres_url) as failing:
        add_attempts(slow, 2)
        add_attempts(failing, 1)
        add_attempts(production, 4)
        pull(postgres_url, mirror)
        assert _ids(mirror) == [4, 5, 6, 7]
        pull(postgres_url, mirror)
        add_attempts(production, 1)
        pull(postgres_url, mirror)
        slow.commit()
        failing.rollback()
    report = pull(postgres_url, mirror)
    assert _ids(mirror) == [1, 2, 4, 5, 6, 7, 8]
    assert [table.stored for table in report.tables if table.name == "route_observations"] == [2]
    assert_same(production, mirror, "route_observations")


def test_rows_of_a_subtransaction_that_commits_late_are_found(
    production: Production, postgres_url: str, mirror: Path
) -> None:
    """An offer written under a savepoint carries another transaction id than its transaction; it has no txid."""
    add = "INSERT INTO offer_history (valid_from, position) VALUES (1, 0)"
    with psycopg.connect(postgres_url) as slow:
        slow.execute("SAVEPOINT s")
        slow.execute(add)
        slow.execute("RELEASE s")
        production.execute(add)
        pull(postgres_url, mirror)
        assert _ids(mirror, "offer_history") == [2]
        slow.commit()
    pull(postgres_url, mirror)
    assert_same(production, mirror, "offer_history")


def test_rows_that_production_deletes_stay(production: Production, postgres_url: str, mirror: Path) -> None:
    """Retention there is no retention here."""
    add_attempts(production, 5)
    pull(postgres_url, mirror)
    production.execute("DELETE FROM route_observations WHERE id <= 3")
    add_attempts(production, 1)
    pull(postgres_url, mirror)
    assert _ids(mirror) == [1, 2, 3, 4, 5, 6]


def test_what_changes_is_changed(production: Production, postgres_url: str, mirror: Path) -> None:
    """An offer that closes, a price, a peer's offer; and only those count as changed."""
    production.execute("INSERT INTO offer_history (valid_from, position, provider_id) VALUES (1, 0, 'p'), (1, 1, 'q')")
    production.execute("INSERT INTO provider_prices VALUES ('p', 'm', 1, 2, 3, 4), ('q', 'm', 1, 2, 3, 4)")
    production.execute("INSERT INTO peer_offers (peer_id, service, reputation) VALUES ('peer', 's', 0.5)")
    pull(postgres_url, mirror)
    production.execute("UPDATE offer_history SET valid_to = 9 WHERE id = 1")
    production.execute("UPDATE provider_prices SET price_in = 7 WHERE provider_id = 'q'")
    production.execute("DELETE FROM peer_offers")
    report = pull(postgres_url, mirror)
    changed = {table.name: table.stored for table in report.tables if table.stored}
    assert changed == {"offer_history": 1, "provider_prices": 1}
    assert_same(production, mirror, "offer_history", "provider_prices")
    assert len(held(mirror, "peer_offers")) == 1


def test_since_leaves_out_what_ended_before(production: Production, postgres_url: str, mirror: Path) -> None:
    """Calls count in seconds, attempts in milliseconds; the instant itself is in."""
    for ts in (9, 10, 11):
        add_call(production, ts=ts)
    add_attempts(production, 3, first_ts=9_999)
    report = pull(postgres_url, mirror, since_ms=10_000)
    assert [row["ts"] for row in held(mirror, "calls")] == ["10", "11"]
    assert [row["ts"] for row in held(mirror, "route_observations")] == ["10000", "10001"]
    assert [table.since_ms for table in report.tables][:3] == [10_000, 10_000, None]


def test_an_earlier_since_goes_back(production: Production, postgres_url: str, mirror: Path) -> None:
    """Without one a pull goes on from where the mirror begins; a later one and then none leaves no gap."""
    add_attempts(production, 10, first_ts=0)
    pull(postgres_url, mirror, since_ms=8)
    pull(postgres_url, mirror)
    assert _ids(mirror) == [9, 10]
    pull(postgres_url, mirror, since_ms=5)
    assert _ids(mirror) == [6, 7, 8, 9, 10]
    add_attempts(production, 10, first_ts=0)
    pull(postgres_url, mirror, since_ms=9)
    pull(postgres_url, mirror, since_ms=0)
    assert_same(production, mirror, "route_observations")


def test_only_the_tables_asked_for(production: Production, postgres_url: str, mirror: Path) -> None:
    """The others stay empty, and come when they are asked for."""
    add_attempts(production, 2)
    add_call(production)
    assert _read(pull(postgres_url, mirror, tables=["calls"])) == {"calls": 1}
    assert _ids(mirror) == []
    assert _read(pull(postgres_url, mirror)) == {"route_observations": 2}
    with pytest.raises(ReplayError, match="no table cats to pull; expected some of calls"):
        pull(postgres_url, mirror, tables=["cats"])


def test_the_old_schema_is_pulled_without_a_loss(old_production: Production, postgres_url: str, mirror: Path) -> None:
    """It has no txid: PostgreSQL's own row versions tell who committed late. What it lacks is said."""
    with psycopg.connect(postgres_url) as slow:
        add_attempts(slow, 1)
        add_attempts(old_production, 1)
        report = pull(postgres_url, mirror)
        slow.commit()
    assert report.absent == ("offer_history", "policies", "settings")
    assert report.uncertain == ()
    lacking = {table.name: table.lacking for table in report.tables}
    assert lacking["calls"][0] == "decided_at"
    assert lacking["route_observations"][-1] == "txid"
    assert _ids(mirror) == [2]
    pull(postgres_url, mirror)
    assert _ids(mirror) == [1, 2]


def test_a_schema_that_evolves_between_pulls(old_production: Production, postgres_url: str, mirror: Path) -> None:
    """A row of before, without a txid, that the last pull could not see; then rows with one."""
    with psycopg.connect(postgres_url) as slow:
        add_attempts(slow, 1)
        add_attempts(old_production, 1)
        pull(postgres_url, mirror)
        slow.commit()
    old_production.execute(queries.ddl("schema"))
    add_attempts(old_production, 1)
    pull(postgres_url, mirror)
    assert_same(old_production, mirror, "route_observations")


def test_a_source_of_views_is_marked_uncertain(production: Production, postgres_url: str, mirror: Path) -> None:
    """A view has neither a txid, if it leaves it out, nor row versions: the last ids are read again, and it is said."""
    production.execute("CREATE SCHEMA shown")
    production.execute("CREATE VIEW shown.calls AS SELECT id, ts, caller FROM public.calls")
    production.execute("CREATE VIEW shown.offer_history AS SELECT * FROM public.offer_history")
    url = make_conninfo(postgres_url, options="-c search_path=shown")
    first = add_call(production, caller="a")
    with psycopg.connect(postgres_url) as slow:
        late = add_call(slow, caller="late")
        add_call(production, caller="b")
        production.execute("INSERT INTO offer_history (valid_from, position) VALUES (1, 0)")
        report = pull(url, mirror)
        slow.commit()
    assert report.uncertain == ("calls",)
    assert first < late
    production.execute("UPDATE offer_history SET valid_to = 5")
    pull(url, mirror)
    assert [row["caller"] for row in held(mirror, "calls")] == ["'a'", "'late'", "'b'"]
    assert_same(production, mirror, "offer_history")
    with open_mirror(mirror) as connection:
        assert "calls was pulled from a source that does not tell" in " ".join(lacks(connection))
    assert pull(postgres_url, mirror).uncertain == ()
    assert_same(production, mirror)


@pytest.fixture
def reader(production: Production, postgres_url: str) -> Iterator[str]:
    """The connection string of a user who may SELECT from all tables but policies, and nothing more."""
    name = f"replay_reader_{str(conninfo_to_dict(postgres_url)['dbname'])[-8:]}"
    production.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'unspeakable'")
    try:
        production.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
        production.execute(f"REVOKE SELECT ON policies FROM {name}")
        yield make_conninfo(postgres_url, user=name, password="unspeakable")
    finally:
        production.execute(f"DROP OWNED BY {name}")
        production.execute(f"DROP ROLE {name}")


def test_a_user_who_may_only_select_can_pull(production: Production, reader: str, mirror: Path) -> None:
    """All that may be read is pulled; what may not is named."""
    add_attempts(production, 3)
    report = pull(reader, mirror)
    assert report.hidden == ("policies",)
    assert_same(production, mirror, "route_observations", "offer_history")


def test_a_user_who_may_not_read_the_clusters_identifier_can_pull(
    production: Production, postgres_url: str, reader: str, mirror: Path
) -> None:
    """Then the database's number and the rows themselves must do."""
    add_attempts(production, 3)
    pull(postgres_url, mirror)
    production.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    add_attempts(production, 1)
    pull(reader, mirror)
    assert_same(production, mirror, "route_observations")


def test_another_database_is_refused(
    production: Production, postgres_url: str, new_database: Any, mirror: Path
) -> None:
    """Its ids stand for other rows; the mirror stays as it was."""
    add_attempts(production, 3)
    pull(postgres_url, mirror)
    before = held(mirror, "route_observations")
    with new_database() as other, psycopg.connect(other, autocommit=True) as connection:
        connection.execute(queries.ddl("schema"))
        add_attempts(connection, 9)
        with pytest.raises(ReplayError, match="holds rows of another database"):
            pull(other, mirror)
    assert held(mirror, "route_observations") == before


def test_a_database_restored_to_an_earlier_state_is_refused(
    production: Production, postgres_url: str, mirror: Path
) -> None:
    """Its ids are handed out again, for other rows."""
    add_attempts(production, 3)
    pull(postgres_url, mirror)
    production.execute("TRUNCATE route_observations RESTART IDENTITY")
    add_attempts(production, 2, first_ts=5_000)
    with pytest.raises(ReplayError, match="Row 1 of route_observations is another one in the mirror"):
        pull(postgres_url, mirror)


def test_rows_of_files_and_pulled_rows_live_together(
    production: Production, postgres_url: str, mirror: Path, tmp_path: Path
) -> None:
    """Their ids begin at 2⁶²; a row exported with its id and then pulled is there once."""
    add_attempts(production, 3)
    with_ids, without = tmp_path / "with.csv", tmp_path / "without.csv"
    [first, *_] = there(production, "route_observations")
    with_ids.write_text(f"id,ts,provider_id,model_family,ok\n1,{first['ts']},p0,m,false\n")
    without.write_text("ts,provider_id,model_family,ok\n1000,p,m,true\n")
    import_file(with_ids, mirror, source="route_observations")
    import_file(without, mirror, source="route_observations")
    pull(postgres_url, mirror)
    assert _ids(mirror)[:3] == [1, 2, 3]
    [imported] = _ids(mirror)[3:]
    assert imported >= 2**62


def test_a_mirror_of_before_pulls_gets_their_tables(production: Production, postgres_url: str, mirror: Path) -> None:
    """It is not refused, neither by a reader nor by a pull."""
    with open_mirror(mirror, write=True) as connection:
        connection.execute("DROP TABLE mirror_source")
        connection.execute("DROP TABLE mirror_pulls")
    add_attempts(production, 3)
    assert _ids(mirror) == []
    pull(postgres_url, mirror)
    assert _ids(mirror) == [1, 2, 3]


def test_a_table_without_what_a_row_needs_is_refused(production: Production, postgres_url: str, mirror: Path) -> None:
    """Nothing is written, not even a file."""
    production.execute("ALTER TABLE route_observations DROP COLUMN ok")
    with pytest.raises(ReplayError, match="route_observations has no column ok"):
        pull(postgres_url, mirror)
    assert not mirror.exists()


def test_a_database_without_the_tables_is_refused(postgres_url: str, mirror: Path) -> None:
    """It is likely the wrong one, and is said to be."""
    with pytest.raises(ReplayError, match="has none of the tables"):
        pull(postgres_url, mirror)
    assert not mirror.exists()


def test_values_of_other_types_are_taken_where_they_fit(
    production: Production, postgres_url: str, mirror: Path
) -> None:
    """A cost in numeric and a status in text are read as the mirror's types; what does not fit is refused whole."""
    production.execute("ALTER TABLE calls ALTER COLUMN cost_usd TYPE numeric, ALTER COLUMN status TYPE text")
    add_call(production, cost_usd="0.25", status="200")
    pull(postgres_url, mirror)
    assert [(row["cost_usd"], row["status"]) for row in held(mirror, "calls")] == [("0.25", "200")]
    add_call(production, status="fine")
    with pytest.raises(
        ReplayError, match='PostgreSQL could not be read: invalid input syntax for type integer: "fine"'
    ):
        pull(postgres_url, mirror)
    assert len(held(mirror, "calls")) == 1


def test_a_held_mirror_is_refused(production: Production, postgres_url: str, mirror: Path) -> None:
    """With the process that holds it, as every writer does."""
    pull(postgres_url, mirror)
    with duckdb.connect(str(mirror), read_only=True), pytest.raises(ReplayError, match="already open in this process"):
        pull(postgres_url, mirror, wait_s=0)
