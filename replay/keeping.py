"""What of a ledger's part can still matter to decisions after it, where nothing is remembered but windows and health.

`replay.slicing.reach` is the same thought for any setting and a part already known; this is for a future unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from replay.measuring import Measuring
from replay.timeline import Bools, Ints, Timeline


def kept_rows(measurings: Sequence[Measuring], from_ms: int, until_ms: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the calls and attempts that decisions from `until_ms` on can depend on, as frames of the ledger.

    `measurings` are of one timeline, one for each way of telling processes apart.

    That is every row from `from_ms` on; of older ones, per process and provider, the last success and all failures
    since, with the rankings that may have found a breaker recovered; the first use of each route where names depend on
    it; the decision that saw most; and the calls of all attempts kept.
    """
    axis = measurings[0].timeline
    calls, attempts = axis.calls.decided_ms >= from_ms, axis.attempts.ts_ms >= from_ms
    past_calls, past_attempts = ~calls, ~attempts
    earlier = np.flatnonzero(axis.calls.decided_ms < until_ms)
    for measuring in measurings:
        rankings, ends = _health(measuring, past_calls, past_attempts)
        calls[rankings], attempts[ends] = True, True
        if len(earlier):
            calls[earlier[np.argmax(measuring.visibility.calls[earlier])]] = True
    if any(key.endswith("|") for key in axis.routes):
        _add_first_uses(axis, calls, attempts)
    owners = axis.attempts.call[attempts]
    calls[owners[owners >= 0]] = True
    frame = axis.ledger.calls
    return frame.filter(np.isin(_ids(frame), axis.calls.id[calls])), axis.ledger.attempts.filter(attempts)


def _ids(frame: pl.DataFrame) -> Ints:
    ids: Ints = frame["id"].to_numpy()
    return ids


def _health(measuring: Measuring, past_calls: Bools, past_attempts: Bools) -> tuple[Ints, Ints]:
    """Return the rankings and ends that tell what every process knows of its providers.

    A success wipes what came before it. If any ranking between two failures found the breaker recovered, the last one
    did. Each process's last ranking and end are kept in any case.
    """
    calls, attempts = measuring.timeline.calls, measuring.timeline.attempts
    own_end = attempts.replica_seq if measuring.order == "sequence" else attempts.ts_ms
    ends = _in_order(np.flatnonzero(past_attempts), measuring.attempt_process, own_end, attempts.id)
    rankings = _in_order(np.flatnonzero(past_calls), measuring.call_process, measuring.own_call_key(), calls.id)
    group = measuring.attempt_process[ends] * len(attempts.provider.values) + attempts.provider.codes[ends]
    last_success = np.full(measuring.process_count * len(attempts.provider.values), -1, dtype=np.int64)
    place = np.arange(len(ends))
    ok = attempts.ok[ends]
    last_success[group[ok]] = place[ok]  # the last one is written last
    matters = place >= last_success[group]
    kept_rankings, kept_ends = [], [ends[matters]]
    for process in range(measuring.process_count):
        mine = rankings[measuring.call_process[rankings] == process]
        own = ends[measuring.attempt_process[ends] == process]
        kept_rankings.append(mine[-1:])
        kept_ends.append(own[-1:])
        failed = ends[matters & ~ok & (measuring.attempt_process[ends] == process)]
        before = np.searchsorted(measuring.own_call_key()[mine], own_end[failed], side="right") - 1
        kept_rankings.append(mine[before[before >= 0]])
    return np.concatenate(kept_rankings), np.concatenate(kept_ends)


def _in_order(rows: Ints, process: Ints, key: Ints, identity: Ints) -> Ints:
    return rows[np.lexsort((identity[rows], key[rows], process[rows]))]


def _add_first_uses(axis: Timeline, calls: Bools, attempts: Bools) -> None:
    starts = np.where(axis.attempts.start_ms >= 0, axis.attempts.start_ms, axis.attempts.ts_ms)
    for kept, at_ms, route in (
        (calls, axis.calls.decided_ms, axis.calls.route),
        (attempts, starts, axis.attempts.route),
    ):
        used = np.flatnonzero(route >= 0)
        used = used[np.lexsort((at_ms[used], route[used]))]
        kept[used[np.unique(route[used], return_index=True)[1]]] = True
