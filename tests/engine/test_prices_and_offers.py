"""Who could be chosen at what price: offers over time, and every mode of the `prices` setting worked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay import engine, offerbook, queries, timeline
from replay.comparison import compare
from replay.core import Policy, admit
from replay.errors import ReplayError
from replay.ledger.load import Ledger, load_ledger
from replay.ledger.mirror import open_mirror
from replay.ledger.rows import OfferRow
from replay.pricing import price_factors
from replay.record import make_record, read, write
from replay.settings import PRODUCTION_NOW, Prices, Settings

CHEAPEST = admit(
    ["policy", ["top"], ["neg", ["field", "price_in"]], ["argmax"], ["id"], ["always", {"action": "next_candidate"}]]
)


def offer(
    row_id: int, provider: str, price: float | None, since: int = 0, until: int | None = None, **more: Any
) -> OfferRow:
    """An offer of provider|m with the same price in and out."""
    said = {"valid_from": since, "valid_to": until, "position": row_id, "provider_id": provider, "model_family": "m"}
    return OfferRow(**{"id": row_id, "price_in": price, "price_out": price} | said | more)


def chosen_at(ledger: Ledger, prices: Prices) -> list[tuple[str | None, float | None]]:
    """Return (chosen route, its price in) of every call under a `prices` setting."""
    run = engine.run(ledger, [replace(PRODUCTION_NOW, prices=prices)], CHEAPEST, prove=False)
    return [(row["chosen_route"], row["price_in_1"]) for row in run.decisions.iter_rows(named=True)]


@pytest.fixture
def market(ledger_of: Any, attempt: Any, call: Any) -> Ledger:
    """p costs 3, from 10 s on 1; q always 2. Calls at 5 s and 15 s."""
    offers = [offer(1, "p", 3.0, 0, 10_000), offer(2, "q", 2.0), offer(3, "p", 1.0, 10_000)]
    return ledger_of(attempts=[attempt(1, 1)], offers=offers, calls=[call(1, 5_000), call(2, 15_000)])


def test_recorded_prices_are_those_of_the_moment(market: Ledger) -> None:
    """Each decision sees the price of its instant, not today's."""
    assert chosen_at(market, Prices()) == [("q|m|q", 2.0), ("p|m|p", 1.0)]


def test_prices_of_an_instant(market: Ledger) -> None:
    """All decisions at the list of one instant; before there was any list, each keeps its own."""
    assert chosen_at(market, Prices(mode="at", at_ms=9_999)) == [("q|m|q", 2.0), ("q|m|q", 2.0)]
    assert chosen_at(market, Prices(mode="at", at_ms=10_000)) == [("p|m|p", 1.0), ("p|m|p", 1.0)]
    assert chosen_at(market, Prices(mode="at", at_ms=-1)) == [("q|m|q", 2.0), ("p|m|p", 1.0)]


def test_scaled_prices(market: Ledger) -> None:
    """p at half its price wins at once (1.5 < 2); q at a quarter wins always; others keep theirs."""
    assert chosen_at(market, Prices(mode="scaled", scale={"p": 0.5})) == [("p|m|p", 1.5), ("p|m|p", 0.5)]
    assert chosen_at(market, Prices(mode="scaled", scale={"q": 0.25})) == [("q|m|q", 0.5), ("q|m|q", 0.5)]


def test_scaling_an_unknown_provider_is_refused(market: Ledger) -> None:
    """A misspelt provider would be a silent no-op, so it is an error that lists the known ones."""
    with pytest.raises(ReplayError, match="names provider 'x', which no offer has; expected one of p, q"):
        chosen_at(market, Prices(mode="scaled", scale={"x": 2.0}))


def reported(call: Any, row_id: int, ts: int, cost_usd: float | None, **more: Any) -> Any:
    """A call on p|m|p of a million tokens in, half of them cached, decided 1 s before the second `ts` began."""
    said = {
        "ts": ts, "route_key": "p|m|p", "provider_id": "p", "model_family": "m", "served_by": "p",
        "tokens_in": 1_000_000, "tokens_cached": 500_000, "tokens_out": 100_000, "cost_usd": cost_usd,
        "cost_basis": "reported",
    }  # fmt: skip
    return call(row_id, ts * 1000 - 1_000, **said | more)


def test_measured_prices(ledger_of: Any, attempt: Any, call: Any) -> None:
    """List price 2, cached 0.2 (a tenth): a call expects 0.5·2 + 0.5·0.2 + 0.1·2 = 1.30; 1.95 was charged: × 1.5.

    With two calls needed in 100 s: one is not enough, two are, and none is left when the window has passed.
    """
    calls = [
        reported(call, 1, 10, 1.95),
        reported(call, 2, 20, 1.95),
        reported(call, 3, 21, 99.0, cost_basis="computed"),
        reported(call, 4, 21, None),
        call(5, 19_500), call(6, 20_999), call(7, 21_000), call(8, 110_999), call(9, 111_000),
    ]  # fmt: skip
    ledger = ledger_of(attempts=[attempt(1, 1)], offers=[offer(1, "p", 2.0)], calls=calls)
    axis = timeline.build(ledger)
    book = offerbook.build(axis)
    setting = Prices(mode="measured", window_ms=100_000, min_calls=2)
    factors = price_factors(axis, book, setting)
    (candidate,) = book.at(50_000).candidates

    def price(at_ms: int) -> float | None:
        found = factors.prices(at_ms, candidate, offerbook.list_prices(book.at(at_ms), 0))
        return found and found[0]

    assert price(20_999) is None  # the second call may have ended as late as 20.999 s
    assert price(21_000) == pytest.approx(3.0)
    assert price(110_999) == pytest.approx(3.0)  # the window's lower edge is inclusive
    assert price(111_000) is None
    run = engine.run(ledger, [replace(PRODUCTION_NOW, prices=setting)], CHEAPEST, prove=False)
    priced = dict(zip(run.decisions["call_id"], run.decisions["price_in_1"], strict=True))
    assert priced[6] == 2.0
    assert priced[7] == pytest.approx(3.0)
    assert any("what-if" in warning for warning in run.warnings)


def test_what_cannot_be_priced_is_left_out_of_measured_prices(ledger_of: Any, attempt: Any, call: Any) -> None:
    """No list price, a negative or infinite one, an infinite cost, or a call never decided: skipped, no crash."""
    calls = [
        reported(call, 1, 10, 1.95),
        reported(call, 2, 11, float("inf")),
        reported(call, 3, 12, 1.0, route_key="z|m|z", provider_id="z"),
        reported(call, 4, 13, 1.0, replica="a"),
        reported(call, 5, 60, 5.0),
        reported(call, 6, 80, 5.0),
        call(7, 90_000, replica="a", replica_seq=1),
    ]
    offers = [offer(1, "p", 2.0, 0, 50_000), offer(2, "p", float("inf"), 50_000, 70_000), offer(3, "p", -1.0, 70_000)]
    axis = timeline.build(ledger_of(attempts=[attempt(1, 1)], offers=offers, calls=calls))
    factors = price_factors(axis, offerbook.build(axis), Prices(mode="measured", min_calls=1))
    assert {key: len(one.ends_ms) for key, one in factors.measured.items()} == {("p", "m"): 1}


def test_flips_caused_by_price_are_called_so(mirror_of: Any, attempt: Any, call: Any, tmp_path: Any) -> None:
    """Where nothing but the price differs, every flip's cause is "price"."""
    rows = [attempt(n, n * 1_000, ok=n % 3 > 0, latency_ms=10.0) for n in range(1, 9)]
    calls = [call(n, 8_500 + n * 500) for n in range(1, 9)]
    offers = [offer(1, "p", 3.0), offer(2, "q", 2.0)]
    mirror = mirror_of(tmp_path / "m.duckdb", attempts=rows, calls=calls, offers=offers)
    with open_mirror(mirror) as connection:
        ledger = load_ledger(connection)
    other = replace(PRODUCTION_NOW, name="half", prices=Prices(mode="scaled", scale={"p": 0.5}))
    run = engine.run(ledger, [PRODUCTION_NOW, other], CHEAPEST)
    record = make_record(run, ledger.identity, CHEAPEST, [], None, None)
    write(tmp_path / "run", record, run, mirror)
    compared = compare([read(tmp_path / "run")])
    assert compared.flips["cause"].to_list() == ["price"] * 8
    assert set(zip(compared.flips["chosen_a"], compared.flips["chosen_b"], strict=True)) == {("q|m|q", "p|m|p")}


# Offers


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spans=st.lists(
        st.tuples(st.integers(0, 9), st.none() | st.integers(-2, 12), st.integers(0, 2), st.sampled_from("pq")),
        max_size=8,
    )
)
def test_candidates_are_what_the_shared_sql_lists(ledger_of: Any, attempt: Any, spans: list[Any]) -> None:
    """At every instant the book holds the offers of `candidates_at.sql`, in its order; reversed spans never."""
    offers = [
        OfferRow(id=n, valid_from=since, valid_to=until, position=place, provider_id=name, model_family=f"f{n}")
        for n, (since, until, place, name) in enumerate(spans, start=1)
    ]
    ledger = ledger_of(attempts=[attempt(1, 1)], offers=offers)
    book = offerbook.build(timeline.build(ledger))
    if not offers:
        return
    query = queries.load("candidates_at")
    with duckdb.connect() as connection:
        connection.execute(queries.ddl("mirror"))
        connection.register("given", ledger.offers.to_arrow())
        connection.execute("INSERT INTO offer_history BY NAME SELECT * FROM given")
        for at_ms in range(-1, 13, 2):
            listed = connection.execute(query.text, query.bind(at_ms=at_ms)).pl()["model_family"].to_list()
            assert [candidate.model_family for candidate in book.at(at_ms).candidates] == listed


def test_two_offers_of_one_route_are_two_candidates_with_the_same_stamps(
    ledger_of: Any, attempt: Any, call: Any
) -> None:
    """The same route offered twice (two served models): both stand in the order, both measured alike."""
    offers = [offer(1, "p", 3.0, served_model_id="a"), offer(2, "p", 1.0, served_model_id="b"), offer(3, "q", 2.0)]
    rows = [attempt(1, 1_000, latency_ms=70.0), attempt(2, 2_000, ok=False)]
    ledger = ledger_of(attempts=rows, offers=offers, calls=[call(1, 3_000)])
    (row,) = engine.run(ledger, [PRODUCTION_NOW], CHEAPEST).decisions.to_dicts()
    assert [row[f"route_{n}"] for n in (1, 2, 3)] == ["p|m|p", "q|m|q", "p|m|p"]
    assert [row[f"success_rate_{n}"] for n in (1, 2, 3)] == [0.5, None, 0.5]
    assert [row[f"latency_ms_{n}"] for n in (1, 2, 3)] == [70.0, None, 70.0]


def test_a_direct_candidate_finds_the_route_without_a_server(ledger_of: Any, attempt: Any, call: Any) -> None:
    """A ledger that writes `p|m|` (null or empty) measures the direct candidate p|m|p, but never the peer's."""
    offers = [offer(1, "p", 1.0), offer(2, "p", 2.0, peer_id="x")]
    rows = [attempt(1, 1_000, served_by=None), attempt(2, 2_000, ok=False, served_by="")]
    ledger = ledger_of(attempts=rows, offers=offers, calls=[call(1, 3_000)])
    run = engine.run(ledger, [PRODUCTION_NOW], CHEAPEST)
    (row,) = run.decisions.to_dicts()
    assert (row["route_1"], row["success_rate_1"]) == ("p|m|", 0.5)
    assert (row["route_2"], row["success_rate_2"]) == ("p|m|x", None)
    assert run.replayed[0].audit.mismatches == []


def test_missing_route_parts_are_one_route(ledger_of: Any, attempt: Any, call: Any) -> None:
    """Null and empty parts are the same part, in the engine as in the SQL."""
    nothing = {"provider_id": None, "model_family": None, "served_by": None}
    rows = [attempt(1, 1_000, **nothing), attempt(2, 1_500, ok=False, **dict.fromkeys(nothing, ""))]
    ledger = ledger_of(attempts=rows, calls=[call(1, 3_000)])
    axis = timeline.build(ledger)
    assert axis.routes == ["||"]
    run = engine.run(ledger, [PRODUCTION_NOW], CHEAPEST)
    assert run.replayed[0].audit.mismatches == []
    assert run.predictions["p_read"].to_list() == [None, None]


@pytest.mark.parametrize(
    "said", [{"capabilities": "{"}, {"capabilities": "[1]"}, {"declared": "nope"}, {"declared": "3"}]
)
def test_an_unreadable_offer_is_named(ledger_of: Any, attempt: Any, call: Any, said: dict[str, str]) -> None:
    """Capabilities or declared fields that are no JSON objects: one error with the offer's id."""
    ledger = ledger_of(attempts=[attempt(1, 1)], offers=[offer(7, "p", 1.0, **said)], calls=[call(1, 5)])
    with pytest.raises(ReplayError, match="offer 7 in offer_history cannot be read"):
        engine.run(ledger, [PRODUCTION_NOW], CHEAPEST)


def test_a_policy_can_be_given_instead_of_the_recorded_one(small_world: Ledger, measured_policy: Policy) -> None:
    """The given policy decides every call, reproduction still uses the recorded ones."""
    until_ms = int(small_world.calls.sort("decided_at")["decided_at"][30])
    run = engine.run(small_world, [Settings(name="x")], CHEAPEST, until_ms=until_ms)
    assert set(run.decisions["policy_id"]) == {CHEAPEST.identity} != {measured_policy.identity}
    assert run.reproduction.agreed == run.reproduction.compared == 30
