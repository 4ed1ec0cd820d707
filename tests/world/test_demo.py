"""The demo's week: deterministic, complete, and reproducible from its own rows alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import pytest

from replay import queries, week
from replay.calls import Offer
from replay.core import Health, Request, State, plan
from replay.demo import DemoSummary, record_demo
from replay.errors import ReplayError
from replay.ledger.mirror import open_mirror
from replay.ledger.rows import AttemptRow, CallRow
from replay.settings import PRODUCTION_NOW
from replay.stamps import Evidence, RouteStat, stamp
from replay.world import simulate

HASH_OF_A_SLICE = """
import hashlib
from dataclasses import replace
from replay import week
from replay.settings import PRODUCTION_NOW
from replay.world import simulate
scenario = week.scenario(7)
scenario = replace(scenario, arrivals=scenario.arrivals[:400])
rows = simulate(scenario, 7, PRODUCTION_NOW, week.policies()["balanced"]).rows()
print(hashlib.sha256(repr(rows).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoSummary]:
    """The whole week in a mirror, and its summary."""
    path = tmp_path_factory.mktemp("demo") / "demo.duckdb"
    return path, record_demo(path)


@pytest.fixture
def mirror(recorded: tuple[Path, DemoSummary]) -> Iterator[duckdb.DuckDBPyConnection]:
    """The recorded week, open for reading."""
    with open_mirror(recorded[0]) as connection:
        yield connection


def one(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """The single value that a statement gives."""
    return connection.execute(sql).fetchall()[0][0]


def test_the_same_seed_gives_the_same_rows_under_any_hash_seed() -> None:
    """Two processes with different PYTHONHASHSEED record the same, to the last digit."""
    hashes = {
        subprocess.run(
            [sys.executable, "-c", HASH_OF_A_SLICE],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "4242")
    }
    assert len(hashes) == 1


def test_every_decision_follows_from_the_recorded_rows_alone() -> None:
    """Brute force over 1,300 calls of Wednesday and Thursday, the restart among them.

    Stamps from the rows that each snapshot saw, breakers from each replica's numbering, then the core: the plan's
    first candidate that is not disabled is the recorded first attempt, every time.
    """
    scenario = week.scenario(7)
    scenario = replace(scenario, arrivals=scenario.arrivals[2800:4100])
    calls, attempts = simulate(scenario, 7, PRODUCTION_NOW, week.policies()["balanced"]).rows()
    by_identity = {policy.identity: policy for policy in week.policies().values()}
    policy_of = {call.usage_event_id: by_identity[call.policy_id or ""] for call in calls}
    first = {row.request_id: row.route_key for row in attempts if row.attempt == 1}
    health: dict[str | None, Health] = defaultdict(Health)
    wrong, condemned, tripped, out = [], 0, 0, 0
    for row in sorted([*calls, *attempts], key=lambda row: (row.replica or "", row.replica_seq or 0)):
        mine = health[row.replica]
        if isinstance(row, AttemptRow):
            action = policy_of[row.request_id].action(row.error_kind)
            mine.observe(row.provider_id or "", row.ok, row.error_kind, action, row.ts)
            continue
        assert row.decided_at is not None
        offers = [Offer.from_row(offer).candidate for offer in scenario.offers if offer.valid_at(row.decided_at)]
        seen = json.loads(row.request or "")
        evidence = brute_force(row, attempts)
        candidates = stamp(offers, evidence, seen.get("hot_route"))
        open_breakers, disabled = mine.rank(row.decided_at)
        condemned += bool(evidence.tool_incapable)
        tripped += bool(open_breakers)
        out += bool(disabled)
        state = State(open_breakers, disabled, seen.get("credits", {}))
        order = plan(policy_of[row.usage_event_id], candidates, Request.from_record(seen), state, seen["seed"]).ordered
        chosen = [candidates[place].route_key for place in order if candidates[place].provider_id not in disabled]
        if chosen[:1] != [first.get(row.usage_event_id)]:
            wrong.append(row.usage_event_id)
    assert wrong == []
    assert condemned > 20  # the comparison saw condemned routes, open breakers, disabled providers and a restart
    assert tripped > 0
    assert out > 0
    assert len(health) == 3


def brute_force(call: CallRow, attempts: tuple[AttemptRow, ...]) -> Evidence:
    """What a decision read: system.md's definitions over the rows its snapshot saw, in exact arithmetic."""
    assert call.evidence_at is not None
    before = int((call.evidence_snapshot or "").split(":")[0])
    visible = [row for row in attempts if (row.txid or 0) < before]
    stats = {}
    groups: dict[str, list[AttemptRow]] = defaultdict(list)
    tools: dict[str, list[AttemptRow]] = defaultdict(list)
    for row in visible:
        if row.ts >= call.evidence_at - 900_000:
            groups[row.route_key].append(row)
        if row.ts >= call.evidence_at - 1_800_000:
            tools[row.route_key].append(row)
    for route_key, rows in groups.items():
        latencies = [Fraction(row.latency_ms) for row in rows if row.ok and row.latency_ms is not None]
        latency_ms = round(sum(latencies) / len(latencies)) if latencies else None
        stats[route_key] = RouteStat(sum(row.ok for row in rows) / len(rows), latency_ms, len(rows), len(latencies))
    incapable = {
        route_key
        for route_key, rows in tools.items()
        if sum(bool(row.tools_requested) for row in rows) >= 20 and not any(row.tool_calls_emitted for row in rows)
    }
    return Evidence(call.evidence_at, stats, frozenset(incapable))


def test_the_mirror_holds_what_the_summary_says(
    recorded: tuple[Path, DemoSummary], mirror: duckdb.DuckDBPyConnection
) -> None:
    """Counts agree, ids run from 1 without gaps, and the week is as large as promised."""
    summary = recorded[1]
    for table, expected in (("calls", summary.calls), ("route_observations", summary.attempts)):
        assert one(mirror, f"SELECT count(*) FROM {table}") == expected
        assert one(mirror, f"SELECT min(id) = 1 AND max(id) = count(*) FROM {table}")
    assert 6_000 <= summary.calls <= 8_000
    assert one(mirror, "SELECT count(*) FROM calls WHERE status = 200") == summary.calls_ok
    assert one(mirror, "SELECT count(DISTINCT replica) FROM calls") == len(summary.replicas) == 3
    assert one(mirror, "SELECT count(*) FROM offer_history") == summary.offers == 22
    assert one(mirror, "SELECT count(*) FROM policies") == 3
    assert one(mirror, "SELECT settings_id FROM settings") == PRODUCTION_NOW.identity


def test_every_attempt_belongs_to_a_call_and_numbers_run_without_gaps(mirror: duckdb.DuckDBPyConnection) -> None:
    """Attempts count 1, 2, … in each call; decisions and attempt ends count 1, 2, … in each replica."""
    assert one(mirror, "SELECT count(*) FROM calls WHERE usage_event_id IS NULL OR evidence_state <> 'ok'") == 0
    orphans = "SELECT count(*) FROM route_observations ANTI JOIN calls ON request_id = usage_event_id"
    assert one(mirror, orphans) == 0
    assert one(
        mirror,
        "SELECT bool_and(top = n AND n = d) FROM (SELECT max(attempt) AS top, count(*) AS n, count(DISTINCT attempt) "
        "AS d FROM route_observations GROUP BY request_id)",
    )
    assert one(
        mirror,
        "SELECT bool_and(top = n AND n = d) FROM (SELECT max(replica_seq) AS top, count(*) AS n, count(DISTINCT "
        "replica_seq) AS d FROM (SELECT replica, replica_seq FROM calls UNION ALL SELECT replica, replica_seq FROM "
        "route_observations) GROUP BY replica)",
    )


def test_the_silent_route_is_condemned_now_and_then_and_no_other_is(mirror: duckdb.DuckDBPyConnection) -> None:
    """The shared SQL, asked every ten minutes, never condemns a route that does call tools."""
    query = queries.load("tool_incapable_routes")
    condemned = set()
    for at_ms in range(week.START_MS, week.END_MS, 10 * week.MINUTE_MS):
        values = query.bind(since_ms=at_ms - 1_800_000, until_ms=at_ms, min_samples=20)
        condemned |= {tuple(row[:3]) for row in mirror.execute(query.text, values).fetchall()}
    assert condemned == {tuple(week.SILENT_ROUTE.split("|"))}


def test_openrouter_s_reported_cost_is_a_fifth_above_list(mirror: duckdb.DuckDBPyConnection) -> None:
    """By hand from tokens and list prices; the other providers' computed costs lie on the list price."""
    rows = mirror.execute(
        "SELECT provider_id, cost_basis, sum(cost_usd) / sum(((tokens_in - tokens_cached) * o.price_in + tokens_cached "
        "* coalesce(o.price_cached_in, o.price_in / 10) + tokens_out * o.price_out) / 1e6), count(*) "
        "FROM calls JOIN offer_history AS o USING (provider_id, model_family) "
        "WHERE status = 200 AND coalesce(o.peer_id, provider_id) = served_by AND decided_at >= o.valid_from "
        "AND (o.valid_to IS NULL OR decided_at < o.valid_to) GROUP BY ALL ORDER BY 1"
    ).fetchall()
    found = {(provider, basis): ratio for provider, basis, ratio, _ in rows}
    assert found == {
        ("antseed", "computed"): pytest.approx(1.0, abs=1e-9),
        ("bedrock", "computed"): pytest.approx(1.0, abs=1e-9),
        ("northlight", "computed"): pytest.approx(1.0, abs=1e-9),
        ("openai_codex", "subscription"): 0.0,
        ("openrouter", "reported"): pytest.approx(1.2, abs=1e-4),  # eight decimals in each figure
    }
    assert sum(count for *_, count in rows) == one(mirror, "SELECT count(*) FROM calls WHERE status = 200")


def test_the_week_shows_what_a_replay_needs(
    recorded: tuple[Path, DemoSummary], mirror: duckdb.DuckDBPyConnection
) -> None:
    """Fallbacks, retries, sessions with cached tokens, profiles, pins, late commits and cancelled calls all occur."""
    assert recorded[1].calls_fallen_back > 100
    assert recorded[1].calls_cancelled > 10
    assert one(mirror, "SELECT count(*) FROM route_observations WHERE candidate_attempt > 1") > 20
    assert one(mirror, "SELECT count(*) FROM calls WHERE tokens_cached > 0") > 1_000
    kinds = "SELECT count(DISTINCT split_part(requested_model, ':', 1)) FROM calls"
    assert one(mirror, kinds) == 4  # "", family, pin, profile
    late = "SELECT count(*) FROM (SELECT ts < lag(ts) OVER (ORDER BY id) AS late FROM route_observations) WHERE late"
    assert one(mirror, late) > 20
    changes = "SELECT count(*) FROM (SELECT position FROM offer_history GROUP BY position HAVING count(*) > 1)"
    assert one(mirror, changes) == 1
    assert one(mirror, "SELECT count(*) FROM route_observations WHERE served_by = 'peer-dune'") > 20


def test_a_demo_is_not_mixed_into_a_ledger(recorded: tuple[Path, DemoSummary]) -> None:
    """A mirror that holds calls is refused and left as it is."""
    before = hashlib.sha256(recorded[0].read_bytes()).hexdigest()
    with pytest.raises(ReplayError, match="already holds"):
        record_demo(recorded[0])
    assert hashlib.sha256(recorded[0].read_bytes()).hexdigest() == before


def test_progress_counts_every_call_once() -> None:
    """The callback ends at (n, n)."""
    scenario = replace(week.scenario(7), arrivals=week.scenario(7).arrivals[:20])
    heard: list[tuple[int, int]] = []
    simulate(scenario, 7, PRODUCTION_NOW, week.policies()["balanced"], lambda done, total: heard.append((done, total)))
    assert heard == [(n, 20) for n in range(1, 21)]
