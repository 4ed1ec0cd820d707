"""The shared SQL's answers: every query, on both engines, the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import psycopg
import pytest

from replay import queries
from replay.errors import ReplayError
from replay.gate.check import Verdict, check
from replay.gate.differences import differences
from replay.gate.outcome import Outcome, load
from replay.gate.shared_sql import ANSWERS, INSTANTS, Ask, asks, on_duckdb, on_postgres
from replay.gate.suite import Scenario, read_suite
from replay.ledger.load import Ledger


@pytest.fixture(scope="module")
def scenario(accepted: Path) -> Scenario:
    """The small world's scenario."""
    return read_suite(accepted / "suite.toml").scenarios[0]


@pytest.fixture(scope="module")
def ledger(scenario: Scenario) -> Ledger:
    """Its ledger."""
    return load(scenario)


def test_every_shared_query_is_asked(ledger: Ledger) -> None:
    """At five instants where it has one, of the session seen last (at first: none); once where it has no parameter."""
    asked = asks(ledger, None, None)
    assert {ask.query for ask in asked} == set(queries.names())
    assert len([ask for ask in asked if ask.query == "route_stats"]) == INSTANTS
    assert len([ask for ask in asked if ask.query == "all_session_totals"]) == 1
    assert {ask.values["session_id"] for ask in asked if ask.query == "session_owner"} <= {"", "s0", "s1", "s2", "s3"}


def test_instants_lie_in_the_slice_from_its_first_decision_to_its_last(ledger: Ledger) -> None:
    """Of ten decisions the first, the third, fifth, seventh and last."""
    decided = sorted(ledger.calls["decided_at"].to_list())
    asked = asks(ledger, decided[10], decided[20])
    at = sorted(ask.values["at_ms"] for ask in asked if ask.query == "candidates_at")
    assert at == [decided[10 + place] for place in (0, 2, 4, 6, 9)]


def test_the_answers_are_in_the_baseline(outcome: Outcome) -> None:
    """One row per row of an answer, its values as JSON; the last route_stats is the window's at the last decision."""
    assert dict(outcome.sql.schema) == ANSWERS
    answers = outcome.sql.filter(pl.col("query") == "route_stats")
    last = max(json.loads(parameters)["until_ms"] for parameters in answers["parameters"])
    rows = [
        json.loads(row) for parameters, row in answers.select("parameters", "row").rows() if str(last) in parameters
    ]
    assert [row["provider_id"] for row in rows] == sorted(row["provider_id"] for row in rows)
    assert all(row["success_rate"] == row["ok_count"] / row["count"] for row in rows)


def test_both_engines_answer_alike(scenario: Scenario, outcome: Outcome, postgres_url: str) -> None:
    """The whole check with PostgreSQL beside DuckDB: green, and nothing is left in the database."""
    found = check(scenario, postgres_url=postgres_url)
    assert (found.verdict, found.differences.rows()) == (Verdict.same, [])
    assert found.now is not None
    assert found.now.postgres is not None
    assert found.now.postgres.height == outcome.sql.height > 50
    with psycopg.connect(postgres_url) as connection:
        left = connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'replay%' "
            "UNION ALL SELECT relname FROM pg_class WHERE relname IN ('calls', 'route_observations')"
        ).fetchall()
    assert left == []


def test_an_engine_that_answers_otherwise_is_named(
    ledger: Ledger, recorded: Outcome, outcome: Outcome, postgres_url: str
) -> None:
    """The same ledger with one attempt more in PostgreSQL alone."""
    extra = ledger.attempts[:1].with_columns(id=pl.lit(10**6, pl.Int64))
    more = dataclasses.replace(ledger, attempts=pl.concat([ledger.attempts, extra]))
    answers = on_postgres(postgres_url, more, asks(ledger, None, None))
    found = differences(recorded, dataclasses.replace(outcome, postgres=answers))
    assert set(found["setting"]) == {"PostgreSQL"}
    assert "route_stats" in {one.split()[0] for one in found["id"]}


def test_a_query_without_rows_still_has_its_columns() -> None:
    """So an empty answer is told from none, and a renamed column is seen."""
    with duckdb.connect() as connection:
        connection.execute(queries.ddl("mirror"))
        (row,) = on_duckdb(connection, [Ask("session_owner", {"session_id": ""})]).rows(named=True)
    assert row == {
        "query": "session_owner",
        "parameters": '{"session_id": ""}',
        "place": -1,
        "row": '{"caller": null, "ts": null, "id": null}',
    }


@pytest.mark.parametrize("url", ["postgresql://someone:hunter2@localhost:1/none", "host=localhost port=nonsense"])
def test_a_database_that_cannot_be_used_is_a_sentence_without_its_password(ledger: Ledger, url: str) -> None:
    """Neither the connection string nor any part of it is said."""
    with pytest.raises(ReplayError, match="could not be run on PostgreSQL") as told:
        on_postgres(url, ledger, [])
    assert not any(part in str(told.value) for part in ("hunter2", "someone", "nonsense", "localhost"))


def test_a_query_whose_parameter_is_unknown_here_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new query must not be left out in silence."""
    new: Any = queries.parse("newest", "-- name: newest(colour)\n-- What is new.\nSELECT $1::text AS colour")
    monkeypatch.setattr(queries, "names", lambda: ["newest"])
    monkeypatch.setattr(queries, "load", lambda name: new)
    with pytest.raises(ReplayError, match="the query newest has the parameter colour"):
        asks(ledger, None, None)
