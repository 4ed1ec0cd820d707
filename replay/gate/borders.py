"""What lies exactly on a border of the evidence: an attempt that `<` for `≤` lets in or shuts out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from replay.durations import human
from replay.gate.likely import Likely
from replay.settings import Measure, Settings, Tools


def on_the_border(
    ends: pl.DataFrame, settings: Settings, visibility: str, row: dict[str, Any], cause: Likely
) -> Iterator[str]:
    """Say, for the route that a decision's cause names, which of its attempts lie on a border of what was read.

    `ends`: one row per attempt, `route_key` and `ts` in ms. `row`: the decision. `visibility`: "recorded" or "lagged".

    >>> ends = pl.DataFrame({"route_key": ["p|m|p"], "ts": [100_000]})
    >>> cause = Likely("reliability evidence", "", "p|m|p")
    >>> list(on_the_border(ends, Settings(), "lagged", {"evidence_ms": 1_000_000}, cause))
    ['an attempt of it ended in the very millisecond in which its window of 15m begins']
    """
    ended = set(ends.filter(pl.col("route_key") == cause.route)["ts"].to_list())
    measures: dict[str, Measure | Tools] = {
        "reliability evidence": settings.reliability,
        "latency evidence": settings.latency,
        "tools evidence": settings.tools,
    }
    for label, measure in measures.items():
        window_ms = getattr(measure.rule, "window_ms", None)
        if label not in cause.label or measure.state != "shared" or window_ms is None:
            continue
        if row["evidence_ms"] - window_ms in ended:
            yield f"an attempt of it ended in the very millisecond in which its window of {human(window_ms)} begins"
        if visibility == "lagged" and any(row["evidence_ms"] - lag_ms in ended for lag_ms in settings.lag_ms):
            yield "an attempt of it became visible in the very millisecond in which the evidence was read"
        return
