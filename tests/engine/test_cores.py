"""The compiled core against the interpreter: the same replays, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay import engine
from replay.core import Policy, admit
from replay.kernel import core, loop
from replay.ledger.load import Ledger, load_ledger
from replay.ledger.mirror import open_mirror
from replay.ledger.rows import OfferRow
from replay.orderhash import order_hash
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW, Settings, from_dict
from replay.world import RouteModel, Scenario, simulate

RULES: list[dict[str, Any]] = [
    {"rule": "window", "window": "90s"},
    {"rule": "count", "n": 5},
    {"rule": "ema", "alpha": 0.3},
    {"rule": "time_ema", "tau": "60s"},
]
RATES = [
    *RULES,
    {"rule": "beta", "gamma": 0.9, "a0": 1, "b0": 1},
    {"rule": "wilson", "window": "2m"},
    {"rule": "consecutive", "k": 2},
]
LATENCIES = [*RULES, {"rule": "peak_ema", "tau": "60s"}, {"rule": "quantile", "n": 8, "q": 0.5}]
TOOLS: list[dict[str, Any]] = [
    {"rule": "window", "min_samples": 2, "window": "2m"},
    {"rule": "sticky", "min_samples": 2, "horizon": "1m"},
    {"rule": "never"},
]
measures = {"state": st.sampled_from(["shared", "process"]), "when_cold": st.sampled_from([None, 0.5])}
any_settings = st.fixed_dictionaries(
    {
        "reliability": st.builds(lambda rule, **more: {**rule, **more}, st.sampled_from(RATES), **measures),
        "latency": st.builds(lambda rule, **more: {**rule, **more}, st.sampled_from(LATENCIES), **measures),
        "tools": st.builds(lambda rule, state: {**rule, "state": state}, st.sampled_from(TOOLS), measures["state"]),
        "visibility": st.sampled_from(["best", "lagged"]),
        "lag": st.sampled_from([["0s"], ["2s"], ["0s", "5s"]]),
        "memo": st.sampled_from([None, "3s"]),
        "replicas": st.sampled_from([None, 3]),
        "restarts": st.sampled_from([[], [1_767_225_660_000]]),
        "honour_open_breaker_ms": st.booleans(),
    }
)


def replayed(ledger: Ledger, one: Settings, which: engine.Core, policy: Policy | None = None) -> engine.Run:
    """A replay by one of the cores."""
    return engine.run(ledger, [one], policy, prove=False, core=which)


@pytest.fixture(scope="module")
def troubled_world(
    scenario: Callable[..., Scenario], ledger_of: Callable[..., Ledger], measured_policy: Policy
) -> Ledger:
    """A small world in which routes fail, breakers open, and three processes decide at once."""
    failures = (("server_error", 5.0), ("rate_limit", 2.0), ("bad_request", 1.0))
    routes = {
        f"{name}|m|{name}": RouteModel(success_rate=rate, failures=failures)
        for name, rate in (("p", 0.6), ("q", 0.8), ("r", 0.7))
    }
    world = scenario(calls=250, routes=routes)
    calls, attempts = simulate(world, 3, PRODUCTION_NOW, measured_policy).rows()
    return ledger_of(
        calls=calls, attempts=attempts, offers=world.offers, policies=[measured_policy], settings=[PRODUCTION_NOW]
    )


@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
@given(table=any_settings)
def test_random_settings_replay_alike(troubled_world: Ledger, table: dict[str, Any]) -> None:
    """Every rule, shared and in process, with lags, memos, replicas and restarts: the same table of decisions."""
    one = from_dict({key: value for key, value in table.items() if value is not None}, name="random")
    fast, slow = (replayed(troubled_world, one, which) for which in engine.CORES)
    assert fast.decisions.equals(slow.decisions)
    assert len(fast.decisions) == 250


@pytest.mark.slow
@pytest.mark.parametrize("one", [PRODUCTION_NOW, PRODUCTION_BEFORE], ids=lambda one: one.name)
def test_the_demo_is_decided_alike(demo_mirror: Path, one: Settings) -> None:
    """A week with seeds, pins, hot routes, sessions, offers that change and failed readings."""
    with open_mirror(demo_mirror) as connection:
        ledger = load_ledger(connection)
    fast, slow = (replayed(ledger, one, which) for which in engine.CORES)
    assert fast.decisions.equals(slow.decisions)
    assert [each.interpreted for each in fast.replayed] == [None]


def test_prices_of_another_instant_decide_alike(troubled_world: Ledger) -> None:
    """Scaled list prices move choices; measured ones are left to the interpreter, which says so."""
    scaled = from_dict({"prices": {"mode": "scaled", "scale": {"p": 7.0}}}, name="scaled")
    fast, slow = (replayed(troubled_world, scaled, which) for which in engine.CORES)
    assert fast.decisions.equals(slow.decisions)
    usual = replayed(troubled_world, PRODUCTION_NOW, "compiled").decisions
    assert not fast.decisions["price_in_1"].equals(usual["price_in_1"])
    measured = replayed(troubled_world, from_dict({"prices": {"mode": "measured"}}, name="m"), "compiled")
    assert "the interpreter decides" in (measured.replayed[0].interpreted or "")


def test_blocks_and_steps_do_not_matter(troubled_world: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into blocks of 7 decisions, with a table of reject counts that must grow: the same table."""
    usual = replayed(troubled_world, PRODUCTION_NOW, "compiled").decisions
    monkeypatch.setattr(core, "ROWS_PER_BLOCK", 7)
    monkeypatch.setattr(core, "STEP", 3)
    small = loop.new_patterns
    monkeypatch.setattr(core, "new_patterns", lambda reasons, size=1, old=None: small(reasons, size, old))
    assert replayed(troubled_world, PRODUCTION_NOW, "compiled").decisions.equals(usual)


def test_a_fold_that_would_go_back_is_left_to_the_interpreter(
    ledger_of: Callable[..., Ledger], call: Any, attempt: Any, measured_policy: Policy
) -> None:
    """A shared EMA beside one in the process, and decisions of a process whose evidence is in another order."""
    rows = [
        attempt(number, 1_000 * number, number % 2 == 0, replica="a", replica_seq=2 * number) for number in range(1, 9)
    ]
    calls = [
        call(number, 9_000 + number, evidence_at=at_ms, replica="a", replica_seq=100 + number)
        for number, at_ms in ((1, 9_000), (2, 3_500))
    ]
    offers = [OfferRow(id=1, valid_from=0, position=0, provider_id="p", model_family="m")]
    ledger = ledger_of(calls=calls, attempts=rows, offers=offers)
    ema = {"rule": "ema", "alpha": 0.5}
    mixed = from_dict({"reliability": ema, "latency": {**ema, "state": "process"}}, name="mixed")
    fast, slow = (replayed(ledger, mixed, which, measured_policy) for which in engine.CORES)
    assert "decisions that overlap" in (fast.replayed[0].interpreted or "")
    assert fast.decisions.equals(slow.decisions)
    assert fast.decisions["success_rate_1"].n_unique() == 2


def test_many_texts_and_no_candidates(
    ledger_of: Callable[..., Ledger], call: Any, attempt: Any, measured_policy: Policy
) -> None:
    """A call before every offer has no candidates, and says so alike."""
    offers = [OfferRow(id=1, valid_from=50_000, position=0, provider_id="p", model_family="m")]
    ledger = ledger_of(calls=[call(1, 1_000), call(2, 60_000)], attempts=[attempt(1, 500)], offers=offers)
    fast, slow = (replayed(ledger, PRODUCTION_NOW, which, measured_policy) for which in engine.CORES)
    assert fast.decisions.equals(slow.decisions)
    assert fast.decisions["candidates"].to_list() == [0, 1]


def test_credits_of_a_provider_that_offers_nothing(
    ledger_of: Callable[..., Ledger], call: Any, attempt: Any, measured_policy: Policy
) -> None:
    """A request may know credits of anybody: of whom nothing is offered and nothing recorded, they change nothing."""
    offers = [OfferRow(id=1, valid_from=0, position=0, provider_id="p", model_family="m")]
    calls = [call(1, 1_000), call(2, 60_000, request='{"credits": {"nobody": 5.0}}')]
    ledger = ledger_of(calls=calls, attempts=[attempt(1, 500, ok=False)], offers=offers)
    fast, slow = (replayed(ledger, PRODUCTION_NOW, which, measured_policy) for which in engine.CORES)
    assert fast.decisions.equals(slow.decisions)
    assert fast.replayed[0].interpreted is None


def test_what_was_recorded_is_reproduced_beside_another_policy(small_world: Ledger) -> None:
    """The recorded policy reads columns and names reasons that the given one does not; both cores reproduce with it."""
    term = ["policy", ["top"], ["neg", ["field", "price_in"]], ["argmax"], ["id"], ["always", {"action": "abort"}]]
    runs = [engine.run(small_world, [PRODUCTION_NOW], admit(term), core=which) for which in engine.CORES]
    fast, slow = (run.reproduction for run in runs)
    assert fast == slow
    assert fast.passed
    assert fast.decisions > 100
    assert runs[0].decisions.equals(runs[1].decisions)


def test_the_hash_of_an_order_is_that_of_the_definition(troubled_world: Ledger) -> None:
    """Each decision's hash, from the compiled core, by `replay.orderhash`: with three routes the row shows all."""
    for row in replayed(troubled_world, PRODUCTION_NOW, "compiled").decisions.to_dicts():
        shown = [(row[f"route_{place}"], row[f"score_{place}"]) for place in (1, 2, 3)]
        assert row["order_hash"] == order_hash(pair for pair in shown if pair[0] is not None)
