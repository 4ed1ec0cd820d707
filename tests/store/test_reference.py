"""Offers, policies and settings: only changes are written, and contradictions are refused and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_rows import offer

from replay.core import Schema, admit
from replay.ledger.rows import OfferRow
from replay.ledger.store import REMEMBERED, Store
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW, Settings

Ask = Callable[..., list[dict[str, Any]]]
OpenStore = Callable[..., Store]
TERM = ["policy", ["top"], ["lit", 1.0], ["argmax"], ["id"], ["always", {"action": "abort"}]]


def _positions(store: Store, at_ms: int) -> list[int]:
    return [row.position for row in store.candidates_at(at_ms)]


def test_the_candidates_of_any_instant_are_those_recorded_last(store: Store, ask: Ask) -> None:
    """A new one enters, one that is gone is closed, one that changed is both; the rest stays as it is."""
    store.record_offers([offer(0), offer(1)], 100)
    store.record_offers([offer(0), offer(1, price_in=2.0), offer(2)], 200)
    store.record_offers([offer(0)], 300)
    store.drain(10)
    assert [_positions(store, at_ms) for at_ms in (99, 100, 199, 200, 299, 300)] == [
        [], [0, 1], [0, 1], [0, 1, 2], [0, 1, 2], [0],
    ]  # fmt: skip
    assert [row.price_in for row in store.candidates_at(250)] == [1.0, 2.0, 1.0]
    periods = ask("SELECT position, valid_from, valid_to FROM offer_history ORDER BY position, valid_from")
    assert [tuple(row.values()) for row in periods] == [(0, 100, None), (1, 100, 200), (1, 200, 300), (2, 200, 300)]


def test_the_same_list_again_writes_nothing(open_store: OpenStore, ask: Ask) -> None:
    """From this process or from another one that starts with it."""
    for store in (open_store(), open_store()):
        for at_ms in (100, 150, 200):
            store.record_offers([offer(0), offer(1), offer(1)], at_ms)
        store.drain(10)
    assert len(ask("SELECT id FROM offer_history")) == 3
    assert ask("SELECT max(valid_from) AS at, max(valid_to) AS until FROM offer_history") == [
        {"at": 100, "until": None}
    ]


def test_a_list_that_comes_too_late_is_refused_and_said(open_store: OpenStore) -> None:
    """History is not rewritten by a process whose news were held up."""
    one, other = open_store(), open_store()
    one.record_offers([offer(0)], 200)
    one.drain(10)
    other.record_offers([offer(1)], 150)
    other.drain(10)
    assert _positions(one, 300) == [0]
    assert other.health().dropped == {"refused": 1}
    assert "150 ms came after one of 200 ms" in (other.health().last_error or "")


lists = st.lists(
    st.lists(st.builds(offer, st.integers(0, 3), price_in=st.sampled_from([1.0, 2.0])), max_size=4), max_size=6
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lists=lists)
def test_every_instant_gives_back_the_list_that_held(store: Store, ask: Ask, lists: list[list[OfferRow]]) -> None:
    """For any sequence of lists, whatever repeats in them."""
    ask("TRUNCATE offer_history")
    store._recorded.clear()
    for number, candidates in enumerate(lists):
        store.record_offers(candidates, 10 * number)
    assert store.drain(10).left == 0
    for number, candidates in enumerate(lists):
        for at_ms in (10 * number, 10 * number + 9):
            found = [(row.position, row.price_in) for row in store.candidates_at(at_ms)]
            assert sorted(found) == sorted((row.position, row.price_in) for row in candidates)


def test_a_policy_is_recorded_once_with_what_it_was_admitted_with(open_store: OpenStore, ask: Ask) -> None:
    """By two processes that know it, and again after a restart."""
    schema = Schema.declare({"bench_x": {"sort": "Num", "default": 0}}, ["low", "high"])
    policy = admit(TERM, schema)
    for store in (open_store(), open_store()):
        store.record_policy(policy)
        store.record_policy(policy)
        store.drain(10)
        assert store.health().dropped == {}
    [row] = ask("SELECT * FROM policies")
    assert row["policy_id"] == policy.identity
    again = admit(json.loads(row["term"]), Schema.declare(json.loads(row["declared_fields"]), json.loads(row["tiers"])))
    assert (again.identity, again.schema) == (policy.identity, policy.schema)


@pytest.mark.parametrize(
    "schema",
    [Schema.declare({"bench_x": {"sort": "Num", "default": 1}}), Schema.declare({}, ["fallback", "gold"])],
    ids=["declared_fields", "tiers"],
)
def test_one_identity_with_another_meaning_is_refused_and_said(
    open_store: OpenStore, ask: Ask, schema: Schema, request: pytest.FixtureRequest
) -> None:
    """The recorded one stays: calls that name it were decided with it."""
    one, other = open_store(), open_store()
    one.record_policy(admit(TERM))
    one.drain(10)
    before = ask("SELECT * FROM policies")
    other.record_policy(admit(TERM, schema))
    other.drain(10)
    assert ask("SELECT * FROM policies") == before
    assert other.health().dropped == {"refused": 1}
    assert request.node.callspec.id in (other.health().last_error or "")


def test_the_store_records_its_own_settings_and_those_it_is_given(open_store: OpenStore, ask: Ask) -> None:
    """Once each, as the canonical JSON behind their identity."""
    for store in (open_store(), open_store()):
        store.record_settings(PRODUCTION_BEFORE)
        store.record_settings(replace(PRODUCTION_NOW, name="another name"))
        store.drain(10)
    rows = {row["settings_id"]: row["settings"] for row in ask("SELECT * FROM settings")}
    expected: list[Settings] = [PRODUCTION_NOW, PRODUCTION_BEFORE]
    assert rows == {one.identity: one.to_json() for one in expected}


def test_only_so_many_policies_are_remembered() -> None:
    """The one recorded longest ago is forgotten, and queued again when it comes again, to no effect on the ledger."""
    store = Store("host=/nowhere/at/all", retention_days=None)
    policies = [admit([*TERM[:2], ["lit", float(number)], *TERM[3:]]) for number in range(REMEMBERED + 1)]
    before = store.health().queued
    for policy in (*policies, policies[-1]):
        store.record_policy(policy)
    assert store.health().queued == before + len(policies)
    for policy in (policies[0], policies[0], policies[-1]):
        store.record_policy(policy)
    assert store.health().queued == before + len(policies) + 1
    store.close(0.0)
