"""Rows that were never written: a decision after them is held against its record only where nothing is in doubt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from replay import engine, timeline
from replay.core import Policy, admit
from replay.deciding import Decider
from replay.gaps import Numbering
from replay.ledger.load import Ledger
from replay.ledger.memory import MemoryLedger
from replay.settings import PRODUCTION_NOW
from replay.virtual import Luck
from replay.world import RouteModel, Scenario, Simulation

WORLDS = 6
DISABLING = ["override", ["always", {"action": "next_candidate"}], "rate_limit", {"action": "disable_provider"}]


class Leaky(MemoryLedger):
    """A ledger whose queue was full for one row in eight."""

    def _enqueue(self, row: Any) -> None:
        if Luck(5).draw(row.replica, row.replica_seq) > 1 / 8:
            super()._enqueue(row)


@pytest.fixture(scope="module")
def leaky_worlds(
    ledger_of: Callable[..., Ledger], scenario: Callable[..., Scenario], measured_policy: Policy
) -> list[Ledger]:
    """What routers leave whose rows were dropped before anybody could see them, in worlds where much fails."""
    policy = admit([*measured_policy.term[:5], DISABLING])
    failures = (("server_error", 8.0), ("rate_limit", 1.0))
    routes = {f"{name}|m|{name}": RouteModel(success_rate=rate, failures=failures) for name, rate in
              (("p", 0.55), ("q", 0.6), ("r", 0.65))}  # fmt: skip
    worlds = []
    for seed in range(WORLDS):
        simulation = Simulation(scenario(calls=200, routes=routes), seed, PRODUCTION_NOW, policy)
        simulation.ledger = Leaky(PRODUCTION_NOW, simulation.world)
        calls, attempts = simulation.run().rows()
        rows = {"calls": calls, "attempts": attempts, "offers": simulation.scenario.offers}
        worlds.append(ledger_of(**rows, policies=[policy], settings=[PRODUCTION_NOW]))
    return worlds


def test_what_is_compared_reproduces_although_rows_were_dropped(
    leaky_worlds: list[Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every world each compared decision comes out; were none left out, several would not."""

    found = [engine.reproduce(ledger) for ledger in leaky_worlds]
    assert [one.first_mismatch for one in found] == [None] * WORLDS
    assert all(one.compared > 0 and one.excluded["rows of its process are missing"] > 0 for one in found)
    monkeypatch.setattr(Decider, "in_doubt", frozenset())
    assert sum(not engine.reproduce(ledger).passed for ledger in leaky_worlds) > 1


def _doubtful(ledger_of: Callable[..., Ledger], call: Any, attempt: Any, rows: list[tuple[Any, ...]]) -> list[int]:
    """Which of the calls (their ids) are in doubt, where every call could choose p and q.

    A row is ("call", number, ms) or ("p" or "q", number, ms, ok, number of its decision).
    """
    calls = [call(row[1], row[2], replica="a", replica_seq=row[1], usage_event_id=f"c{row[1]}")
             for row in rows if row[0] == "call"]  # fmt: skip
    attempts = [
        attempt(number, ms, ok, provider_id=provider, replica="a", replica_seq=number, request_id=f"c{decision}")
        for provider, number, ms, ok, decision in (row for row in rows if row[0] != "call")
    ]
    axis = timeline.build(ledger_of(calls=calls, attempts=attempts))
    return sorted(int(axis.calls.id[one]) for one in Numbering.whole().in_doubt(axis, lambda _: ("p", "q")))


@pytest.mark.parametrize(
    ("rows", "doubtful"),
    [
        ([("call", 1, 0), ("p", 2, 9, False, 1), ("call", 3, 10)], []),
        ([("call", 1, 0), ("call", 3, 10), ("call", 4, 300_009), ("call", 5, 300_010)], [3, 4]),
        # p and q are sure once attempts of a later decision succeeded on both
        ([("call", 2, 0), ("p", 4, 5, True, 2), ("q", 5, 6, True, 2), ("call", 6, 7)], [6]),
        ([("call", 2, 0), ("call", 4, 1), ("p", 5, 5, True, 4), ("call", 6, 5), ("q", 7, 6, True, 4), ("call", 8, 7)],
         [4, 6]),
        # with hidden ones before it, a failure may have opened q's breaker
        ([("call", 2, 0), ("call", 4, 1), ("p", 5, 5, True, 4), ("q", 6, 299_000, False, 4), ("call", 7, 328_999),
          ("call", 8, 329_000)], [4, 7]),
        # what the policy made of a failure is unknown where its call is: q may have been disabled
        ([("call", 2, 0), ("call", 4, 1), ("p", 5, 2, True, 4), ("q", 6, 2, True, 4), ("q", 7, 3, False, 99),
          ("call", 8, 300_002), ("call", 9, 300_003)], [4, 8]),
    ],
)  # fmt: skip
def test_doubt_lasts_until_a_success_or_until_what_was_hidden_has_run_out(
    ledger_of: Callable[..., Ledger], call: Any, attempt: Any, rows: list[tuple[Any, ...]], doubtful: list[int]
) -> None:
    """By hand: a provider is disabled for 300 s, a breaker open for 30 s."""
    assert _doubtful(ledger_of, call, attempt, rows) == doubtful


def test_another_process_is_not_concerned(small_world: Ledger) -> None:
    """Cut one decision out of one process: what the others decide stays certain."""
    victim = small_world.calls.filter(replica="b.1")["id"][10]
    calls = small_world.calls.filter(small_world.calls["id"] != victim)
    axis = timeline.build(replace(small_world, calls=calls))
    found = Numbering.whole().in_doubt(axis, lambda _: ("p", "q", "r"))
    assert {axis.calls.replica[one] for one in found} == {"b.1"}
