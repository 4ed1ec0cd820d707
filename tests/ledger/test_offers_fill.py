from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import typer
from absent import shared
from typer.testing import CliRunner

from replay.cli import prices as prices_command
from replay.errors import ReplayError
from replay.ledger.mirror import open_mirror
from replay.ledger.offers import PriceList, fill_offers, list_from_events, load_price_list

CONTENT = "SELECT * FROM offer_history ORDER BY ALL"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give an empty mirror, open for writing."""
    with open_mirror(tmp_path / "m.duckdb", write=True) as connection:
        yield connection


def add_call(connection: duckdb.DuckDBPyConnection, **values: Any) -> None:
    """Insert one call; what is not said is a call of anthropic's claude-3-7-sonnet that ended at 100 s."""
    number = connection.execute("SELECT count(*) FROM calls").fetchone()
    base = {"id": number and number[0], "ts": 100, "provider_id": "anthropic", "model_family": "claude-3-7-sonnet"}
    row = {**base, **values}
    marks = ", ".join(f"${i}" for i in range(1, len(row) + 1))
    connection.execute(f"INSERT INTO calls ({', '.join(row)}) VALUES ({marks})", list(row.values()))


def price_list(*changes: tuple[int, str, float | None], model: str = "anthropic/claude-3.7-sonnet") -> PriceList:
    """Return a list of (instant, event, input price) of one model; output costs five times as much."""
    events = [
        {
            "ts_ms": at,
            "model": model,
            "event": event,
            "price_in": price,
            "price_out": None if price is None else 5 * price,
            "price_cached_in": None,
            "context": 200_000,
            "supports_tools": True,
        }
        for at, event, price in changes
    ]
    return list_from_events("openrouter_price_events", events)


def offers(connection: duckdb.DuckDBPyConnection, columns: str) -> list[tuple[Any, ...]]:
    """Return these columns of all offers, by position and period."""
    return connection.execute(f"SELECT {columns} FROM offer_history ORDER BY position, valid_from").fetchall()


def test_each_route_gets_an_offer_per_price_period(mirror: duckdb.DuckDBPyConnection) -> None:
    """A matched route has one offer per period of its listed model, with what the list says of it."""
    add_call(mirror)
    fill_offers(mirror, price_list((1_000, "listed", 3.0), (5_000, "changed", 4.0)))
    what = "valid_from, valid_to, provider_id, model_family, served_model_id, peer_id, price_in, price_out, context"
    family = ("anthropic", "claude-3-7-sonnet", "anthropic/claude-3.7-sonnet", None)
    assert offers(mirror, what) == [
        (1_000, 5_000, *family, 3.0, 15.0, 200_000),
        (5_000, None, *family, 4.0, 20.0, 200_000),
    ]
    rest = "position, capabilities, tier, price_multiplier, declared, price_cached_in"
    assert offers(mirror, rest) == [(0, '{"supports_tools": true}', None, None, None, None)] * 2


def test_unmatched_route_gets_one_offer_without_price(mirror: duckdb.DuckDBPyConnection) -> None:
    """A model that is not listed is a candidate from its first use on, and its price is not guessed."""
    add_call(mirror, model_family="claude-unheard-of")
    fill_offers(mirror, price_list((1_000, "listed", 3.0)))
    assert offers(mirror, "valid_from, valid_to, served_model_id, price_in, price_out, context, capabilities") == [
        (100_000, None, None, None, None, None, None)
    ]


def test_first_use_is_the_earliest_decision_or_attempt_start(mirror: duckdb.DuckDBPyConnection) -> None:
    """A call was decided at decided_at, else at its end minus its latency; an attempt counts from its start."""
    add_call(mirror, model_family="a", ts=100, latency_ms=2_500.0)
    add_call(mirror, model_family="b", ts=100, latency_ms=2_500.0, decided_at=99_999)
    add_call(mirror, model_family="c", ts=100, latency_ms=float("inf"))
    add_call(mirror, model_family="f", ts=100, latency_ms=1e300)
    mirror.execute(
        "INSERT INTO route_observations (id, ts, provider_id, model_family, ok, latency_ms, started_at) VALUES "
        "(1, 100000, 'anthropic', 'd', true, 700, NULL), (2, 100000, 'anthropic', 'e', true, 700, 98000)"
    )
    fill_offers(mirror, price_list((1, "listed", 3.0)))
    assert offers(mirror, "model_family, valid_from") == [
        ("a", 97_500),
        ("b", 99_999),
        ("c", 100_000),
        ("d", 99_300),
        ("e", 98_000),
        ("f", 100_000),
    ]


def test_position_is_the_rank_of_the_route_key_in_bytes(mirror: duckdb.DuckDBPyConnection) -> None:
    """Candidates stand in byte order of their route keys: capitals before small letters, é last."""
    for provider in ("é", "b", "B", "a"):
        add_call(mirror, provider_id=provider, served_by="peer")
    fill_offers(mirror, price_list((1, "listed", 3.0)))
    assert offers(mirror, "position, provider_id, peer_id") == [
        (0, "B", "peer"),
        (1, "a", "peer"),
        (2, "b", "peer"),
        (3, "é", "peer"),
    ]


def test_direct_route_is_one_candidate_however_it_is_written(mirror: duckdb.DuckDBPyConnection) -> None:
    """Null, empty and the provider's own name in served_by are the same direct route, since its earliest use."""
    for ts, served_by in ((100, None), (90, ""), (95, "anthropic")):
        add_call(mirror, served_by=served_by, ts=ts)
    report = fill_offers(mirror, price_list((1, "listed", 3.0)))
    assert offers(mirror, "peer_id, valid_from") == [(None, 1)]
    assert (report.routes, report.routes_merged) == (1, 1)


def test_call_without_provider_and_family_is_no_candidate(mirror: duckdb.DuckDBPyConnection) -> None:
    """A row that names no route adds no candidate, but counts as not covered."""
    add_call(mirror)
    add_call(mirror, provider_id=None, model_family="")
    report = fill_offers(mirror, price_list((1, "listed", 3.0)))
    assert offers(mirror, "provider_id") == [("anthropic",)]
    assert report.coverage.by_way[-1].calls == 1


def test_served_model_is_tried_where_the_family_is_not_listed(mirror: duckdb.DuckDBPyConnection) -> None:
    """A route whose family is the host's own word is joined by the one model it says it served."""
    add_call(mirror, model_family="big", served_model_id="anthropic/claude-3.7-sonnet")
    add_call(mirror, model_family="mixed", served_model_id="anthropic/claude-3.7-sonnet")
    add_call(mirror, model_family="mixed", served_model_id="another")
    fill_offers(mirror, price_list((1, "listed", 3.0)))
    assert offers(mirror, "model_family, price_in") == [("big", 3.0), ("mixed", None)]


def test_running_again_changes_nothing(mirror: duckdb.DuckDBPyConnection) -> None:
    """The same list twice leaves the same offers, ids included, and the same prices."""
    add_call(mirror)
    listed = price_list((1_000, "listed", 3.0), (5_000, "changed", 4.0))
    fill_offers(mirror, listed)
    before = mirror.execute(CONTENT).fetchall(), mirror.execute("SELECT * FROM provider_prices").fetchall()
    report = fill_offers(mirror, listed)
    assert (mirror.execute(CONTENT).fetchall(), mirror.execute("SELECT * FROM provider_prices").fetchall()) == before
    assert (report.offers_written, report.offers_replaced) == (2, 2)


def test_another_list_replaces_what_the_first_one_wrote(mirror: duckdb.DuckDBPyConnection) -> None:
    """Offers and prices of an earlier list disappear, also where the new one does not match."""
    add_call(mirror)
    fill_offers(mirror, price_list((1_000, "listed", 3.0)))
    fill_offers(mirror, price_list((1_000, "listed", 9.0), model="other/model"))
    assert offers(mirror, "valid_from, price_in") == [(100_000, None)]
    assert mirror.execute("SELECT * FROM provider_prices").fetchall() == []


@pytest.mark.parametrize("identity", [7, 2**62 + 5])
def test_offers_from_elsewhere_are_not_touched(mirror: duckdb.DuckDBPyConnection, identity: int) -> None:
    """Recorded or imported offers make it refuse and stay as they are, unless replacing is asked for."""
    add_call(mirror)
    mirror.execute(f"INSERT INTO offer_history (id, valid_from, position) VALUES ({identity}, 1, 0)")
    before = mirror.execute(CONTENT).fetchall()
    with pytest.raises(ReplayError, match="offer_history holds 1 offers that replay prices did not write"):
        fill_offers(mirror, price_list((1_000, "listed", 3.0)))
    assert mirror.execute(CONTENT).fetchall() == before
    fill_offers(mirror, price_list((1_000, "listed", 3.0)), replace=True)
    assert offers(mirror, "valid_from, price_in") == [(1_000, 3.0)]


def test_latest_list_price_goes_to_provider_prices(mirror: duckdb.DuckDBPyConnection) -> None:
    """provider_prices gets the last price the list gave, and since when, also after a delisting."""
    add_call(mirror)
    fill_offers(mirror, price_list((1_000, "listed", 3.0), (5_000, "changed", 4.0), (9_000, "delisted", None)))
    found = mirror.execute("SELECT * FROM provider_prices").fetchall()
    assert found == [("anthropic", "claude-3-7-sonnet", 4.0, 20.0, None, 5_000)]


def test_price_from_elsewhere_is_kept_and_counted(mirror: duckdb.DuckDBPyConnection) -> None:
    """A provider's price that this command did not write stays, unless replacing is asked for."""
    add_call(mirror)
    mirror.execute("INSERT INTO provider_prices VALUES ('anthropic', 'claude-3-7-sonnet', 8, 9, NULL, 1)")
    listed = price_list((1_000, "listed", 3.0))
    report = fill_offers(mirror, listed)
    assert mirror.execute("SELECT price_in FROM provider_prices").fetchall() == [(8.0,)]
    assert (report.prices_written, report.prices_kept) == (0, 1)
    fill_offers(mirror, listed, replace=True)
    assert mirror.execute("SELECT price_in FROM provider_prices").fetchall() == [(3.0,)]


def test_coverage_counts_calls_tokens_cost_and_priced_moments(mirror: duckdb.DuckDBPyConnection) -> None:
    """Per way of matching: what was joined, and which of these calls had a list price at their own moment."""
    add_call(mirror, ts=100, tokens_in=10, tokens_out=1, cost_usd=0.5)
    add_call(mirror, ts=50, tokens_in=5, cost_usd=None)
    add_call(mirror, model_family="unlisted", tokens_in=4, tokens_out=4, cost_usd=0.25)
    coverage = fill_offers(mirror, price_list((60_000, "listed", 3.0))).coverage
    rules, unmatched = coverage.by_way[1], coverage.by_way[-1]
    assert (rules.way, rules.calls, rules.priced_calls, rules.tokens, rules.cost_usd) == ("rules", 2, 1, 16, 0.5)
    assert (unmatched.way, unmatched.calls, unmatched.priced_calls, unmatched.tokens) == ("unmatched", 1, 0, 8)
    assert [family.model_family for family in coverage.unmatched] == ["unlisted"]
    assert coverage.total.calls == 3


def test_empty_mirror_is_refused(mirror: duckdb.DuckDBPyConnection) -> None:
    """Without calls or attempts there is nothing to price, and the error says what to do."""
    with pytest.raises(ReplayError, match="no calls and no attempts"):
        fill_offers(mirror, price_list((1_000, "listed", 3.0)))


def test_failure_half_way_changes_nothing(mirror: duckdb.DuckDBPyConnection) -> None:
    """When the prices cannot be written, the offers that were written before them are taken back."""
    add_call(mirror)
    mirror.execute("DROP TABLE provider_prices")
    with pytest.raises(ReplayError, match="could not be written"):
        fill_offers(mirror, price_list((1_000, "listed", 3.0)))
    assert mirror.execute(CONTENT).fetchall() == []


def run(*arguments: str) -> Any:
    """Run `replay prices` with these arguments."""
    app = typer.Typer()
    prices_command.register(app)
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})


def test_command_prices_a_ledger_and_prints_its_coverage(tmp_path: Path) -> None:
    """From a file of price events, the command fills the mirror and says how many calls it covers."""
    path, events, mapping = tmp_path / "m.duckdb", tmp_path / "list.csv", tmp_path / "mine.toml"
    events.write_text("ts,model,event,in,out\n1000,anthropic/claude-3-7-sonnet,listed,3,15\n")
    mapping.write_text(
        "[price_events]\n"
        'ts_ms = { column = "ts", as = "milliseconds" }\n'
        'model = "model"\nevent = "event"\nprice_in = "in"\nprice_out = "out"\n'
    )
    with open_mirror(path, write=True) as connection:
        add_call(connection)
    result = run(str(path), "--from", str(events), "--mapping", str(mapping))
    assert result.exit_code == 0, result.exception
    assert "1 offers for 1 routes" in result.output
    assert "1 (100.0%)" in result.output
    with open_mirror(path) as connection:
        assert offers(connection, "price_in, price_out") == [(3.0, 15.0)]


def test_command_does_not_create_a_mirror(tmp_path: Path) -> None:
    """A mirror that is not there is an error, not a new file."""
    result = run(str(tmp_path / "none.duckdb"), "--from", "genai-prices")
    assert isinstance(result.exception, ReplayError)
    assert list(tmp_path.iterdir()) == []


def test_real_ledger_and_price_list(tmp_path: Path) -> None:
    """Of the 6,591 aider calls 605 match as they stand and 5,298 with rules and aliases; redacted ones never."""
    from replay.ledger.importers import import_file

    path = tmp_path / "aider.duckdb"
    import_file(shared("data/aider_calls.csv.gz"), path, source="aider_calls")
    listed = load_price_list(str(shared("data/openrouter_price_events.csv.gz")), "openrouter_price_events")
    with open_mirror(path, write=True) as connection:
        coverage = fill_offers(connection, listed).coverage
        overlaps = connection.execute(
            "SELECT count(*) FROM (SELECT valid_to, lead(valid_from) OVER (PARTITION BY position ORDER BY valid_from) "
            "AS next_from FROM offer_history) WHERE valid_to IS DISTINCT FROM next_from"
        ).fetchone()
    assert {row.way: row.calls for row in coverage.by_way} == {
        "exact": 605,
        "rules": 4_658,
        "alias": 35,
        "unmatched": 1_293,
    }
    assert all(f.match is None for f in coverage.families if f.model_family.endswith("REDACTED"))
    assert overlaps == (0,)
