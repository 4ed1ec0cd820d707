"""What probably turned a decision, from its two rows alone: the first thing it rests on that moved.

The baseline's code cannot be run again, so parts cannot be exchanged as `replay.causes` does; but a decision's row
holds what it rested on, and nothing downstream moves unless something upstream did.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.decisions import TOP

_STAMPS = ("success_rate", "latency_ms", "tools", "price_in", "price_out")
_STAMP_OF = {
    "success_rate": "reliability evidence",
    "latency_ms": "latency evidence",
    "tools": "tools evidence",
    "price_in": "prices",
    "price_out": "prices",
}
_REASONS = {
    "breaker_open": "breakers",
    "missing_capability:tools": "tools evidence",
    "cmp:success_rate": "reliability evidence",
    "cmp:latency_ms": "latency evidence",
    "cmp:price": "prices",
}
UNSEEN = "scoring, or routes beyond the first three"


@dataclass(frozen=True)
class Likely:
    """A cause: its label, by which decisions are counted, and in a sentence what it shows in.

    `route` is the route that is stamped otherwise, where that is the cause.
    """

    label: str
    said: str
    route: str = ""


def likely(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> Likely:
    """Return the likely cause of a difference between two rows of decisions (None: there is no such row).

    >>> row = {"route_1": "p|m|p", "success_rate_1": 0.5}
    >>> likely(row, {**row, "success_rate_1": 0.6})
    Likely(label='reliability evidence', said='p|m|p is stamped success_rate 0.6, not 0.5', route='p|m|p')
    """
    if before is None or now is None:
        missing = "there is no such row in the baseline" if before is None else "the decision is not made any more"
        return Likely("selection of decisions", f"{missing}: which calls are decided has changed")
    for find in (_asked, _offered, _stamped, _in_process, _filtered, _ordered):
        found = find(before, now)
        if found is not None:
            return found
    return Likely("other", "only columns outside the choice differ")


def _asked(before: Mapping[str, Any], now: Mapping[str, Any]) -> Likely | None:
    """When it was decided, by which policy, for what request."""
    for label, names in (
        ("instants", ("decided_ms", "evidence_ms")),
        ("policy", ("policy_id",)),
        ("reading of the request", ("request_class",)),
        ("reading of the record", ("recorded_route", "recorded_first_route")),
    ):
        for name in names:
            if before.get(name) != now.get(name):
                return Likely(label, f"{name} is {now.get(name)}, not {before.get(name)}")
    return None


def _offered(before: Mapping[str, Any], now: Mapping[str, Any]) -> Likely | None:
    if before.get("candidates") == now.get("candidates"):
        return None
    return Likely("candidates", f"{now.get('candidates')} candidates were on offer, not {before.get('candidates')}")


def _stamped(before: Mapping[str, Any], now: Mapping[str, Any]) -> Likely | None:
    """Stamps of the routes that both rows show, wherever they stand."""
    seen_before, seen_now = _seen(before), _seen(now)
    labels: dict[str, str] = {}
    first = ""
    for name in _STAMPS:
        for route in seen_before:
            if name not in seen_before[route] or name not in seen_now.get(route, {}):
                continue  # of the recorded route a row knows less than of the first three
            was, is_now = seen_before[route][name], seen_now[route][name]
            if was != is_now and not _rounding(was, is_now):
                first = first or route
                labels.setdefault(_STAMP_OF[name], f"{route} is stamped {name} {_written(is_now)}, not {_written(was)}")
    if not labels:
        return None
    return Likely(_listed(labels), "; ".join(labels.values()), first)


def _seen(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a row knows of each route it names: the first three and the recorded one."""
    seen: dict[str, dict[str, Any]] = {}
    actual = row.get("recorded_first_route") or row.get("recorded_route")
    if actual is not None:
        seen[actual] = {name: row[f"recorded_{name}"] for name in _STAMPS if f"recorded_{name}" in row}
    for place in TOP:
        if row.get(f"route_{place}") is not None:
            seen[row[f"route_{place}"]] = {name: row.get(f"{name}_{place}") for name in ("score", *_STAMPS)}
    return seen


def _first_three(row: Mapping[str, Any]) -> set[str]:
    return {row[f"route_{place}"] for place in TOP if row.get(f"route_{place}") is not None}


def _rounding(was: Any, is_now: Any) -> bool:
    both = isinstance(was, float) and isinstance(is_now, float)
    return both and abs(was - is_now) <= 1e-12 * max(1.0, abs(was))


def _written(value: Any) -> str:
    return "nothing" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value).lower()


def _in_process(before: Mapping[str, Any], now: Mapping[str, Any]) -> Likely | None:
    """What the process knew by itself."""
    for name, label in (("open_breakers", "breakers"), ("disabled_providers", "disabled providers")):
        was, is_now = before.get(name), now.get(name)
        if was != is_now:
            said = f"its process knew of {name.replace('_', ' ')}: {is_now or 'none'}, not {was or 'none'}"
            return Likely(label, said)
    return None


def _filtered(before: Mapping[str, Any], now: Mapping[str, Any]) -> Likely | None:
    """How many candidates were rejected, and why."""
    one, other = _reject_counts(before), _reject_counts(now)
    moved = {reason: (one.get(reason, 0), other.get(reason, 0)) for reason in sorted({*one, *other})}
    moved = {reason: counts for reason, counts in moved.items() if counts[0] != counts[1]}
    if not moved:
        return None
    said = "; ".join(f"{reason} rejects {after:,}, not {first:,}" for reason, (first, after) in moved.items())
    labels = [next((label for start, label in _REASONS.items() if start in reason), "filter") for reason in moved]
    same_left = before.get("order_hash") == now.get("order_hash") and sum(one.values()) == sum(other.values())
    if same_left and "filter" in labels:
        return Likely("evaluation of the filter", f"{said}; the same candidates are left, with the same scores")
    gone = sorted(_first_three(before) - _first_three(now))
    if gone and sum(one.values()) < sum(other.values()):
        said += f"; {' and '.join(gone)} stood among the first three before"
    return Likely(_listed(labels), said)


def _reject_counts(row: Mapping[str, Any]) -> dict[str, int]:
    """Return how many candidates each reason rejected; of a damaged row, nothing."""
    try:
        counts = json.loads(row.get("reject_counts") or "{}")
    except ValueError:
        return {}
    return {reason: n for reason, n in counts.items() if type(n) is int} if isinstance(counts, dict) else {}


def _listed(labels: Iterable[str]) -> str:
    """Join labels, each once: "a", "a and b", "a, b and c"."""
    once = list(dict.fromkeys(labels))
    return " and ".join([", ".join(once[:-1]), once[-1]] if once[1:] else once)


def _ordered(before: Mapping[str, Any], now: Mapping[str, Any]) -> Likely | None:
    """The same stamps and filter: the score, the order, or who may be called."""
    seen_before, seen_now = _seen(before), _seen(now)
    places = [f"route_{place}" for place in TOP]
    in_order = all(before.get(name) == now.get(name) for name in places)
    for route in seen_before:
        was, is_now = seen_before[route].get("score"), seen_now.get(route, {}).get("score")
        if route in seen_now and was != is_now and not _rounding(was, is_now) and None not in (was, is_now):
            said = f"{route} scores {is_now:.6g}, not {was:.6g}, on the same stamps"
            return Likely(UNSEEN, f"{said}: the scoring changed, or what is known of a route beyond the first three")
    if not in_order:
        first = next(name for name in places if before.get(name) != now.get(name))
        scores = [row.get(first.replace("route", "score")) for row in (before, now)]
        tied = scores[0] == scores[1] or _rounding(*scores)
        said = f"{first} is {now.get(first)}, not {before.get(first)}, on the same scores"
        return Likely("order of ties", said) if tied else Likely(UNSEEN, said)
    if before.get("chosen_route") != now.get("chosen_route"):
        said = f"the order is the same, but {now.get('chosen_route')} is called, not {before.get('chosen_route')}"
        return Likely("disabled providers", said)
    if before.get("order_hash") != now.get("order_hash"):
        return Likely(UNSEEN, "the first three agree; the order or a score beyond them, or a score's last bits, differ")
    return None
