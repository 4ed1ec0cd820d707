"""What is compared decides alike, and every ratio is one of two figures of the same run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from replay import engine, offerbook, timeline
from replay.asking import Policies
from replay.bench import decisions as bench
from replay.core import admit
from replay.deciding import Decider
from replay.ledger.load import load_ledger
from replay.ledger.mirror import open_mirror
from replay.settings import PRODUCTION_NOW
from replay.timeline import lag_free


def test_productions_way_decides_as_the_engine_does(mirror: Path) -> None:
    """Without write lag, and under a policy that looks at no breaker, both choose the same routes."""
    score = ["add", ["field", "success_rate"], ["neg", ["normalize", ["field", "latency_ms"]]]]
    policy = admit(["policy", ["meets_req"], score, ["argmax"], ["id"], ["always", {"action": "abort"}]])
    with open_mirror(mirror) as connection:
        ledger = load_ledger(connection)
        axis = timeline.build(ledger)
        decider = Decider(axis, offerbook.build(axis), Policies(axis, policy))
        calls = np.arange(0, len(axis.calls), 30)
        by_sql = bench.by_sql(connection, decider, calls)
    run = engine.run(ledger, [lag_free(PRODUCTION_NOW)], policy, prove=False)
    assert by_sql == run.decisions["chosen_route"].gather(calls).to_list()
    assert len(set(by_sql)) > 5


@pytest.mark.slow
def test_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every policy, count and way of deciding has its figure; what each is held against is there too."""
    monkeypatch.setattr(bench, "QUICK_CALLS", 2_000)
    monkeypatch.setattr(bench, "ROUNDS", 1)
    said: list[tuple[str, int, int]] = []
    figures = bench.bench_decisions(lambda what, done, total: said.append((what, done, total)), True)
    value = {one.name: one.value for one in figures}
    assert all(one.value > 0 for one in figures)
    for one in figures:
        assert (one.against is None) == (one.ratio is None)
        if one.against is not None:
            assert one.ratio == pytest.approx(one.value / value[one.against])
        assert one.reached is None  # small sizes are not judged
    engines = {f"engine, policy {name}, {count} candidates" for name, count in (("default", 20), ("default", 60))}
    assert engines | {"engine, policy balanced, 60 candidates", "interpreter core, 256 decisions"} <= set(value)
    assert {one.name for one in figures if one.aim is not None} == engines
    assert said[-1][1:] == (1, 1)
