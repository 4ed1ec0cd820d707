"""LiteLLM spend logs (rows of `LiteLLM_SpendLogs`): each gives a call and, unless a cache answered, one attempt.

Columns vary by version; `request_id`, `startTime` and `model` are needed, anything else is used where it is there and
ignored where it is not one of those named below. What is decided here:

- Times without an offset are UTC, as the proxy stores them. A call ends at `endTime`, else after
  `request_duration_ms`, else at `startTime`, and then its latency is unknown.
- The provider is `custom_llm_provider`, else what stands before the first `/` of the model; the family is the model
  without that prefix. A LiteLLM route is direct, so `served_by` is the provider.
- `tokens_in` includes cached tokens. A row's prompt tokens exclude them if there are more cached than prompt tokens,
  if the total shows it (prompt + completion + cached ≤ total), or if the usage names `input_tokens` (Anthropic's own
  count, which excludes) with the same value; then cache reads and cache writes are added.
- `spend` is computed by the proxy from its price map: `cost_basis` is `computed`.
- A failed row's kind comes from `metadata.error_information`: its class, else its HTTP code, else `unknown`.
- `request_id` identifies a row: a second row with the same one and other values is refused.
"""

from __future__ import annotations

from replay.errors import ReplayError
from replay.ledger.importers.convert import EXPECTED, Cell, as_kind, filled, instant, iso_microseconds
from replay.ledger.importers.plan import Plan, with_nearest

REQUIRED = ("request_id", "startTime", "model")
_KIND_BY_CLASS = (
    ("ContextWindow", "context_overflow"),
    ("ContentPolicy", "content_filter"),
    ("RateLimit", "rate_limit"),
    ("Timeout", "timeout"),
    ("APIConnection", "network_error"),
    ("Authentication", "auth_error"),
    ("PermissionDenied", "auth_error"),
    ("NotFound", "model_unavailable"),
    ("ServiceUnavailable", "server_error"),
    ("InternalServer", "server_error"),
    ("BadGateway", "server_error"),
    ("BudgetExceeded", "payment_required"),
    ("BadRequest", "bad_request"),
    ("UnprocessableEntity", "bad_request"),
)
_KIND_BY_CODE = (
    ("= 429", "rate_limit"),
    ("= 402", "payment_required"),
    ("IN (401, 403)", "auth_error"),
    ("= 404", "model_unavailable"),
    ("IN (408, 504)", "timeout"),
    ("BETWEEN 400 AND 499", "bad_request"),
    (">= 500", "server_error"),
)


class _Log:
    """The SQL of each fact of a spend log, for a file with these columns."""

    def __init__(self, columns: dict[str, str]) -> None:
        self.columns = columns
        metadata = self.text("metadata")
        self.metadata = f"(CASE WHEN json_valid({metadata}) THEN {metadata} END)"

    def text(self, name: str) -> str:
        return filled(self.columns[name]) if name in self.columns else "NULL::VARCHAR"

    def number(self, name: str, kind: str = "bigint") -> str:
        return f"({as_kind(self.text(name), kind)})"

    def time_us(self, name: str) -> str:
        return f"({iso_microseconds(self.text(name), 'UTC')})"

    def inside(self, *paths: str) -> str:
        found = [f"nullif(json_extract_string({self.metadata}, '$.{path}'), '')" for path in paths]
        return f"coalesce({', '.join(found)}, NULL)"

    def usage(self, *names: str) -> str:
        paths = [f"{place}.{name}" for name in names for place in ("usage_object", "additional_usage_values")]
        return f"TRY_CAST({self.inside(*paths)} AS BIGINT)"

    def checked(self, name: str, value: str, read: str, expected: str) -> Cell:
        """Return a cell that is unreadable where the source column holds something that `read` cannot read."""
        return Cell(value, f"({self.text(name)} IS NOT NULL AND {read} IS NULL)", name, expected)


def litellm_plan(columns: dict[str, str], file: str) -> Plan:
    """Return the plan for a file of spend logs; refuse one that lacks what every version has."""
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise ReplayError(
            f"{file} is no LiteLLM spend log: it lacks {', '.join(with_nearest(missing, columns))} and has "
            f"{', '.join(columns)}. Expected at least {', '.join(REQUIRED)}; use a mapping for other files. "
            "Nothing was imported."
        )
    log = _Log(columns)
    shared = _route(log)
    start, end = _times(log)
    latency = f"({end} - {start}) / 1000.0"
    failed = f"(lower(coalesce({log.text('status')}, 'success')) NOT IN ('success', ''))"
    code = f"TRY_CAST({log.inside('error_information.error_code')} AS INTEGER)"
    status = f"CASE WHEN {failed} THEN coalesce({code}, 500) ELSE 200 END"
    request_id = Cell(log.text("request_id"), source="request_id")
    time = "an ISO time"
    ended = "endTime" if "endTime" in columns else "startTime"
    calls = {
        "ts": log.checked(ended, instant(f"coalesce({end}, {start})", "s"), log.time_us(ended), time),
        "usage_event_id": request_id,
        "session_id": Cell(log.text("session_id")),
        "consumer_sha": Cell(log.text("api_key")),
        "caller": Cell(f"coalesce({log.text('user')}, {log.text('end_user')}, {log.text('team_id')})"),
        **shared,
        "served_model_id": Cell(log.text("model")),
        "requested_model": Cell(_requested(log, shared["model_family"].value)),
        "status": Cell(status),
        "error_type": Cell(f"CASE WHEN {failed} THEN {log.inside('error_information.error_class')} END"),
        "latency_ms": Cell(latency),
        **_tokens(log),
        "cost_usd": log.checked(
            "spend", log.number("spend", "double"), log.number("spend", "double"), EXPECTED["double"]
        ),
        "cost_basis": Cell(f"CASE WHEN {log.number('spend', 'double')} IS NOT NULL THEN 'computed' END"),
    }
    attempts = {
        "ts": Cell(instant(f"coalesce({end}, {start})", "ms")),
        **shared,
        "ok": Cell(f"NOT {failed}"),
        "latency_ms": Cell(latency),
        "error_kind": Cell(f"CASE WHEN {failed} THEN {_kind(log, code)} END"),
        "http_status": Cell(status),
        "started_at": log.checked("startTime", instant(start, "ms"), start, time),
        "request_id": request_id,
        "attempt": Cell("1"),
        "candidate_attempt": Cell("1"),
    }
    no_id = ("no request_id", f"{log.text('request_id')} IS NULL")
    no_start = ("no startTime", f"{log.text('startTime')} IS NULL")
    cached = f"coalesce(lower({log.text('cache_hit')}) = 'true', false)"
    answered = ("answered by LiteLLM's cache: no provider was called", cached)
    return Plan(
        "litellm",
        {"calls": calls, "route_observations": attempts},
        identity=(("calls", "usage_event_id"),),
        skipped={"calls": (no_id, no_start), "route_observations": (no_id, no_start, answered)},
    )


def _times(log: _Log) -> tuple[str, str]:
    """Return the start and the end in microseconds; the end is null where the log does not tell it."""
    start = log.time_us("startTime")
    duration = f"TRY_CAST(round({log.number('request_duration_ms', 'double')} * 1000) AS BIGINT)"
    return start, f"coalesce({log.time_us('endTime')}, {start} + {duration})"


def _route(log: _Log) -> dict[str, Cell]:
    model = log.text("model")
    named = log.text("custom_llm_provider")
    provider = f"coalesce({named}, CASE WHEN contains({model}, '/') THEN split_part({model}, '/', 1) END)"
    prefix = f"({provider} || '/')"
    family = f"CASE WHEN starts_with({model}, {prefix}) THEN substr({model}, length({prefix}) + 1) ELSE {model} END"
    return {"provider_id": Cell(provider), "model_family": Cell(family), "served_by": Cell(provider)}


def _requested(log: _Log, family: str) -> str:
    """Return what the client asked for: its model group is a name of the proxy's, unless it is the family itself."""
    group = log.text("model_group")
    is_family = f"({group} = ({family}) OR {group} = {log.text('model')})"
    asked = f"CASE WHEN {is_family} THEN 'family:' || ({family}) ELSE 'profile:' || {group} END"
    return f"CASE WHEN {group} IS NOT NULL THEN {asked} END"


def _tokens(log: _Log) -> dict[str, Cell]:
    prompt, completion = log.number("prompt_tokens"), log.number("completion_tokens")
    total = log.number("total_tokens")
    cached = log.usage("cache_read_input_tokens", "prompt_tokens_details.cached_tokens")
    written = f"coalesce({log.usage('cache_creation_input_tokens')}, 0)"
    excluded = (
        f"coalesce({cached} > 0 AND ({cached} > {prompt} OR {prompt} + coalesce({completion}, 0) + {cached} <= {total} "
        f"OR {log.usage('input_tokens')} = {prompt}), false)"
    )
    tokens_in = f"CASE WHEN {excluded} THEN {prompt} + {cached} + {written} ELSE {prompt} END"
    whole = EXPECTED["bigint"]
    return {
        "tokens_in": log.checked("prompt_tokens", tokens_in, prompt, whole),
        "tokens_out": log.checked("completion_tokens", completion, completion, whole),
        "tokens_cached": Cell(cached),
    }


def _kind(log: _Log, code: str) -> str:
    error = log.inside("error_information.error_class")
    by_class = " ".join(f"WHEN contains({error}, '{part}') THEN '{kind}'" for part, kind in _KIND_BY_CLASS)
    by_code = " ".join(f"WHEN {code} {test} THEN '{kind}'" for test, kind in _KIND_BY_CODE)
    return f"CASE {by_class} {by_code} ELSE 'unknown' END"
