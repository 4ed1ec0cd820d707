from __future__ import annotations

import datetime
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.errors import ReplayError
from replay.ledger.offers import (
    Period,
    PriceList,
    Terms,
    list_from_events,
    load_price_list,
    load_rules,
    make_periods,
    read_genai_prices,
    route_periods,
)
from replay.ledger.offers.pricelist import join_renames


def event(
    ts_ms: int, event: str = "listed", price: float | None = 1.0, model: str = "v/m", **more: Any
) -> dict[str, Any]:
    """Return a price event whose output price is twice its input price."""
    out = None if price is None else price * 2
    base = {"price_in": price, "price_out": out, "price_cached_in": None, "context": 8_000, "supports_tools": True}
    return {"ts_ms": ts_ms, "model": model, "event": event, **base, **more}


def periods(*events: dict[str, Any]) -> list[tuple[int | None, int | None, float | None]]:
    """Return (from, to, price_in) of the one model's periods."""
    listing = list_from_events("x", events).listings["v/m"]
    return [(period.from_ms, period.to_ms, period.terms.price_in) for period in listing.periods]


def test_each_change_of_price_starts_a_period() -> None:
    """Events in any order become periods that end where the next begins; the last is open."""
    found = periods(event(9, "changed", 3.0), event(1), event(5, "changed", 2.0))
    assert found == [(1, 5, 1.0), (5, 9, 2.0), (9, None, 3.0)]


def test_change_of_nothing_we_keep_starts_no_period() -> None:
    """An event that changes neither price nor context nor tools is not a new period."""
    assert periods(event(1), event(5, "changed"), event(9, "changed", 2.0)) == [(1, 9, 1.0), (9, None, 2.0)]


def test_delisting_makes_the_price_unknown_but_keeps_the_model() -> None:
    """After a delisting nothing vouches for the price; context and tools stay what they were."""
    gone = list_from_events("x", [event(1), event(5, "delisted", None, context=None, supports_tools=None)])
    assert gone.listings["v/m"].periods[-1] == Period(5, None, Terms(None, None, None, 8_000, True))
    assert gone.rejected == Counter()


def test_relisting_brings_a_price_back() -> None:
    """A model that is listed again has a price again, with a gap of unknown price between."""
    assert periods(event(1), event(5, "delisted", None), event(9, price=4.0)) == [
        (1, 5, 1.0),
        (5, 9, None),
        (9, None, 4.0),
    ]


def test_zero_is_a_price() -> None:
    """A price of 0 means free, which is known."""
    assert periods(event(1, price=0.0)) == [(1, None, 0.0)]


@pytest.mark.parametrize(
    ("price", "reason"), [(-1.0, "negative price"), (float("inf"), "infinite price"), (None, "price missing")]
)
def test_unusable_price_is_rejected_and_the_old_one_does_not_go_on(price: float | None, reason: str) -> None:
    """An event with an unusable price is counted, and the price is unknown from then on."""
    listed = list_from_events("x", [event(1), event(5, "changed", price)])
    assert listed.rejected == Counter({reason: 1})
    assert [period.terms.price_in for period in listed.listings["v/m"].periods] == [1.0, None]


def test_unusable_cached_price_loses_only_itself() -> None:
    """A negative cached price is dropped and counted; the other prices stay."""
    listed = list_from_events("x", [event(1, price_cached_in=-1.0)])
    assert listed.rejected == Counter({"cached: negative price": 1})
    assert listed.listings["v/m"].periods[0].terms == Terms(1.0, 2.0, None, 8_000, True)


def test_contradicting_rows_of_one_instant_are_all_rejected() -> None:
    """Two different prices at one instant are no price; an exact repeat is no contradiction."""
    listed = list_from_events("x", [event(1), event(1), event(5, "changed", 2.0), event(5, "changed", 3.0)])
    assert listed.rejected == Counter({"contradicts another row of the same instant": 2})
    assert [period.terms.price_in for period in listed.listings["v/m"].periods] == [1.0, None]


def test_rename_joins_two_spellings() -> None:
    """A name delisted at the instant its other spelling is listed is one model under both names."""
    events = [
        event(1, model="v/m-3-5"),
        event(7, "delisted", None, model="v/m-3-5"),
        event(7, price=4.0, model="v/m-3.5"),
    ]
    joined = join_renames(list_from_events("x", events), load_rules("x").spelled)
    assert list(joined.listings) == ["v/m-3.5"]
    assert joined.listings["v/m-3.5"].other_names == ("v/m-3-5",)
    assert [(p.from_ms, p.terms.price_in) for p in joined.listings["v/m-3.5"].periods] == [(1, 1.0), (7, 4.0)]


def test_spellings_listed_side_by_side_stay_apart() -> None:
    """Two spellings that overlap in time may be two products."""
    events = [
        event(1, model="v/m-3-5"),
        event(9, "delisted", None, model="v/m-3-5"),
        event(7, price=4.0, model="v/m-3.5"),
    ]
    joined = join_renames(list_from_events("x", events), load_rules("x").spelled)
    assert sorted(joined.listings) == ["v/m-3-5", "v/m-3.5"]


def test_route_used_before_its_listing_has_no_price_until_then() -> None:
    """From its first use to its first listing a route is a candidate without a price."""
    found = route_periods(3, make_periods([(9, Terms(1.0, 2.0))]))
    assert found == [Period(3, 9, Terms()), Period(9, None, Terms(1.0, 2.0))]


def test_route_listed_before_its_use_is_valid_from_the_listing() -> None:
    """A route listed first is a candidate from its listing on."""
    listed = make_periods([(3, Terms(1.0, 2.0)), (5, Terms(2.0, 2.0))])
    assert route_periods(9, listed) == list(listed)


def test_unmatched_route_has_one_period_without_price() -> None:
    """A route without a listed model has a single period from its first use on."""
    assert route_periods(3, ()) == [Period(3, None, Terms())]


def test_list_without_a_beginning_is_valid_from_first_use() -> None:
    """Where the list does not know since when, a route's first period begins at its first use."""
    listed = make_periods([(None, Terms(1.0, 2.0)), (5, Terms(2.0, 2.0))])
    assert [period.from_ms for period in route_periods(3, listed)] == [3, 5]
    assert route_periods(8, listed) == [Period(8, None, Terms(2.0, 2.0))]


price = st.one_of(st.none(), st.floats(0, 100), st.just(-1.0))
random_events = st.lists(
    st.builds(event, st.integers(0, 60), st.sampled_from(["listed", "changed", "delisted"]), price), max_size=12
)


@given(random_events, st.integers(0, 60))
def test_periods_cover_a_route_from_its_beginning_without_gap_or_overlap(
    events: list[dict[str, Any]], first_use: int
) -> None:
    """Whatever the events, a route's periods follow one another from first use or first listing on, for ever."""
    listed = list_from_events("x", events).listings
    found = route_periods(first_use, listed["v/m"].periods if listed else ())
    assert found[0].from_ms == min([first_use, *(row["ts_ms"] for row in events)])
    assert all(one.to_ms == other.from_ms for one, other in pairwise(found))
    assert all(p.to_ms is None or (p.from_ms is not None and p.from_ms < p.to_ms) for p in found)
    assert [p.to_ms is None for p in found] == [False] * (len(found) - 1) + [True]
    assert all(p.terms.price_in is None or p.terms.price_in >= 0 for p in found)


@given(random_events, st.randoms(use_true_random=False))
def test_order_of_the_file_does_not_matter(events: list[dict[str, Any]], rng: Any) -> None:
    """The same events in another order are the same list."""
    shuffled = list(events)
    rng.shuffle(shuffled)
    assert list_from_events("x", shuffled) == list_from_events("x", events)


@pytest.fixture(scope="module")
def genai() -> PriceList:
    """Give the bundled price list."""
    return read_genai_prices()


def test_genai_prices_knows_a_dated_price_change(genai: PriceList) -> None:
    """OpenAI's o3 went from 10 and 40 to 2 and 8 USD on 10 June 2025 (UTC)."""
    change_ms = int(datetime.datetime(2025, 6, 10, tzinfo=datetime.UTC).timestamp() * 1000)
    found = [(p.from_ms, p.to_ms, p.terms.price_in, p.terms.price_out) for p in genai.listings["openai/o3"].periods]
    assert found == [(None, change_ms, 10.0, 40.0), (change_ms, None, 2.0, 8.0)]


def test_genai_prices_agree_with_the_package_s_own_pricing(genai: PriceList) -> None:
    """Base prices equal what the package itself charges for a short prompt on a day of each dated period."""
    from genai_prices import Usage, calc_price

    checked = 0
    for name in ("openai/o3", "openai/gpt-4o", "anthropic/claude-opus-4-6", "x-ai/grok-4.20", "google/gemini-2.5-pro"):
        provider, model = name.split("/", 1)
        for period in genai.listings[name].periods:
            at = datetime.datetime.fromtimestamp((period.from_ms or 1_000) / 1000, datetime.UTC)
            priced = calc_price(
                Usage(input_tokens=1_000, output_tokens=100),
                model,
                provider_id=provider,
                genai_request_timestamp=at + datetime.timedelta(hours=12),
            )
            assert period.terms.price_in is not None
            assert period.terms.price_out is not None
            expected = (1_000 * period.terms.price_in + 100 * period.terms.price_out) / 1e6
            assert float(priced.total_price) == pytest.approx(expected, rel=1e-12)
            checked += 1
    assert checked >= 7


def test_genai_prices_says_what_it_simplified(genai: PriceList) -> None:
    """Models with tiers, hours of the day and variants are counted."""
    assert {note.split(" (")[0] for note in genai.notes} == {
        "models priced by the hour of the day",
        "models with tiers by prompt length",
        "models with variants by request, such as batch or priority",
    }


def test_file_without_mapping_is_refused() -> None:
    """A price file needs a mapping, and the error names one."""
    with pytest.raises(ReplayError, match="--mapping openrouter_price_events"):
        load_price_list("prices.csv", None)


def test_mapping_for_the_package_is_refused() -> None:
    """genai-prices takes no mapping."""
    with pytest.raises(ReplayError, match="needs none"):
        load_price_list("genai-prices", "openrouter_price_events")
