from __future__ import annotations

import math
from typing import Any

import pytest

from replay.core import CORE_SCHEMA, AdmissionError, Schema, admit, admit_pred
from replay.errors import ReplayError

ALWAYS = ["always", {"action": "next_candidate"}]


def reason(pred: Any, schema: Schema = CORE_SCHEMA) -> str:
    """Return the message with which a Pred is refused."""
    with pytest.raises(AdmissionError) as refused:
        admit_pred(pred, schema)
    return str(refused.value)


def policy_reason(position: int, part: Any) -> str:
    """Return the message with which a policy is refused whose part at a position is this one."""
    term: list[Any] = ["policy", ["top"], ["zero"], ["argmax"], ["id"], ALWAYS]
    term[position] = part
    with pytest.raises(AdmissionError) as refused:
        admit(term)
    return str(refused.value)


@pytest.mark.parametrize(
    ("pred", "message"),
    [
        ("top", "$: expected a Pred term [op, …], got a string"),
        ([], "$: expected a Pred term [op, …], got an empty array"),
        ([["top"]], "$: expected an operation's name first, got an array"),
        (["not", None], "$.not[1]: expected a Pred term [op, …], got null"),
        (["top", 1], "$: top takes 0 argument(s), got 1"),
        (["and", ["top"], ["zero"]], "$.and[2]: expected a Pred, got zero which is a Scorer"),
        (["is", "price_in"], "$.is[1]: field 'price_in' is Num, expected Bool"),
        (["cmp", "has_tee", "lt", 1], "$.cmp[1]: field 'has_tee' is Bool, expected Num"),
        (["cmp", "price_in", "lt", True], "$.cmp[3]: expected a finite number"),
        (["cmp", "price_in", "lt", 10**400], "$.cmp[3]: expected a finite number"),
        (["cmp", "price_in", "lt", math.nan], "$.cmp[3]: expected a finite number"),
        (["provider_eq", 3], "$.provider_eq[1]: expected a string"),
        (["provider_eq", "\ud800"], "$.provider_eq[1]: expected a string"),
    ],
)
def test_a_malformed_pred_is_refused_with_its_path(pred: Any, message: str) -> None:
    """Shape, arity, sort, field and number errors name the place and what was expected there."""
    assert reason(pred) == message


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "2", None, math.inf])
def test_a_count_is_an_integer_of_at_least_one(count: Any) -> None:
    """`top_k` refuses every other value."""
    message = policy_reason(3, ["top_k", count, ["argmax"]])
    assert message == "$.policy[3].top_k[1]: expected an integer of at least 1"


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("abort", "expected an Action record, got a string"),
        ({}, "Action.action is missing"),
        ({"action": 3}, "Action.action invalid: a number"),
        ({"action": "abort", "then_action": "never"}, "Action.then_action invalid: never"),
        ({"action": "abort", "attempts": "2"}, "Action key 'attempts' must map to a finite number"),
        ({"action": "abort", "attempts": [2]}, "Action key 'attempts' must map to a finite number"),
        ({"action": "abort", "open_breaker_ms": None}, "Action key 'open_breaker_ms' must map to a finite number"),
        (
            {"action": "abort", "backoff_ms": [1, math.inf]},
            "Action key 'backoff_ms' must map to a finite number or an array of them",
        ),
    ],
)
def test_a_malformed_action_is_refused(action: Any, message: str) -> None:
    """Every key of an Action has its sort."""
    assert policy_reason(5, ["always", action]) == f"$.policy[5].always[1]: {message}"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("p", "Chain[1]: expected a record, got a string"),
        ({"provider": "p"}, "Chain[1]: missing model or model_family, expected exactly one"),
        (
            {"provider": "p", "provider_id": "p", "model": "m"},
            "Chain[1]: both provider or provider_id, expected exactly one",
        ),
        ({"provider": 1, "model": "m"}, "Chain[1]: provider must be a string"),
    ],
)
def test_a_malformed_chain_is_refused(entry: Any, message: str) -> None:
    """A chain's records are closed, with both parts present."""
    assert policy_reason(3, ["chain", [entry]]) == f"$.policy[3].chain[1]: {message}"


@pytest.mark.parametrize(
    "xform",
    [
        ["set_param", "x", None],
        ["set_param", "x", [1]],
        ["filter_text", "drop"],
        ["filter_text", [{"a": "b"}]],
        ["filter_image", [[1]]],
        ["jitter", "x", math.inf],
        ["when", ["zero"], ["id"]],
    ],
)
def test_a_malformed_transform_is_refused(xform: Any) -> None:
    """Transforms are admitted like everything else, though nothing here applies them."""
    assert policy_reason(4, xform).startswith(f"$.policy[4].{xform[0]}[")


@pytest.mark.parametrize(
    "xform",
    [
        ["set_param", "x", True],
        ["seq", ["inject_seed", "seed"], ["clamp_param", "t", 0, 1], ["custom", "c"]],
        ["filter_text", ["drop", {"max": 3}, {}]],
        ["when", ["top"], ["jitter", "t", 0.1]],
    ],
)
def test_a_transform_is_admitted_and_encoded(xform: Any) -> None:
    """Every transform of the page has a place in an admitted policy."""
    term = ["policy", ["top"], ["zero"], ["argmax"], xform, ALWAYS]
    assert f"({xform[0]} " in admit(term).encoding


def test_depth_64_is_admitted_and_65_refused() -> None:
    """The root has depth 1."""
    term: Any = ["top"]
    for _ in range(63):
        term = ["not", term]
    admit_pred(term)
    assert reason(["not", term]) == "$" + ".not[1]" * 64 + ": term exceeds max depth 64"


def test_4096_nodes_are_admitted_and_4097_refused() -> None:
    """Nodes are counted in the order of the term, so the refusal names the first one too many."""
    admit_pred(["and", *[["top"]] * 4095])
    assert reason(["and", *[["top"]] * 4096]) == "$.and[4096]: term exceeds max size 4096 nodes"


def test_a_term_of_depth_100000_is_refused_without_overflow() -> None:
    """Neither a deep term nor a deep value in a parameter's place exhausts the stack."""
    deep: Any = []
    for _ in range(100_000):
        deep = ["not", deep]
    assert reason(deep).endswith("term exceeds max depth 64")
    assert reason(["provider_eq", deep]) == "$.provider_eq[1]: expected a string"
    assert policy_reason(5, ["always", {"action": deep}]).endswith("Action.action invalid: an array")


def test_a_huge_name_is_not_printed_whole() -> None:
    """An error stays one readable paragraph."""
    assert len(reason(["x" * 100_000])) < 200


def test_tiers_come_from_the_schema() -> None:
    """Another catalog may have another order."""
    schema = Schema.declare({}, ["bronze", "gold"])
    assert admit_pred(["min_tier", "gold"], schema) == ("min_tier", "gold")
    assert reason(["min_tier", "partner"], schema) == "$.min_tier[1]: unknown tier 'partner'"


@pytest.mark.parametrize(
    "declared",
    [
        {"price_in": {"sort": "Num", "default": 0}},
        {"x": {"sort": "Text", "default": 0}},
        {"x": {"sort": "Num", "default": True}},
        {"x": {"sort": "Bool", "default": 0}},
        {"x": {"sort": "Num", "default": math.nan}},
        {"x": {"sort": "Num", "default": 10**400}},
        {"x": {"sort": "Num"}},
        {"x": 3},
        {"": {"sort": "Num", "default": 0}},
    ],
)
def test_a_bad_declaration_is_refused(declared: Any) -> None:
    """A field may be added, with a default of its sort, never redefined."""
    with pytest.raises(ReplayError, match="field"):
        Schema.declare(declared)


def test_declared_gives_back_what_was_declared() -> None:
    """The mapping that the ledger's `policies` table stores."""
    declared = {"bench_x": {"sort": "Num", "default": 2.0}, "hot": {"sort": "Bool", "default": True}}
    assert Schema.declare(declared).declared == declared
    assert CORE_SCHEMA.declared == {}
