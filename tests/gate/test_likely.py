"""The likely cause of a difference, from two rows of decisions."""

from __future__ import annotations

from typing import Any

import pytest

from replay.gate.likely import UNSEEN, likely

ROW: dict[str, Any] = {
    "decided_ms": 1,
    "evidence_ms": 1,
    "policy_id": "a",
    "request_class": "plain",
    "recorded_route": "x",
    "recorded_first_route": "x",
    "chosen_route": "p",
    "candidates": 5,
    "rejected": 1,
    "reject_counts": '{"min_context": 1}',
    "open_breakers": "",
    "disabled_providers": "p,q",
    "margin": 0.25,
    **{f"route_{place}": route for place, route in ((1, "p"), (2, "q"), (3, "r"))},
    **{f"score_{place}": score for place, score in ((1, 1.0), (2, 0.75), (3, 0.75))},
    **{f"{name}_{place}": 0.5 for name in ("success_rate", "latency_ms") for place in (1, 2, 3)},
    **{f"{name}_{place}": 0.5 for name in ("price_in", "price_out") for place in (1, 2, 3)},
    **{f"tools_{place}": True for place in (1, 2, 3)},
    "recorded_success_rate": 0.5,
    "recorded_latency_ms": 100.0,
    "order_hash": 7,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"evidence_ms": 2, "success_rate_1": 0.1}, "instants"),
        ({"policy_id": "b", "score_1": 2.0}, "policy"),
        ({"request_class": "tools"}, "reading of the request"),
        ({"recorded_first_route": "y"}, "reading of the record"),
        ({"candidates": 6, "score_1": 2.0}, "candidates"),
        ({"success_rate_2": 0.4, "score_2": 0.6}, "reliability evidence"),
        ({"latency_ms_3": 400.0, "score_3": 0.6}, "latency evidence"),
        ({"success_rate_2": 0.4, "latency_ms_2": None}, "reliability evidence and latency evidence"),
        ({"recorded_latency_ms": 101.0}, "latency evidence"),
        ({"tools_1": False}, "tools evidence"),
        ({"price_in_1": 0.6, "price_out_1": 0.7}, "prices"),
        ({"open_breakers": "q", "reject_counts": "{}"}, "breakers"),
        ({"disabled_providers": "p", "chosen_route": "q"}, "disabled providers"),
        ({"reject_counts": '{"breaker_open": 1, "min_context": 1}'}, "breakers"),
        ({"reject_counts": '{"missing_capability:tools": 1, "min_context": 1}'}, "tools evidence"),
        ({"reject_counts": '{"cmp:success_rate:ge": 1, "min_context": 1}'}, "reliability evidence"),
        ({"reject_counts": "{}"}, "filter"),
        ({"reject_counts": '{"not": 1}'}, "evaluation of the filter"),
        ({"reject_counts": '{"not": 1}', "order_hash": 8}, "filter"),
        ({"reject_counts": "[damaged"}, "filter"),
        ({"score_2": 0.7}, UNSEEN),
        ({"route_2": "r", "route_3": "q"}, "order of ties"),
        ({"chosen_route": "q"}, "disabled providers"),
        ({"order_hash": 8}, UNSEEN),
        ({"label": "bounded"}, "other"),
    ],
)
def test_the_first_thing_upstream_that_moved(change: dict[str, Any], label: str) -> None:
    """A stamp comes before the score it makes, the policy before both."""
    assert likely(ROW, {**ROW, **change}).label == label


def test_stamps_are_held_by_route_not_by_place() -> None:
    """Two routes that changed places with their own stamps have no other stamps."""
    swapped = {**ROW, **{name.replace("_1", "_2"): ROW[name] for name in ROW if name.endswith("_1")}}
    swapped |= {name.replace("_2", "_1"): ROW[name] for name in ROW if name.endswith("_2")}
    assert (
        likely({**ROW, "success_rate_1": 0.9}, {**swapped, "success_rate_2": 0.9, "chosen_route": "q"}).label == UNSEEN
    )


def test_what_only_one_row_knows_of_a_route_is_no_cause() -> None:
    """A recorded route that left the first three has no price there; what rejected it is the cause."""
    before = {**ROW, "recorded_first_route": "p"}
    now = {
        **before,
        "route_1": "s",
        "chosen_route": "s",
        "reject_counts": '{"missing_capability:tools": 1}',
        "order_hash": 8,
    }
    now["recorded_latency_ms"] = before["recorded_latency_ms"] = 0.5
    assert likely(before, now).label == "filter and tools evidence"


def test_rounding_is_no_cause() -> None:
    """A stamp's last bits are not what moved a decision."""
    assert likely(ROW, {**ROW, "success_rate_1": 0.5 + 1e-15, "chosen_route": "q"}).label == "disabled providers"


def test_a_route_that_left_the_first_three_when_more_were_rejected_is_named() -> None:
    """It is the one that the filter most likely took out."""
    now = {**ROW, "route_1": "q", "route_2": "r", "route_3": "s", "order_hash": 8}
    now["reject_counts"] = '{"min_context": 1, "missing_capability:tools": 1}'
    cause = likely(ROW, now)
    assert cause.label == "tools evidence"
    assert cause.said == "missing_capability:tools rejects 1, not 0; p stood among the first three before"


@pytest.mark.parametrize(("before", "now"), [(None, ROW), (ROW, None)])
def test_a_row_that_only_one_side_has(before: Any, now: Any) -> None:
    """Which calls are decided has changed."""
    assert likely(before, now).label == "selection of decisions"
