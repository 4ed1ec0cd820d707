"""What is kept of the past, by hand: two processes and a provider that fails, from a thousand seconds on all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from replay import timeline
from replay.estimators import Window
from replay.keeping import kept_rows
from replay.ledger.load import Ledger
from replay.measuring import Measuring
from replay.settings import Measure, Settings

FROM_MS, UNTIL_MS = 1_000_000, 1_100_000
PLAIN = Settings(reliability=Measure(rule=Window(60_000)), latency=Measure(rule=Window(60_000)))
ONE = replace(PLAIN, replicas=1)


def kept(ledger: Ledger, *settings: Settings) -> tuple[list[int], list[int]]:
    """The ids of the calls and attempts that are kept."""
    axis = timeline.build(ledger)
    calls, attempts = kept_rows([Measuring(axis, one) for one in settings or (PLAIN,)], FROM_MS, UNTIL_MS)
    return calls["id"].to_list(), attempts["id"].to_list()


def test_a_success_wipes_what_came_before_it(
    ledger_of: Callable[..., Ledger], call: Callable[..., Any], attempt: Callable[..., Any]
) -> None:
    """Kept: per provider the last success and the failures since, the last ranking before each, each one's call."""
    ledger = ledger_of(
        calls=[call(number, 1_000 * number, usage_event_id=f"c{number}") for number in range(1, 8)],
        attempts=[
            attempt(1, 1_500, False),
            attempt(2, 2_500),
            attempt(3, 3_500, False, provider_id="q"),
            attempt(4, 4_500, False),
            attempt(5, 4_600, False, request_id="c1"),
        ],
    )
    assert kept(ledger) == ([1, 3, 4, 7], [2, 3, 4, 5])


def test_everything_recent_is_kept(
    ledger_of: Callable[..., Ledger], call: Callable[..., Any], attempt: Callable[..., Any]
) -> None:
    """From the first instant of the reach on, and of before the last ranking and the last end."""
    ledger = ledger_of(
        calls=[call(1, 10), call(2, FROM_MS - 1), call(3, FROM_MS), call(4, UNTIL_MS + 5)],
        attempts=[attempt(1, 20), attempt(2, FROM_MS - 1), attempt(3, FROM_MS), attempt(4, UNTIL_MS + 5)],
    )
    assert kept(ledger) == ([2, 3, 4], [2, 3, 4])


def test_each_way_of_telling_processes_apart_keeps_its_own(
    ledger_of: Callable[..., Ledger], call: Callable[..., Any], attempt: Callable[..., Any]
) -> None:
    """The success of b wipes the failure of a only where both are taken for one process."""
    ledger = ledger_of(
        calls=[call(1, 10, replica="a"), call(2, 30, replica="b")],
        attempts=[attempt(1, 20, False, replica="a"), attempt(2, 25, replica="b"), attempt(3, 40, replica="b")],
    )
    assert kept(ledger)[1] == [1, 3]
    assert kept(ledger, ONE)[1] == [3]
    assert kept(ledger, ONE, PLAIN)[1] == [1, 3]


def test_first_uses_are_kept_where_names_depend_on_them(
    ledger_of: Callable[..., Ledger], attempt: Callable[..., Any]
) -> None:
    """A route written without its server may later get its full name."""
    rows = [attempt(1, 10, served_by=None), attempt(2, 20), attempt(3, 30, served_by=None), attempt(4, 40)]
    assert kept(ledger_of(attempts=rows))[1] == [1, 2, 4]
    assert kept(ledger_of(attempts=[replace(row, served_by="p") for row in rows]))[1] == [4]
