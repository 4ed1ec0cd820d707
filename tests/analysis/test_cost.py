from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer
from absent import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from analysis import cost
from replay import prices, queries
from replay.cli import cost as cost_command
from replay.errors import ReplayError
from replay.ledger.mirror import open_mirror
from replay.ledger.offers import cost_frames, fill_offers, load_price_list

CALLS: dict[str, Any] = {
    "provider_id": pl.String,
    "model_family": pl.String,
    "served_by": pl.String,
    "ts": pl.Int64,
    "decided_at": pl.Int64,
    "latency_ms": pl.Float64,
    "tokens_in": pl.Int64,
    "tokens_out": pl.Int64,
    "tokens_cached": pl.Int64,
    "cost_usd": pl.Float64,
    "cost_basis": pl.String,
}
PRICES: dict[str, Any] = {
    "provider_id": pl.String,
    "model_family": pl.String,
    "served_by": pl.String,
    "position": pl.Int64,
    "valid_from_ms": pl.Int64,
    "valid_to_ms": pl.Int64,
    "price_in": pl.Float64,
    "price_out": pl.Float64,
    "price_cached_in": pl.Float64,
}


def calls(*rows: dict[str, Any]) -> pl.DataFrame:
    """Return calls; what is not said: p's m, ended at 10 s, 1,000 tokens in and 100 out, reported cost 0.0045."""
    base = {"provider_id": "p", "model_family": "m", "ts": 10, "tokens_in": 1_000, "tokens_out": 100}
    cost_of = {"cost_usd": 0.0045, "cost_basis": "reported"}
    return pl.DataFrame([{**dict.fromkeys(CALLS), **base, **cost_of, **row} for row in rows], schema=CALLS)


def listed(*rows: dict[str, Any]) -> pl.DataFrame:
    """Return prices; what is not said: p's m since 0, 3 USD per million tokens in and 15 out."""
    base = {
        "provider_id": "p",
        "model_family": "m",
        "position": 0,
        "valid_from_ms": 0,
        "price_in": 3.0,
        "price_out": 15.0,
    }
    return pl.DataFrame([{**dict.fromkeys(PRICES), **base, **row} for row in rows], schema=PRICES)


def expected_nano(call: dict[str, Any], *price_rows: dict[str, Any]) -> int | None:
    """Return the expected cost of one call, in nano-dollars."""
    found = cost.price_calls(calls(call), listed(*price_rows))["expected_nano"].item()
    assert found is None or isinstance(found, int)
    return found


def test_expectation_by_hand() -> None:
    """1,000 in (400 cached) at 3 and 0.25, 200 out at 15 USD per million: 0.0018 + 0.0001 + 0.003 = 0.0049."""
    call = {"tokens_in": 1_000, "tokens_cached": 400, "tokens_out": 200}
    assert expected_nano(call, {"price_cached_in": 0.25}) == 4_900_000


def test_unknown_cached_price_is_a_tenth_of_the_input_price() -> None:
    """Without a cached price: 0.0018 + 400 × 0.3 ÷ 10⁶ + 0.003 = 0.00492."""
    call = {"tokens_in": 1_000, "tokens_cached": 400, "tokens_out": 200}
    assert expected_nano(call, {}) == 4_920_000


def test_cached_price_of_zero_is_a_price() -> None:
    """A cached price of 0 is free, not unknown."""
    assert expected_nano({"tokens_in": 1_000, "tokens_cached": 1_000, "tokens_out": 0}, {"price_cached_in": 0.0}) == 0


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"decided_at": 4_999}, 4_500_000),
        ({"decided_at": 5_000}, 9_000_000),  # valid_from is inclusive, valid_to exclusive
        ({"ts": 5, "latency_ms": 1.0}, 4_500_000),  # decided a millisecond before its end
        ({"ts": 5, "latency_ms": None}, 9_000_000),
        ({"ts": 5, "latency_ms": float("inf")}, 9_000_000),
        ({"ts": 5, "latency_ms": 1e300}, 9_000_000),
        ({"decided_at": 8_000}, None),
        ({"decided_at": -1}, None),
    ],
)
def test_price_is_that_of_the_moment_of_the_decision(when: dict[str, Any], expected: int | None) -> None:
    """The price valid at the decided instant counts; outside every period there is none."""
    periods = (
        {"valid_to_ms": 5_000},
        {"valid_from_ms": 5_000, "valid_to_ms": 8_000, "price_in": 6.0, "price_out": 30.0},
    )
    assert expected_nano(when, *periods) == expected


def test_routes_of_one_family_have_their_own_prices() -> None:
    """A peer's call is priced at that peer's offer, a direct one at the provider's, however it is written."""
    peer = {"served_by": "peer", "price_in": 30.0, "price_out": 0.0}
    assert expected_nano({"served_by": "peer"}, {}, peer) == 30_000_000
    assert [expected_nano({"served_by": s}, {}, peer) for s in (None, "", "p")] == [4_500_000] * 3


def test_of_offers_that_begin_together_the_first_in_position_counts() -> None:
    """One route in two scopes: the price of the lower position is taken, whatever the order of rows."""
    later = {"position": 1, "price_in": 99.0}
    assert expected_nano({}, later, {"position": 0}) == expected_nano({}, {"position": 0}, later) == 4_500_000


def test_constant_price_stands_in_only_where_no_period_has_a_price() -> None:
    """A family whose history is known is not priced by today's price at a moment at which the list is silent."""
    history = listed({"valid_from_ms": 50_000}, {"model_family": "bare", "price_in": None, "price_out": None})
    constant = listed({}, {"model_family": "bare"}, {"model_family": "new"}).select(
        "provider_id", "model_family", "price_in", "price_out", "price_cached_in"
    )
    some = calls({}, {"model_family": "bare"}, {"model_family": "new"}, {"decided_at": 50_000})
    priced = cost.price_calls(some, history, constant)
    found = {(row["model_family"], row["decided_ms"]): row["expected_nano"] for row in priced.to_dicts()}
    assert found == {
        ("m", 10_000): None,
        ("m", 50_000): 4_500_000,
        ("bare", 10_000): 4_500_000,
        ("new", 10_000): 4_500_000,
    }


@pytest.mark.parametrize(
    ("call", "price", "reason"),
    [
        ({"cost_usd": None}, {}, "unknown cost"),
        ({"cost_usd": float("inf")}, {}, "infinite cost"),
        ({"cost_usd": float("nan")}, {}, "infinite cost"),
        ({"cost_usd": -0.5}, {}, "negative cost"),
        ({"cost_basis": "subscription", "cost_usd": 0.0}, {}, "subscription"),
        ({"tokens_in": None}, {}, "unknown tokens"),
        ({"tokens_out": None}, {}, "unknown tokens"),
        ({"tokens_out": -1}, {}, "impossible tokens"),
        ({"tokens_cached": 1_001}, {}, "more cached tokens than tokens"),
        ({"provider_id": "q"}, {}, "no list price"),
        ({}, {"price_out": None}, "no list price"),
        ({}, {"price_in": -1.0}, "negative list price"),
        ({}, {"price_cached_in": -1.0}, "negative list price"),
        ({}, {"price_out": float("inf")}, "infinite list price"),
        ({}, {"price_in": float("nan")}, "infinite list price"),
    ],
)
def test_what_cannot_be_compared_is_skipped_with_its_reason(
    call: dict[str, Any], price: dict[str, Any], reason: str
) -> None:
    """A call without usable cost, tokens or list price is counted as skipped and in no expectation."""
    priced = cost.price_calls(calls(call, {"model_family": "other"}), listed(price, {"model_family": "other"}))
    assert cost.skipped(priced).select("reason", "routes", "calls").rows() == [(reason, 1, 1)]
    row = cost.roll_up(priced).filter(pl.col("compared") == 1).to_dicts()[0]
    assert (row["measured_micro"], row["expected_micro"]) == (4_500, 4_500)


def drift(*rows: dict[str, Any], price: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the roll-up of one provider's calls."""
    rolled = cost.roll_up(cost.price_calls(calls(*rows), listed(price or {})))
    assert rolled.height == 1
    return rolled.to_dicts()[0]


def test_roll_up_by_hand() -> None:
    """Two calls of 0.0045 expected, measured 0.0045 and 0.0063: 0.0108 ÷ 0.009 = 1.2; one more is skipped."""
    row = drift({}, {"cost_usd": 0.0063, "cost_basis": "computed"}, {"cost_usd": 1.0, "tokens_in": None})
    assert row == {
        "provider_id": "p",
        "calls": 3,
        "tokens": 2_300,
        "cost_micro": 1_010_800,
        "compared": 2,
        "measured_micro": 10_800,
        "expected_micro": 9_000,
        "deviation": 1.2,
        "reported_share": 0.5,
        "skipped": 1,
        "computed_elsewhere": 1,
        "signal": "reported",
        "warn": False,
    }


def test_warning_needs_twenty_calls() -> None:
    """The same deviation warns from the twentieth compared call on."""
    off = {"cost_usd": 0.009}
    assert [drift(*[off] * 19)["warn"], drift(*[off] * 20)["warn"]] == [False, True]


@pytest.mark.parametrize(("cost_usd", "warn"), [(1.15, True), (1.149, False), (0.85, True), (0.851, False)])
def test_warning_needs_fifteen_percent_either_way(cost_usd: float, warn: bool) -> None:
    """At exactly 15 % above or below the list it warns, nearer it does not."""
    dollar = {"price_in": 1e3, "price_out": 0.0}  # 1,000 tokens in: one USD expected
    assert drift(*[{"cost_usd": cost_usd}] * 20, price=dollar)["warn"] is warn


def test_derived_signal_never_warns() -> None:
    """With fewer than half the calls reported, no deviation is an alarm."""
    row = drift(*[{"cost_usd": 0.09}] * 19, *[{"cost_usd": 0.09, "cost_basis": "computed"}] * 20)
    assert (row["signal"], row["warn"], row["computed_elsewhere"]) == ("derived", False, 20)


def test_money_charged_for_a_free_model_warns() -> None:
    """A list price of 0 gives no ratio; being charged for it is an alarm all the same."""
    row = drift(*[{}] * 20, price={"price_in": 0.0, "price_out": 0.0})
    assert (row["deviation"], row["warn"]) == (None, True)
    assert drift(*[{"cost_usd": 0.0}] * 20, price={"price_in": 0.0, "price_out": 0.0})["warn"] is False


@pytest.mark.parametrize(("cost_usd", "elsewhere"), [(0.0045, 0), (0.004501, 0), (0.004502, 1), (0.0, 1)])
def test_computed_costs_off_the_list_are_flagged_beyond_rounding(cost_usd: float, elsewhere: int) -> None:
    """A computed cost within a rounding at six decimals is the list's; any other was computed by another rule."""
    assert drift({"cost_usd": cost_usd, "cost_basis": "computed"})["computed_elsewhere"] == elsewhere


def test_worst_comes_first() -> None:
    """Warnings lead, then the greatest deviation either way, then what could not be compared."""
    rows = [
        {"provider_id": "mild", "cost_usd": 0.005},
        {"provider_id": "low", "cost_usd": 0.001},
        {"provider_id": "none"},
    ]
    rows += [{"provider_id": "warns", "cost_usd": 0.0054}] * 20
    prices_of = [{"provider_id": name} for name in ("mild", "low", "warns")]
    rolled = cost.roll_up(cost.price_calls(calls(*rows), listed(*prices_of)))
    assert rolled["provider_id"].to_list() == ["warns", "low", "mild", "none"]


def test_families_add_up_to_their_provider() -> None:
    """Null and empty parts are one family, and the provider's sums are those of its families."""
    some = calls({}, {"model_family": None}, {"model_family": ""}, {"model_family": "n", "cost_usd": 0.1})
    priced = cost.price_calls(some, listed({}, {"model_family": "n"}))
    by_family, by_provider = cost.roll_up(priced, cost.FAMILY), cost.roll_up(priced)
    assert sorted(by_family["model_family"]) == ["", "m", "n"]
    for column in ("calls", "tokens", "cost_micro", "compared", "skipped", "expected_micro"):
        assert by_family[column].sum() == by_provider[column].sum()


def test_month_is_utc_and_shows_a_doubled_price_like_for_like() -> None:
    """m costs 1 then 2 USD per Mtok, n always 10: the mix triples the price paid, like for like it is 12 ÷ 11."""
    january, february = 1_738_367_999, 1_738_368_000  # the last second of January 2025, UTC, and the next
    base = {"tokens_in": 1_000_000, "tokens_out": 0}
    rows = [
        {**base, "ts": january, "cost_usd": 1.0},
        {**base, "ts": january, "tokens_in": 10, "model_family": "n", "cost_usd": 0.0001},
        {**base, "ts": february, "cost_usd": 2.0},
        {**base, "ts": february, "model_family": "n", "cost_usd": 10.0},
        {**base, "ts": february, "model_family": "new", "cost_usd": 50.0},
    ]
    monthly = cost.by_month(cost.price_calls(calls(*rows), listed({})))
    assert monthly["month"].to_list() == ["2025-01", "2025-02"]
    assert monthly["change"].to_list() == [None, pytest.approx(12 / 11)]
    assert monthly["usd_per_mtok"][1] == pytest.approx(62 / 3)
    by_family = cost.by_month(cost.price_calls(calls(*rows), listed({})), cost.FAMILY)
    assert by_family.filter(pl.col("model_family") == "m")["change"].to_list() == [None, 2.0]


money = st.one_of(st.none(), st.floats(0, 1_000))
tokens = st.one_of(st.none(), st.integers(0, 10**6))
random_calls = st.lists(
    st.fixed_dictionaries(
        {
            "provider_id": st.sampled_from(["p", "q", None, ""]),
            "ts": st.integers(0, 20),
            "tokens_in": tokens,
            "tokens_out": tokens,
            "tokens_cached": tokens,
            "cost_usd": money,
            "cost_basis": st.sampled_from(["reported", "computed", "subscription", None]),
        }
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(random_calls, st.randoms(use_true_random=False))
def test_order_of_rows_never_matters(rows: list[dict[str, Any]], rng: random.Random) -> None:
    """Shuffled calls and prices give the same figures to the last bit."""
    price_rows = [
        {"valid_to_ms": 9_000},
        {"valid_from_ms": 9_000, "price_in": 0.1},
        {"provider_id": "q", "price_in": 0.7},
    ]
    first = cost.price_calls(calls(*rows), listed(*price_rows))
    rng.shuffle(rows)
    rng.shuffle(price_rows)
    second = cost.price_calls(calls(*rows), listed(*price_rows))
    for roll_up in (cost.roll_up, cost.by_month):
        assert roll_up(first, cost.FAMILY).equals(roll_up(second, cost.FAMILY))


@settings(max_examples=60, deadline=None)
@given(random_calls)
def test_expectation_equals_the_one_pricing_function_call_by_call(rows: list[dict[str, Any]]) -> None:
    """What is compared is priced as plain Python prices it, and every call is either compared or skipped."""
    priced = cost.price_calls(calls(*rows), listed({"provider_id": "p"}, {"provider_id": "q", "price_in": 0.7}))
    rate = {"p": 3.0, "q": 0.7}
    wanted = 0
    for row in rows:
        used = (row["tokens_in"], row["tokens_cached"] or 0, row["tokens_out"])
        usable = row["cost_usd"] is not None and row["cost_basis"] != "subscription" and row["provider_id"] in rate
        if usable and used[0] is not None and used[2] is not None and used[1] <= used[0]:
            price = rate[row["provider_id"]]
            exact = prices.cost_usd(*used, price, 15.0, prices.cached_price(price, None))
            wanted += round(exact * 1e9)
    rolled = cost.roll_up(priced)
    assert abs(priced["expected_nano"].sum() - wanted) <= len(rows)
    assert rolled["compared"].sum() + rolled["skipped"].sum() == len(rows)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Give a mirror with awkward calls, and list prices for p."""
    path = tmp_path / "m.duckdb"
    rng = random.Random(4)
    rows = [
        {
            "provider_id": rng.choice(["p", "q", None, ""]),
            "model_family": rng.choice(["m", "M", None]),
            "ts": rng.randrange(100),
            "tokens_in": rng.choice([None, 0, rng.randrange(10_000)]),
            "tokens_out": rng.choice([None, rng.randrange(1_000)]),
            "tokens_cached": rng.choice([None, 5]),
            "cost_usd": rng.choice([None, 0.0, -0.25, rng.random(), 1e6, float("inf"), float("nan")]),
            "cost_basis": rng.choice(["reported", "computed", "subscription", None]),
        }
        for _ in range(300)
    ]
    frame = calls(*rows).with_row_index("id")
    with open_mirror(path, write=True) as connection:
        connection.register("frame", frame)
        connection.execute("INSERT INTO calls BY NAME SELECT * FROM frame")
        connection.execute("INSERT INTO provider_prices VALUES ('p', 'm', 3, 15, NULL, NULL)")
    return path


def test_roll_up_agrees_with_the_shared_query(ledger: Path) -> None:
    """Calls, tokens and cost per family are those of cost_by_route on the same window."""
    query = queries.load("cost_by_route")
    with open_mirror(ledger) as connection:
        by_route = connection.execute(query.text, query.bind(since_s=20, until_s=70)).pl()
        frames = cost_frames(connection, 20, 70)
    rolled = cost.roll_up(cost.price_calls(*frames), cost.FAMILY).filter(pl.col("calls") > 0)
    mine = {(r["provider_id"], r["model_family"]): r for r in rolled.to_dicts()}
    theirs = {(r["provider_id"], r["model_family"]): r for r in by_route.to_dicts()}
    assert mine.keys() == theirs.keys()
    for family, row in theirs.items():
        assert mine[family]["calls"] == row["calls"]
        assert mine[family]["tokens"] == row["tokens_in"] + row["tokens_out"]
        assert mine[family]["cost_micro"] / 1e6 == pytest.approx(row["cost_usd"], abs=1e-6)


def run(*arguments: str) -> Any:
    """Run `replay cost` with these arguments."""
    app = typer.Typer()
    cost_command.register(app)
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_command_says_signal_skipped_and_what_is_left_out(ledger: Path) -> None:
    """The printed report names the signal, the skipped calls with reasons, and what no expectation contains."""
    result = run(str(ledger), "--by", "family")
    assert result.exit_code == 0, result.exception
    for text in ("deviation", "no list price", "unknown cost", "cache writes, request fees, failed attempts' cost"):
        assert text in result.output


def test_command_prints_json_of_a_window(ledger: Path) -> None:
    """--json gives the same rows as the library, for the window asked for."""
    result = run(str(ledger), "--since", "1970-01-01T00:00:20Z", "--until", "1970-01-01T00:01:10Z", "--json")
    with open_mirror(ledger) as connection:
        priced = cost.price_calls(*cost_frames(connection, 20, 70))
    report = json.loads(result.output)
    assert report["rows"] == cost.roll_up(priced).to_dicts()
    assert report["skipped"] == cost.skipped(priced).to_dicts()
    assert report["left_out"] == list(cost.LEFT_OUT)


def test_command_refuses_an_empty_window(ledger: Path) -> None:
    """A window without calls is an error that says so."""
    result = run(str(ledger), "--since", "2025-01-01")
    assert isinstance(result.exception, ReplayError)
    assert "no calls" in str(result.exception)


def test_real_ledger_shows_the_provider_whose_price_doubled(tmp_path: Path) -> None:
    """Between February and March 2025 the price paid to deepseek doubled: the only such step among busy providers."""
    from replay.ledger.importers import import_file

    path = tmp_path / "aider.duckdb"
    import_file(shared("data/aider_calls.csv.gz"), path, source="aider_calls")
    listed_prices = load_price_list(str(shared("data/openrouter_price_events.csv.gz")), "openrouter_price_events")
    with open_mirror(path, write=True) as connection:
        fill_offers(connection, listed_prices)
        priced = cost.price_calls(*cost_frames(connection))
    march = cost.by_month(priced).filter(pl.col("month") == "2025-03", pl.col("calls") >= 20)
    change = dict(march.drop_nulls("change").select("provider_id", "change").rows())
    assert change.pop("deepseek") > 2
    assert len(change) >= 4
    assert all(0.8 < other < 1.25 for other in change.values())
    overall = {row["provider_id"]: row for row in cost.roll_up(priced).to_dicts()}
    assert overall["anthropic"]["compared"] > 2_800
    assert overall["anthropic"]["deviation"] == pytest.approx(1.0, abs=0.001)
    assert {row["signal"] for row in overall.values()} == {"derived", None}
