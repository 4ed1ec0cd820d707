"""What `replay bench` compares for estimators answers the same question, three ways."""

from __future__ import annotations

import duckdb
import numpy as np

from replay.bench import estimators as bench
from replay.estimators import Ema, Window
from replay.kernel.layout import make_track

ATTEMPTS = 6_000
"""So few that a route's window is empty now and then."""


def test_the_bare_loops_the_tracks_and_duckdb_agree() -> None:
    """At every question the bare window and EMA, their tracks and the range-window query say the same."""
    facts, values, reads = bench._work(ATTEMPTS)
    given = facts.at_ms, facts.group, values, reads.at_ms, reads.group
    tracks = [
        make_track(rule, facts, values, bench.ROUTES, np.zeros(ATTEMPTS, dtype=np.int64), 1)
        for rule in (Window(bench.WINDOW_MS), Ema(0.2))
    ]
    window, ema = (bench._walk(track, reads.key, reads.at_ms, reads.group) for track in tracks)
    assert np.isnan(window).any()
    assert np.allclose(window, bench._window(*given), rtol=1e-9, equal_nan=True)
    assert np.allclose(ema, bench._ema(*given), rtol=1e-12, equal_nan=True)

    events = bench._events(facts, values, reads)
    with duckdb.connect() as connection:
        connection.register("events", events)
        found = connection.execute(f"SELECT at_ms, route, mean FROM ({bench.QUERY}) ORDER BY 1, 2").to_arrow_table()
    order = np.lexsort((reads.group, reads.at_ms))
    assert found.column("route").to_pylist() == reads.group[order].tolist()
    means = found.column("mean").fill_null(float("nan")).to_numpy()
    assert np.allclose(means, window[order], rtol=1e-9, equal_nan=True)
