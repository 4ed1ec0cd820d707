from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replay.errors import ReplayError
from replay.ledger.importers import import_file
from replay.ledger.mirror import open_mirror

START = 1_735_689_600  # 2025-01-01T00:00:00Z
MINIMAL: dict[str, Any] = {"request_id": "r1", "startTime": "2025-01-01T00:00:00.000Z", "model": "openai/gpt-4o"}
FULL: dict[str, Any] = {
    "request_id": "r2",
    "call_type": "acompletion",
    "api_key": "hash",
    "startTime": "2025-01-01 00:00:01.250",
    "endTime": "2025-01-01 00:00:03.500",
    "model": "claude-sonnet-4",
    "custom_llm_provider": "anthropic",
    "model_group": "smart",
    "spend": 0.0125,
    "prompt_tokens": 1000,
    "completion_tokens": 50,
    "total_tokens": 1050,
    "cache_hit": "False",
    "user": "ann",
    "session_id": "s",
    "status": "success",
    "metadata": {"usage_object": {"cache_read_input_tokens": 400}},
}


def load(tmp_path: Path, rows: list[dict[str, Any]], table: str, columns: str) -> list[tuple[Any, ...]]:
    """Import spend logs and return columns of one table, ordered by time and call."""
    file = tmp_path / "logs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mirror = tmp_path / "ledger.duckdb"
    import_file(file, mirror, source="litellm")
    name = "usage_event_id" if table == "calls" else "request_id"
    with open_mirror(mirror) as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY ts, {name}").fetchall()


def test_only_three_columns_are_needed(tmp_path: Path) -> None:
    """A log with request_id, startTime and model alone gives a call that ended when it began, without latency."""
    columns = "ts, usage_event_id, provider_id, model_family, served_by, route_key, status, latency_ms, cost_basis"
    (call,) = load(tmp_path, [MINIMAL], "calls", columns)
    assert call == (START, "r1", "openai", "gpt-4o", "openai", "openai|gpt-4o|openai", 200, None, None)


def test_a_full_log_gives_a_call(tmp_path: Path) -> None:
    """Times without offset are UTC; latency is end minus start; spend is computed by the proxy."""
    columns = (
        "ts, session_id, consumer_sha, caller, route_key, served_model_id, requested_model, latency_ms, tokens_in, "
        "tokens_out, tokens_total, tokens_cached, cost_usd, cost_basis"
    )
    (call,) = load(tmp_path, [FULL], "calls", columns)
    route = "anthropic|claude-sonnet-4|anthropic"
    assert call[:8] == (START + 3, "s", "hash", "ann", route, "claude-sonnet-4", "profile:smart", 2250.0)
    assert call[8:] == (1000, 50, 1050, 400, 0.0125, "computed")


def test_a_log_gives_one_linked_attempt(tmp_path: Path) -> None:
    """The attempt names its call and tells when it began and ended, in milliseconds."""
    columns = "ts, started_at, provider_id, model_family, ok, error_kind, request_id, attempt, latency_ms"
    (attempt,) = load(tmp_path, [FULL], "route_observations", columns)
    began = START * 1000 + 1250
    assert attempt == (began + 2250, began, "anthropic", "claude-sonnet-4", True, None, "r2", 1, 2250.0)


@pytest.mark.parametrize(
    ("tokens", "usage", "expected"),
    [
        ((1000, 50, 1050), {"cache_read_input_tokens": 400}, 1000),
        ((100, 50, 150), {"cache_read_input_tokens": 400}, 500),
        ((100, 50, 150), {"cache_read_input_tokens": 400, "cache_creation_input_tokens": 7}, 507),
        ((500, 50, 950), {"cache_read_input_tokens": 400}, 900),
        ((500, 50, 550), {"cache_read_input_tokens": 400, "input_tokens": 500}, 900),
        ((500, 50, 550), {"prompt_tokens_details": {"cached_tokens": 400}}, 500),
        ((500, 50, 550), {}, 500),
    ],
)
def test_tokens_in_includes_the_cached_ones(
    tmp_path: Path, tokens: tuple[int, int, int], usage: dict[str, Any], expected: int
) -> None:
    """Prompt tokens that exclude cached ones are recognised and completed; others stay."""
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    row = {**FULL, **dict(zip(names, tokens, strict=True)), "metadata": json.dumps({"additional_usage_values": usage})}
    ((tokens_in,),) = load(tmp_path, [row], "calls", "tokens_in")
    assert tokens_in == expected


@pytest.mark.parametrize(
    ("information", "kind", "status"),
    [
        ({"error_class": "RateLimitError", "error_code": "429"}, "rate_limit", 429),
        ({"error_class": "ContextWindowExceededError", "error_code": "400"}, "context_overflow", 400),
        ({"error_code": "503"}, "server_error", 503),
        ({"error_code": ""}, "unknown", 500),
        (None, "unknown", 500),
    ],
)
def test_failures_keep_their_kind(tmp_path: Path, information: Any, kind: str, status: int) -> None:
    """A failed log's kind comes from its error class, else its code, else it is unknown."""
    row = {**FULL, "status": "failure", "metadata": {"error_information": information}}
    assert load(tmp_path, [row], "route_observations", "ok, error_kind, http_status") == [(False, kind, status)]


def test_a_cached_answer_is_a_call_without_attempt(tmp_path: Path) -> None:
    """What LiteLLM's own cache answered called no provider."""
    row = {**FULL, "cache_hit": "True"}
    assert load(tmp_path, [row], "route_observations", "id") == []
    with open_mirror(tmp_path / "ledger.duckdb") as connection:
        assert connection.execute("SELECT reason FROM mirror_rejects").fetchall() == [
            ("answered by LiteLLM's cache: no provider was called",)
        ]


def test_a_changed_log_is_refused(tmp_path: Path) -> None:
    """request_id identifies a log: the same one with other values is a contradiction, the same again is not."""
    load(tmp_path, [FULL, FULL], "calls", "id")
    with pytest.raises(ReplayError, match=r"already in the mirror's calls .*cost_usd differ"):
        load(tmp_path, [MINIMAL, {**FULL, "spend": 1}], "calls", "id")


def test_another_file_is_refused(tmp_path: Path) -> None:
    """A file without the three columns is no spend log."""
    with pytest.raises(ReplayError, match=r"lacks startTime \(did you mean start_time\?\)"):
        load(tmp_path, [{"request_id": "r", "start_time": "x", "model": "m"}], "calls", "id")


def test_an_unreadable_time_stops_the_import(tmp_path: Path) -> None:
    """A time that is none names its row and column."""
    with pytest.raises(ReplayError, match=r"row 2 .* column startTime: 'noon'"):
        load(tmp_path, [MINIMAL, {**MINIMAL, "request_id": "r3", "startTime": "noon"}], "calls", "id")
