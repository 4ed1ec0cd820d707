"""Predictions in blocks, read in the order of keys on layouts that many readings share, against the streams."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from replay import timeline
from replay.estimators import Count, Ema, Quantile, Window
from replay.ledger.load import Ledger
from replay.measuring import Measuring
from replay.predictions import Predicted, predict, predict_blocks
from replay.readings import Facts, Reads, read_many_streaming
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW, Measure
from replay.timeline import lag_free

SETTINGS = {
    "both shared": PRODUCTION_NOW,
    "both in processes": PRODUCTION_BEFORE,
    "one each": replace(
        PRODUCTION_NOW,
        reliability=Measure(rule=Count(5), state="process", exclude_kinds=("timeout",)),
        latency=Measure(rule=Quantile(window_ms=120_000, q=0.9), exclude_kinds=("rate_limited",)),
        restarts=(1_000_000, 2_000_000),
    ),
    "folds, with a memo and lags": replace(
        PRODUCTION_NOW,
        reliability=Measure(rule=Ema(0.2)),
        latency=Measure(rule=Window(60_000), state="process"),
        memo_ms=5_000,
        visibility="lagged",
        lag_ms=(0, 3_000, 40_000),
    ),
}


def streamed(measuring: Measuring, measure: Measure, values: Any, questions: Any) -> Any:
    """Answer questions with one stream per route and ledger, each fact and each read in turn."""
    attempts = measuring.timeline.attempts
    if measure.state == "shared":
        key, group = measuring.visibility.attempts, attempts.route
        reads = Reads(questions.shared_key, questions.shared_ms, questions.route)
    else:
        key = attempts.replica_seq if questions.order == "sequence" else attempts.ts_ms
        group = attempts.route * 100 + measuring.attempt_process
        reads = Reads(questions.own_key, questions.own_ms, questions.route * 100 + questions.process)
    counted = ~np.isnan(values)
    facts = Facts(*(column[counted] for column in (key, attempts.ts_ms, attempts.id, group)))
    estimates, _, _ = read_many_streaming(measure.rule, facts, values[counted], reads)
    return np.where(questions.mute & (measure.state == "shared"), np.nan, estimates)


def expected(measuring: Measuring, attempts: Any) -> Predicted:
    """Predict by the definition: what the streams say at the attempts' starts and calls."""
    facts, settings = measuring.timeline.attempts, measuring.settings
    laid = []
    for asked, ask in (
        (facts.start_ms[attempts] >= 0, measuring.at_starts),
        (facts.call[attempts] >= 0, lambda some: measuring.at_calls(facts.call[some], facts.route[some])),
    ):
        questions = ask(attempts[asked])
        for measure, values in (
            (settings.reliability, measuring.successes()),
            (settings.latency, measuring.latencies()),
        ):
            column = np.full(len(attempts), np.nan)
            column[asked] = streamed(measuring, measure, values, questions)
            laid.append(column)
    return Predicted(attempts, *laid)


def columns(blocks: list[Predicted]) -> list[list[Any]]:
    """Return the columns of some blocks end to end, None for "no estimate"."""
    names = [name for name in Predicted.__dataclass_fields__ if name != "attempts"]
    joined = [np.concatenate([getattr(block, name) for block in blocks]) for name in names]
    return [[None if value != value else value for value in column.tolist()] for column in joined]


@pytest.mark.parametrize("name", SETTINGS)
def test_blocks_of_any_size_are_what_the_streams_say(small_world: Ledger, name: str) -> None:
    """Whole, in blocks of 64 and of 7: the same doubles as streams asked one question at a time."""
    measuring = Measuring(timeline.build(small_world), SETTINGS[name])
    attempts = np.arange(len(measuring.timeline.attempts))[5:700]
    right = columns([expected(measuring, attempts)])
    assert all(len({*column}) > 4 for column in right)
    assert columns([predict(measuring, attempts)]) == right
    for rows in (64, 7):
        blocks = list(predict_blocks(measuring, attempts, rows))
        assert {len(block.attempts) for block in blocks[:-1]} == {rows}
        assert np.concatenate([block.attempts for block in blocks]).tolist() == attempts.tolist()
        assert columns(blocks) == right


def test_blocks_come_in_order_though_questions_do_not(ledger_of: Any, attempt: Any, call: Any) -> None:
    """The first row begins last, one has neither start nor call: every row gets its own answer, block by block."""
    rows = [
        attempt(1, 9_000, ok=False, started_at=8_000),
        attempt(2, 9_100, started_at=1_000),
        attempt(3, 9_200, started_at=None, latency_ms=None),
        attempt(4, 9_300, started_at=9_250),
        attempt(5, 9_400, started_at=9_050),
    ]
    measuring = Measuring(timeline.build(ledger_of(attempts=rows, calls=[call(1, 500)])), PRODUCTION_NOW)
    blocks = list(predict_blocks(measuring, np.arange(5), 2))
    assert [len(block.attempts) for block in blocks] == [2, 2, 1]
    assert columns(blocks)[0] == [None, None, None, 2 / 3, 0.0]


def test_no_attempts_are_one_empty_block(small_world: Ledger) -> None:
    """A slice without attempts has a table all the same."""
    measuring = Measuring(timeline.build(small_world), PRODUCTION_NOW)
    (block,) = predict_blocks(measuring, np.empty(0, dtype=np.int64), 10)
    assert [len(getattr(block, name)) for name in Predicted.__dataclass_fields__] == [0] * 5


def test_what_another_setting_found_out_changes_nothing(small_world: Ledger) -> None:
    """Layouts taken over from another setting, alike or not, give what a setting finds out by itself."""
    axis = timeline.build(small_world)
    attempts = np.arange(len(axis.attempts))
    known = {name: Measuring(axis, one) for name, one in SETTINGS.items()}
    for one in known.values():
        predict(one, attempts)
    for one in (*SETTINGS.values(), lag_free(PRODUCTION_NOW)):
        alone = columns([predict(Measuring(axis, one), attempts)])
        for like in known.values():
            assert columns([predict(Measuring(axis, one, like), attempts)]) == alone
