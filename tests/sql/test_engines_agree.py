"""Random ledgers: every query says the same on PostgreSQL and on DuckDB, and what plain Python says."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay import queries

EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

part = st.sampled_from([None, "", "p", "P", "é", "a|b", "pp", "𝔭", " "])
flag = st.sampled_from([None, False, True])
latency_ms = st.one_of(
    st.none(),
    st.integers(0, 9).map(lambda halves: halves / 2),
    st.floats(0, 1e7, allow_nan=False),
    st.sampled_from([math.inf, math.nan, 1e300, 5e-324]),
)
cost_usd = st.one_of(
    st.none(),
    st.integers(0, 20).map(lambda halves: halves * 5e-7),
    st.floats(-10, 1e5, allow_nan=False),
    st.sampled_from([math.inf, -math.inf, math.nan, 1e6, 999_999.9999995]),
)
tokens = st.one_of(st.none(), st.integers(0, 10**12))
instant = st.integers(0, 12)
session = st.sampled_from([None, "", "s", "S", "t"])


def _numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # Ids against the order of insertion, so that no answer can rest on the latter.
    return [{**row, "id": 1000 - 7 * number} for number, row in enumerate(rows)]


attempts = st.lists(
    st.fixed_dictionaries(
        {
            "ts": instant,
            "provider_id": part,
            "model_family": part,
            "served_by": part,
            "ok": st.booleans(),
            "latency_ms": latency_ms,
            "tools_requested": flag,
            "tool_calls_emitted": flag,
        }
    ),
    max_size=25,
).map(_numbered)
calls = st.lists(
    st.fixed_dictionaries(
        {
            "ts": instant,
            "session_id": session,
            "caller": part,
            "provider_id": part,
            "model_family": part,
            "served_by": part,
            "status": st.sampled_from([None, 200, 399, 400, 503]),
            "tokens_in": tokens,
            "tokens_out": tokens,
            "tokens_cached": tokens,
            "cost_usd": cost_usd,
            "cost_basis": st.sampled_from([None, "reported", "computed", "Reported"]),
        }
    ),
    max_size=25,
).map(_numbered)
offers = st.lists(
    st.fixed_dictionaries(
        {
            "valid_from": instant,
            "valid_to": st.one_of(st.none(), instant),
            "position": st.integers(0, 2),
            "provider_id": part,
            "peer_id": part,
            "price_in": latency_ms,
            "has_tee": flag,
        }
    ),
    max_size=10,
).map(_numbered)


@EXAMPLES
@given(st.data())
def test_every_query_says_the_same_in_both_engines(engines: Any, data: st.DataObject) -> None:
    """On any ledger, for any window, session and instant; `run` compares columns, order, types and values."""
    ledger = {"route_observations": data.draw(attempts), "calls": data.draw(calls), "offer_history": data.draw(offers)}
    since, until = data.draw(instant), data.draw(instant)
    values = {
        "since_ms": since,
        "until_ms": until,
        "since_s": since,
        "until_s": until,
        "at_ms": since,
        "min_samples": data.draw(st.integers(0, 3)),
        "session_id": data.draw(st.sampled_from(["s", "S", "t", ""])),
    }
    with engines.holding(ledger):
        for name in queries.names():
            parameters = queries.load(name).parameters
            engines.run(name, **{parameter: values[parameter] for parameter in parameters})


@EXAMPLES
@given(attempts, instant, instant)
def test_route_stats_and_the_tool_verdict_are_what_plain_python_says(
    engines: Any, rows: list[dict[str, Any]], since_ms: int, until_ms: int
) -> None:
    """Counts, rates and verdicts exactly; means against exact fractions."""
    routes: dict[tuple[bytes, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if since_ms <= row["ts"] < until_ms:
            key = tuple((row[name] or "").encode() for name in ("provider_id", "model_family", "served_by"))
            routes.setdefault(key, []).append(row)
    with engines.holding({"route_observations": rows}):
        stats = engines.run("route_stats", since_ms=since_ms, until_ms=until_ms)
        condemned = engines.run("tool_incapable_routes", since_ms=since_ms, until_ms=until_ms, min_samples=2)
    assert [_key(row) for row in stats] == sorted(routes)
    for row in stats:
        _check_route(row, routes[_key(row)])
    assert [_key(row) for row in condemned] == [key for key in sorted(routes) if _ignores_tools(routes[key])]


def _key(row: dict[str, Any]) -> tuple[bytes, ...]:
    return tuple(row[name].encode() for name in ("provider_id", "model_family", "served_by"))


def _ignores_tools(rows: list[dict[str, Any]]) -> bool:
    asked = sum(row["tools_requested"] is True for row in rows)
    return asked >= 2 and not any(row["tool_calls_emitted"] for row in rows)


def _check_route(row: dict[str, Any], seen: list[dict[str, Any]]) -> None:
    good = [attempt["latency_ms"] for attempt in seen if attempt["ok"]]
    known = [value for value in good if value is not None]
    assert (row["count"], row["ok_count"], row["latency_count"]) == (len(seen), len(good), len(known))
    assert row["success_rate"] == len(good) / len(seen)
    if not known:
        assert (row["latency_mean_ms"], row["latency_ms"]) == (None, None)
    elif all(math.isfinite(value) for value in known):
        mean = sum(map(Fraction, known)) / len(known)
        assert math.isclose(row["latency_mean_ms"], mean, rel_tol=1e-12, abs_tol=5e-324)
        if mean >= 2**52:
            assert row["latency_ms"] is None
        elif mean % 1 == Fraction(1, 2) or abs(mean % 1 - Fraction(1, 2)) > Fraction(1, 10**6):
            assert row["latency_ms"] == round(mean)
    else:
        assert row["latency_ms"] is None
        assert not math.isfinite(row["latency_mean_ms"])
