"""The real files beside the checkout, against numbers worked out with the csv module alone."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from absent import shared

from replay.errors import ReplayError
from replay.ledger.importers import import_file, read_mapped
from replay.ledger.lacks import lacks
from replay.ledger.mirror import open_mirror


def source_rows(name: str) -> list[dict[str, str]]:
    """Return a file's rows as the csv module reads them."""
    with gzip.open(shared(f"data/{name}"), "rt", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def aider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror with the whole of aider_calls."""
    mirror = tmp_path_factory.mktemp("aider") / "ledger.duckdb"
    import_file(shared("data/aider_calls.csv.gz"), mirror, source="aider_calls")
    return mirror


def test_every_aider_call_is_there(aider: Path) -> None:
    """All 6,591 calls, with their end in seconds, tokens, cost and status, as a multiset."""
    expected = Counter(
        (
            int(datetime.fromisoformat(row["ts_utc"]).timestamp()) + int(row["latency_s"] or 0),
            row["session"],
            int(row["tokens_in"]) if row["tokens_in"] else None,
            float(row["cost_usd"]) if row["cost_usd"] else None,
            {"ok": 200, "exception": 500, "no_completion": 499}[row["status"]],
        )
        for row in source_rows("aider_calls.csv.gz")
    )
    with open_mirror(aider) as connection:
        found = connection.execute("SELECT ts, session_id, tokens_in, cost_usd, status FROM calls").fetchall()
    assert len(found) == 6_591
    assert Counter(found) == expected


def test_aider_attempts_without_route_are_set_aside(aider: Path) -> None:
    """Each call with a provider or model yields one attempt linked to it; the 535 others are kept as rejects."""
    rows = source_rows("aider_calls.csv.gz")
    routed = [row for row in rows if row["provider"] not in ("", "?") or row["model"] not in ("", "None")]
    expected = Counter((row["provider"], row["model"], row["status"] == "ok") for row in routed)
    with open_mirror(aider) as connection:
        found = connection.execute(
            "SELECT o.provider_id, o.model_family, ok FROM route_observations o "
            "JOIN calls ON request_id = usage_event_id"
        ).fetchall()
        rejects = connection.execute("SELECT count(*), min(reason), max(reason) FROM mirror_rejects").fetchone()
    assert Counter(found) == expected
    reason = "no route (neither provider_id nor model_family)"
    assert rejects == (len(rows) - len(routed), reason, reason) == (535, reason, reason)


def test_what_aider_lacks_is_said(aider: Path) -> None:
    """A replay is told what it must infer, with counts."""
    with open_mirror(aider) as connection:
        said = lacks(connection)
    unknown = sum(not row["latency_s"] for row in source_rows("aider_calls.csv.gz") if row["status"] == "ok")
    for part in (
        "all 6,591 calls lack decided_at",
        "every latency is a whole number of seconds",
        "no offer_history",
        "none of 5,563 known costs is reported",
    ):
        assert any(part in sentence for sentence in said), part
    assert unknown == 1_035


def test_coding_sessions_are_imported_whole(tmp_path: Path) -> None:
    """All 46,218 requests with their ends, sums of tokens, and tool calls, on the declared origin."""
    rows = source_rows("coding_sessions.csv.gz")
    mirror = tmp_path / "ledger.duckdb"
    report = import_file(shared("data/coding_sessions.csv.gz"), mirror, source="coding_sessions")
    assert [(target.added, target.rejected) for target in report.targets] == [(46_218, 0)] * 2
    with open_mirror(mirror) as connection:
        sums = connection.execute(
            "SELECT sum(tokens_in)::BIGINT, sum(tokens_out)::BIGINT, sum(tokens_cached)::BIGINT FROM calls"
        ).fetchone()
        attempts = connection.execute(
            "SELECT sum(ts - 1735689600000)::BIGINT, sum(tool_calls_emitted::INT)::BIGINT, count(latency_ms) "
            "FROM route_observations"
        ).fetchone()
    names = ("tokens_in", "tokens_out", "cached_prefix_tokens")
    assert sums == tuple(sum(int(row[name]) for row in rows) for name in names)
    ends = [round(float(row["t_s"]) * 1e3) + round(float(row["api_time_s"] or 0) * 1e3) for row in rows]
    emitted = sum(row["tool_use"] == "1" for row in rows)
    assert attempts == (sum(ends), emitted, sum(bool(row["api_time_s"]) for row in rows))


def test_price_events_keep_their_offsets(tmp_path: Path) -> None:
    """All 5,959 events: +10:00 is read as such, prices are per million, -1 is no price."""
    rows = source_rows("openrouter_price_events.csv.gz")
    frame, rejects = read_mapped(
        shared("data/openrouter_price_events.csv.gz"), "openrouter_price_events", "price_events"
    )
    assert rejects == []
    expected = Counter((round(datetime.fromisoformat(row["ts"]).timestamp() * 1e3), row["model"]) for row in rows)
    assert Counter(frame.select("ts_ms", "model").rows()) == expected
    prices = [float(row["prompt_usd_per_tok"]) for row in rows if row["prompt_usd_per_tok"]]
    known = [price for price in prices if price >= 0]
    assert frame["price_in"].count() == len(known)
    assert frame["price_in"].sum() == pytest.approx(sum(known) * 1e6, rel=1e-12)


def test_llmperf_is_refused_for_want_of_times(tmp_path: Path) -> None:
    """A file without timestamps is told that ts is missing, as a table and through a mapping alike."""
    mirror = tmp_path / "ledger.duckdb"
    with pytest.raises(ReplayError, match=r"Missing: ts \(milliseconds, when the attempt ended\)"):
        import_file(shared("data/llmperf_attempts.csv"), mirror, source="route_observations")
    mapping = tmp_path / "llmperf.toml"
    mapping.write_text('[route_observations]\nprovider_id = "provider"\nok = { column = "error_code", map = {} }\n')
    with pytest.raises(ReplayError, match="is given no ts"):
        import_file(shared("data/llmperf_attempts.csv"), mirror, source=mapping)
    assert not mirror.exists()
