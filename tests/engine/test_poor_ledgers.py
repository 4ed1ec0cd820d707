"""Ledgers that lack what a replay would like: attempts alone, nothing, the old schema, and rows that make no sense."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from replay import engine, offerbook, timeline
from replay.asking import Policies
from replay.cli import run_cli
from replay.core import admit
from replay.deciding import Decider
from replay.errors import ReplayError
from replay.ledger.load import Ledger
from replay.ledger.rows import AttemptRow, CallRow
from replay.outcomes import CAUSES, Choices
from replay.reproduction import Reproduction, agree
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW

ORDERED = admit(["policy", ["meets_req"], ["zero"], ["ordered"], ["id"], ["always", {"action": "next_candidate"}]])
ORDERED_TERM = json.dumps(ORDERED.term)
BOTH = [PRODUCTION_NOW, PRODUCTION_BEFORE]


def old_rows(calls: int = 40) -> tuple[list[CallRow], list[AttemptRow]]:
    """Rows with only the columns that system.md lists for the old schema: two routes in turn, some failing."""
    made_calls, made_attempts = [], []
    for n in range(1, calls + 1):
        name = "pq"[n % 2]
        ended_s = 1_700_000_000 + 60 * n
        ok = n % 7 > 0
        route = {"provider_id": name, "model_family": "m", "served_by": name}
        made_calls.append(
            CallRow(
                id=n, ts=ended_s, usage_event_id=f"u{n}", route_key=f"{name}|m|{name}", requested_model="family:m",
                status=200 if ok else 502, latency_ms=1_500.0, tokens_in=100, tokens_out=10, **route,
            )
        )  # fmt: skip
        made_attempts.append(AttemptRow(id=n, ts=ended_s * 1000, ok=ok, latency_ms=1_500.0 if ok else 0.0, **route))
    return made_calls, made_attempts


@pytest.fixture
def old(ledger_of: Any) -> Ledger:
    """A ledger of the old schema."""
    calls, attempts = old_rows()
    return ledger_of(calls=calls, attempts=attempts)


def test_an_old_ledger_is_replayed_and_says_less(old: Ledger) -> None:
    """Final-route agreement, never reproduction; lagged; candidates from the ledger itself; every decision audited."""
    run = engine.run(old, BOTH, ORDERED)
    found = run.reproduction
    assert found.kind == "final-route agreement"
    assert (found.decisions, found.compared) == (40, 40)
    assert found.incomplete == {"evidence state not recorded": 40}
    assert found.agreed == 21  # worked out below
    assert run.passed, "agreement is no test"
    for one in run.replayed:
        assert (one.visibility, one.lag_flips) == ("lagged", None)
        assert one.audit.mismatches == []
        assert one.audit.decisions == 40


def test_every_difference_of_agreement_has_its_cause(old: Ledger) -> None:
    """A plan that begins as the call did, which ended elsewhere, is a failover like one whose first was disabled."""
    axis = timeline.build(old)
    decider = Decider(axis, offerbook.build(axis), Policies(axis, ORDERED))
    calls = np.arange(5)
    elsewhere = 1 - axis.calls.route[calls]
    elsewhere[4] = axis.calls.route[4]
    causes = [CAUSES.index(cause) for cause in ("", "failover", "failover", "score", "")]
    found = Reproduction(decisions=5)
    agree(found, decider, Choices(calls, elsewhere, np.zeros(5, dtype=np.bool_), np.array(causes, dtype=np.int8)))
    assert found.causes == {"failover": 3, "score": 1}
    assert found.compared - found.agreed == 4


def test_an_old_call_is_decided_its_latency_before_its_end(old: Ledger) -> None:
    """decided_at = ts·1000 − latency; a recorded latency of 0 or none is unknown: then decided at its end."""
    calls = old.calls.with_columns(
        latency_ms=pl.when(pl.col("id") == 1).then(0.0).when(pl.col("id") == 2).then(None).otherwise("latency_ms")
    )
    run = engine.run(replace(old, calls=calls), [PRODUCTION_NOW], ORDERED)
    decided = dict(zip(run.decisions["call_id"], run.decisions["decided_ms"], strict=True))
    assert decided[1] == 1_700_000_060_000
    assert decided[2] == 1_700_000_120_000
    assert decided[3] == 1_700_000_180_000 - 1_500
    assert run.decisions["evidence_ms"].to_list() == run.decisions["decided_ms"].to_list()


def test_the_agreement_of_an_old_ledger_by_hand(old: Ledger) -> None:
    """In order of the ledger's routes p always comes first once seen: it agrees with the calls that ended on p."""
    run = engine.run(old, [PRODUCTION_NOW], ORDERED)
    by_hand = run.decisions.filter(pl.col("chosen_route") == pl.col("recorded_route")).height
    assert run.reproduction.agreed == by_hand
    # Call 1 ended on q, before p was ever seen; after that p leads, and each call on p agrees.
    assert by_hand == 1 + 20
    assert set(run.decisions.filter(pl.col("call_id") > 1)["chosen_route"]) == {"p|m|p"}


def test_in_process_state_can_be_assumed_for_an_old_ledger(old: Ledger) -> None:
    """R assumed replicas see less evidence each; the shared preset does not care."""
    three = replace(PRODUCTION_BEFORE, name="three", replicas=3)
    shared = replace(PRODUCTION_NOW, name="shared", replicas=3)
    run = engine.run(old, [PRODUCTION_BEFORE, three, PRODUCTION_NOW, shared], ORDERED, prove=False)
    stamped = dict(run.decisions.group_by("setting").agg(pl.col("success_rate_1").is_not_null().sum()).iter_rows())
    assert stamped["three"] < stamped["production-before"]
    assert stamped["shared"] == stamped["production-now"]


def test_without_any_policy_there_is_nothing_to_decide_with(old: Ledger) -> None:
    """Calls without a recorded policy need one; the error says how to give it."""
    with pytest.raises(ReplayError, match=r"none of the 40 calls has a recorded policy.*--policy"):
        engine.run(old, BOTH)


def test_an_empty_ledger_is_one_error(ledger_of: Any) -> None:
    """Nothing to measure: one paragraph, whatever else is asked."""
    with pytest.raises(ReplayError, match="the mirror holds no attempts"):
        engine.run(ledger_of(), BOTH, ORDERED)


def test_settings_need_names_of_their_own(old: Ledger) -> None:
    """Two settings of one name would be one in every table; none at all is no replay."""
    with pytest.raises(ReplayError, match="two settings are called 'production-now'"):
        engine.run(old, [PRODUCTION_NOW, PRODUCTION_NOW], ORDERED)
    with pytest.raises(ReplayError, match="no settings were given"):
        engine.run(old, [], ORDERED)


def test_attempts_alone_get_what_needs_no_decisions(
    mirror_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`replay run` and `replay compare` on attempts alone: predictions, figures, and what is lacking."""
    mirror = mirror_of(tmp_path / "m.duckdb", attempts=old_rows(200)[1])
    out = tmp_path / "run"
    names = ["-s", "production-now", "-s", "production-before"]
    assert run_cli(["run", str(mirror), *names, "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "no decisions to reproduce" in said
    assert "nothing to audit" in said
    assert "no calls: attempts alone" in said
    record = json.loads((out / "record.json").read_text())
    assert [one["decisions"] for one in record["replayed"]] == [0, 0]
    assert [one["predictions"] for one in record["replayed"]] == [200, 200]
    assert run_cli(["compare", str(out)]) == 0
    assert "attempts alone" in capsys.readouterr().out
    figures = pl.read_parquet(out / "compare" / "figures.parquet")
    of_all = (pl.col("scope") == "all") & (pl.col("question") == "at the attempt") & (pl.col("metric") == "brier")
    assert figures.filter(of_all)["attempts"].min() > 100  # type: ignore[operator]


def test_slices_without_decisions_or_attempts(old: Ledger) -> None:
    """A span with nothing in it gives empty frames, not a crash."""
    run = engine.run(old, BOTH, ORDERED, 1, 2)
    assert (len(run.decisions), len(run.predictions)) == (0, 0)
    assert run.passed


@pytest.mark.parametrize(
    "request_json",
    [
        "{", "[]", "3", '"x"', '{"requirements":[1]}', '{"requirements":{"pin":3}}', '{"seed":"x"}', '{"seed":[1]}',
        '{"seed":Infinity}', '{"credits":3}', '{"credits":{"p":"much"}}', '{"requirements":{"min_context":"x"}}',
        "[" * 100_000, '{"envelope":["nope"]}', '{"envelope":5}',
    ],
)  # fmt: skip
def test_a_request_the_core_refuses_is_counted_and_survived(old: Ledger, request_json: str) -> None:
    """One call whose recorded request is no request (or has a bad envelope) is not decided again; the others are."""
    hit = pl.col("id") == 7
    calls = old.calls.with_columns(request=pl.when(hit).then(pl.lit(request_json)).otherwise("request"))
    run = engine.run(replace(old, calls=calls), [PRODUCTION_NOW], ORDERED, prove=False)
    assert run.replayed[0].undecided == 1
    assert len(run.decisions) == 39
    assert any("1 calls could not be decided again" in warning for warning in run.warnings)


def test_requests_are_inferred_from_the_requested_model(old: Ledger) -> None:
    """family:F and pin:P/F narrow the candidates; a profile or nothing does not."""
    labels = {1: "family:other", 2: "pin:q/m", 3: "pin:z/m", 4: "profile:x", 5: "", 6: "pin:broken"}
    label = pl.col("id").replace_strict(labels, default="family:m", return_dtype=pl.String)
    run = engine.run(replace(old, calls=old.calls.with_columns(requested_model=label)), [PRODUCTION_NOW], ORDERED)
    chosen = dict(zip(run.decisions["call_id"], run.decisions["chosen_route"], strict=True))
    assert [chosen[n] for n in (1, 2, 3, 4, 5, 6)] == [None, "q|m|q", None, "p|m|p", "p|m|p", "p|m|p"]


@pytest.mark.parametrize("key", ["openai", "p|m", "a|b|c|d", "p|m|None", "|||"])
def test_odd_route_keys_are_survived(old: Ledger, key: str) -> None:
    """A route key that is not three parts is a route of its own, never a crash."""
    calls = old.calls.with_columns(route_key=pl.when(pl.col("id") == 3).then(pl.lit(key)).otherwise("route_key"))
    run = engine.run(replace(old, calls=calls), [PRODUCTION_NOW], ORDERED)
    assert run.decisions.filter(pl.col("call_id") == 3)["recorded_route"].to_list() == [key]


def test_calls_that_share_a_usage_event_id_are_survived(small_world: Ledger) -> None:
    """Two calls of one id cannot share attempts: one keeps them, the other is excluded by name."""
    calls = small_world.calls.with_columns(
        usage_event_id=pl.when(pl.col("id") == 11).then(pl.lit("c11")).otherwise("usage_event_id")
    )
    same = calls.filter(pl.col("usage_event_id") == "c11").height
    until_ms = int(small_world.calls.sort("decided_at")["decided_at"][30])
    run = engine.run(replace(small_world, calls=calls), [PRODUCTION_NOW], until_ms=until_ms)
    assert same == 2
    assert run.reproduction.excluded["first attempt not recorded"] >= 1
    assert len(run.decisions) == 30


def test_replicas_without_numbering_still_decide(old: Ledger) -> None:
    """A ledger that names replicas but never numbers anything has decisions all the same."""
    named = replace(old, calls=old.calls.with_columns(replica=pl.lit("a")))
    assert len(engine.run(named, [PRODUCTION_NOW], ORDERED, prove=False).decisions) == 40


def test_a_call_that_ended_before_it_was_decided_is_no_decision(small_world: Ledger) -> None:
    """Where replicas number their decisions, a call without a number never reached one."""
    unnumbered = pl.when(pl.col("id") == 5).then(None).otherwise("replica_seq")
    calls = small_world.calls.with_columns(replica_seq=unnumbered)
    assert len(engine.run(replace(small_world, calls=calls), [PRODUCTION_NOW], prove=False).decisions) == 149


def test_gaps_in_a_replicas_numbering_are_counted_between_its_ends(small_world: Ledger) -> None:
    """Dropped rows leave gaps; rows that retention deleted at the beginning do not."""
    attempts = small_world.attempts.sort("replica_seq")
    middle = attempts.filter(pl.col("replica_seq").is_between(20, 25))["id"]
    gone = engine.run(
        replace(small_world, attempts=attempts.filter(~pl.col("id").is_in(middle))), [PRODUCTION_NOW], prove=False
    )
    assert any(f"{len(middle)} numbers are missing" in warning for warning in gone.warnings)
    late = int(small_world.calls.sort("ts")["ts"][75])
    trimmed = replace(
        small_world,
        attempts=small_world.attempts.filter(pl.col("started_at") >= late * 1000),
        calls=small_world.calls.filter(pl.col("decided_at") >= late * 1000),
    )
    assert not any("missing" in warning for warning in engine.run(trimmed, [PRODUCTION_NOW], prove=False).warnings)


def test_policies_and_settings_that_cannot_be_read(small_world: Ledger) -> None:
    """A policy that is none is one error that names it; settings of another version only exclude their calls."""
    broken = replace(small_world, policies=small_world.policies.with_columns(term=pl.lit("{")))
    with pytest.raises(ReplayError, match=r"the ledger's policy .* cannot be read"):
        engine.run(broken, [PRODUCTION_NOW])
    refused = replace(small_world, policies=small_world.policies.with_columns(term=pl.lit('["nope"]')))
    with pytest.raises(ReplayError, match=r"the ledger's policy .* cannot be read"):
        engine.run(refused, [PRODUCTION_NOW])
    first_ms = int(small_world.calls.sort("decided_at")["decided_at"][0])
    for text in ("{", '{"from":"the future"}', "[]"):
        later = replace(small_world, settings=small_world.settings.with_columns(settings=pl.lit(text)))
        run = engine.run(later, [PRODUCTION_NOW], None, None, first_ms + 400_000)
        assert (
            run.reproduction.incomplete["settings not in the ledger, or unreadable"] == run.reproduction.decisions > 10
        )


def test_a_malformed_snapshot_is_one_error(small_world: Ledger) -> None:
    """A snapshot that is none is refused with what was given; lagged visibility does not need it."""
    calls = small_world.calls.with_columns(evidence_snapshot=pl.lit("then"))
    with pytest.raises(ReplayError, match="evidence_snapshot 'then'"):
        engine.run(replace(small_world, calls=calls), [PRODUCTION_NOW])
