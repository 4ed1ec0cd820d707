"""Memoised stamps at any number of calls: the compiled pass is its plain definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replay.measuring import memoised
from replay.timeline import Bools, Ints


def plainly(decided_ms: Ints, process: Ints, mute: Bools, memo_ms: int) -> list[int]:
    """Each process remembers the call it last read for, and reuses what it read for less than the memo's time."""
    read_at = list(range(len(decided_ms)))
    last: dict[int, int] = {}
    for call in sorted(read_at, key=lambda call: int(decided_ms[call])):
        own = int(process[call])
        if own in last and int(decided_ms[call]) - int(decided_ms[last[own]]) < memo_ms:
            read_at[call] = last[own]
        elif not mute[call]:
            last[own] = call
    return read_at


CALLS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), st.booleans()), max_size=80)


@given(CALLS, st.sampled_from([0, 1, 2, 10, 1_000]))
def test_a_process_reuses_what_it_read_last(calls: list[tuple[int, int, bool]], memo_ms: int) -> None:
    """Any calls of any processes, failed readings among them, in any order of their rows; none at all, too."""
    decided_ms, process = (np.array([call[part] for call in calls], dtype=np.int64) for part in (0, 1))
    mute = np.array([call[2] for call in calls], dtype=np.bool_)
    order = np.argsort(decided_ms, kind="stable")
    found = memoised(order, decided_ms, process, mute, memo_ms)
    assert found.tolist() == plainly(decided_ms, process, mute, memo_ms)
