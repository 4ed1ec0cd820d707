"""Three real router processes on one real PostgreSQL that has a bad day: everything they decided is reproduced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_every_decision_with_complete_evidence_is_reproduced(
    tmp_path: Path, example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slow commits, late ones, a restart and an outage: recorded visibility explains each decision, lag 0 does not."""
    done = example("three_routers").experiment(tmp_path, print, seconds=12, outage_s=2.5, calls_per_second=180)
    reproduction, (replayed,) = done.run.reproduction, done.run.replayed
    # Nothing was lost: each process wrote every call it was asked for, and the server has every row it wrote.
    for replica, told in done.processes.items():
        counters = told["counters"]
        assert (told["dropped"], told["left"], counters["written_calls"]) == (0, 0, told["calls"])
        assert done.rows[replica] == counters["written_calls"] + counters["written_route_observations"]
    # Every decision that could read its evidence came out again as it was made.
    assert (reproduction.kind, reproduction.causes, reproduction.first_mismatch) == ("reproduction", {}, None)
    assert reproduction.agreed == reproduction.compared > 300
    assert set(reproduction.excluded) == {"evidence unavailable"}
    assert replayed.visibility == "recorded"
    assert (replayed.audit.decisions > 0, replayed.audit.mismatches) == (True, [])
    # And that took the recorded visibility.
    assert replayed.lag_flips
    # What was shown says all of that.
    said = capsys.readouterr().out
    assert f"Reproduction: 100.00% of {reproduction.compared:,} decisions with complete evidence" in said
    assert f"({reproduction.excluded['evidence unavailable']:,} × evidence unavailable)" in said
    assert f"{len(replayed.lag_flips):,} of {reproduction.decisions:,} decisions flip without any write lag" in said
