from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pytest

from replay.core import CORE_SCHEMA, Candidate, Request, Schema, State, admit_pred
from replay.core.interpreter import Context, random_numbers, refusal, score, select
from replay.core.normal import normal_form

INF, NAN = math.inf, math.nan
EXTRA = Schema.declare({"x": {"sort": "Num", "default": 7}, "flag": {"sort": "Bool", "default": True}})


def why_not(
    pred: Any,
    candidate: Candidate,
    request: Request | None = None,
    state: State | None = None,
    schema: Schema = EXTRA,
) -> str | None:
    """Return the reason why a Pred does not hold, None if it does."""
    context = Context(request or Request(), state or State(), schema)
    return refusal(admit_pred(pred, schema), candidate, context)


def scores(scorer: Any, values: list[float]) -> list[float]:
    """Score a population whose field x has these values."""
    population = [Candidate("p", "m", fields={"x": value}) for value in values]
    return score(normal_form(scorer), population, Context(Request(), State(), EXTRA))


def order(selector: Any, values: list[float], seed: int = 0) -> list[int]:
    """Return the positions in the order a Selector gives candidates with these scores."""
    population = [Candidate(f"p{n}", "m") for n in range(len(values))]
    context = Context(Request(), State(), CORE_SCHEMA, seed)
    return [position for position, _ in select(normal_form(selector), population, values, context)]


BARE = Candidate("p", "m")
RICH = Candidate(
    "p",
    "m",
    peer_id="peer",
    scope="s",
    tier="partner",
    capabilities={"supports_tools": True, "supports_vision": False, "context": 8000},
    fields={"price_in": 3, "latency_ms": 100, "tok_s": 30, "success_rate": 0.5, "has_tee": True, "x": 1},
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("price_in", INF),
        ("price_out", INF),
        ("latency_ms", INF),
        ("tok_s", 0),
        ("success_rate", 1),
        ("context", 0),
        ("credits", 0),
        ("x", 7),
    ],
)
def test_an_absent_number_reads_its_default(field: str, value: float) -> None:
    """Conservative for money, optimistic for reliability."""
    assert score(("field", field), [BARE], Context(Request(), State(), EXTRA)) == [value]


@pytest.mark.parametrize(
    ("field", "value"), [("has_tee", False), ("no_log", False), ("breaker_open", False), ("flag", True)]
)
def test_an_absent_flag_reads_its_default(field: str, value: bool) -> None:
    """Core flags are off; a declared one has the declared default."""
    assert (why_not(["is", field], BARE) is None) is value


def test_state_fields_are_read_per_provider() -> None:
    """Breakers, disabled providers and credits come from the state, never from the candidate."""
    state = State(frozenset({"p"}), frozenset({"q"}), {"p": 2.5})
    forged = Candidate("r", "m", fields={"disabled": True, "credits": 9})
    assert why_not(["is", "breaker_open"], BARE, state=state) is None
    assert why_not(["is", "disabled"], BARE, state=state) == "is:disabled"
    assert why_not(["is", "disabled"], forged, state=state) == "is:disabled"
    assert why_not(["cmp", "credits", "eq", 2.5], BARE, state=state) is None
    assert why_not(["cmp", "credits", "eq", 0], forged, state=state) is None


@pytest.mark.parametrize(
    ("pred", "reason"),
    [
        (["top"], None),
        (["bot"], "bot"),
        (["and", ["is", "has_tee"], ["is", "no_log"]], "is:no_log"),
        (["and", ["provider_eq", "q"], ["family_eq", "n"]], "model_family"),
        (["or", ["provider_eq", "q"], ["family_eq", "n"]], "or"),
        (["or", ["provider_eq", "q"], ["family_eq", "m"]], None),
        (["not", ["family_eq", "m"]], "not"),
        (["not", ["family_eq", "n"]], None),
        (["cmp", "x", "lt", 1], "cmp:x:lt"),
        (["cmp", "x", "le", 1], None),
        (["cmp", "x", "ne", 1], "cmp:x:ne"),
        (["cmp", "x", "gt", 1], "cmp:x:gt"),
        (["tier_eq", "partner"], None),
        (["tier_eq", "fallback"], "tier"),
        (["min_tier", "marketplace"], None),
        (["served_by_eq", "peer"], None),
        (["served_by_eq", "p"], "served_by"),
        (["provider_eq", "q"], "provider_id"),
        (["has_cap", "supports_tools"], None),
        (["has_cap", "supports_vision"], "missing_capability:supports_vision"),
        (["scope_matches"], "scope"),
    ],
)
def test_a_pred_gives_the_reason_of_the_page(pred: Any, reason: str | None) -> None:
    """True, or the reason that names what failed (children in normal-form order)."""
    assert why_not(pred, RICH) == reason


def test_tiers_count_as_the_page_says() -> None:
    """No tier is fallback; an unknown tier is below all, and equal to none."""
    odd = Candidate("p", "m", tier="gold")
    assert why_not(["tier_eq", "fallback"], BARE) is None
    assert why_not(["min_tier", "fallback"], BARE) is None
    assert why_not(["min_tier", "marketplace"], BARE) == "min_tier"
    assert why_not(["min_tier", "fallback"], odd) == "min_tier"
    assert why_not(["tier_eq", "fallback"], odd) == "tier"


def test_served_by_is_the_provider_on_a_direct_route() -> None:
    """Without a peer the provider serves."""
    assert why_not(["served_by_eq", "p"], BARE) is None


def test_scope_matches_only_the_same_scope() -> None:
    """A candidate without scope matches every request."""
    assert why_not(["scope_matches"], RICH, Request(scope="s")) is None
    assert why_not(["scope_matches"], RICH, Request(scope="t")) == "scope"
    assert why_not(["scope_matches"], BARE, Request(scope="t")) is None


def test_a_comparison_with_nan_is_only_true_for_ne() -> None:
    """As IEEE has it."""
    odd = Candidate("p", "m", fields={"x": NAN})
    held = [
        relation for relation in ("lt", "le", "eq", "ne", "ge", "gt") if why_not(["cmp", "x", relation, 0], odd) is None
    ]
    assert held == ["ne"]


@pytest.mark.parametrize(
    ("requirements", "reason"),
    [
        ({"needs": ["tools"]}, None),
        ({"needs": ["telepathy", "tools"]}, None),
        ({"needs": ["seed", "json_mode"]}, "missing_capability:seed"),
        ({"min_context": 8000}, None),
        ({"min_context": 8001}, "min_context"),
        ({"model_family": "n", "tier": "fallback"}, "model_family"),
        ({"tier": "fallback"}, "tier"),
        ({"privacy": "tee_required"}, None),
        ({"privacy": "no_log"}, None),
        ({"privacy": "whatever"}, None),
        ({"min_tok_s": 30}, None),
        ({"min_tok_s": 30.5}, "min_tok_s"),
        ({"min_context": None, "model_family": None, "tier": None, "min_tok_s": None, "needs": None}, None),
    ],
)
def test_meets_req(requirements: dict[str, Any], reason: str | None) -> None:
    """Each requirement, in the page's order."""
    assert why_not(["meets_req"], RICH, Request(requirements)) == reason


def test_meets_req_on_a_candidate_of_which_nothing_is_known() -> None:
    """Absent speed and context are 0, absent tier is fallback, absent privacy flags fail."""
    for requirements, reason in [
        ({"min_tok_s": 0}, None),
        ({"min_tok_s": 1}, "min_tok_s"),
        ({"min_context": 1}, "min_context"),
        ({"tier": "fallback"}, None),
        ({"privacy": "tee_required"}, "tee_required"),
        ({"privacy": "no_log"}, "no_log"),
    ]:
        assert why_not(["meets_req"], BARE, Request(requirements)) == reason


def test_no_log_alone_satisfies_no_log_but_not_tee() -> None:
    """A route in a TEE needs no promise; a promise is no TEE."""
    promised = Candidate("p", "m", fields={"no_log": True})
    assert why_not(["meets_req"], promised, Request({"privacy": "no_log"})) is None
    assert why_not(["meets_req"], promised, Request({"privacy": "tee_required"})) == "tee_required"


def test_a_request_implies_needs_after_the_required_ones() -> None:
    """Vision, tools, json_mode, in this order, behind `requirements.needs`."""
    request = Request({"needs": ["seed"]}, tools=[1], images=["i"], response_format={"type": "json_object"})
    assert request.needs == ("seed", "vision", "tools", "json_mode")
    assert Request(tools=[], images=[], response_format={"type": "text"}).needs == ()
    assert why_not(["meets_req"], RICH, Request(images=["i"], tools=True)) == "missing_capability:vision"


@pytest.mark.parametrize(
    ("scorer", "values", "expected"),
    [
        (["zero"], [1, 2], [0, 0]),
        (["lit", -2], [1, 2], [-2, -2]),
        (["scale", 3, ["field", "x"]], [1, 2], [3, 6]),
        (["neg", ["field", "x"]], [0.25, 2], [0.75, -1]),
        (["add", ["field", "x"], ["lit", 1]], [1, 2], [2, 3]),
        (["add", ["lit", -0.0], ["lit", -0.0]], [1], [0.0]),
        (["gate", ["cmp", "x", "gt", 1], ["lit", 5]], [1, 2], [0, 5]),
        (["clamp", 0, 1, ["field", "x"]], [-1, 0.5, 2, INF], [0, 0.5, 1, 1]),
        (["clamp", 2, 1, ["field", "x"]], [0, 1.5, 3], [2, 2, 1]),
        (["normalize", ["field", "x"]], [2, 4, 3], [0, 1, 0.5]),
        (["normalize", ["field", "x"]], [5, 5], [0, 0]),
        (["normalize", ["field", "x"]], [5], [0]),
        (["normalize", ["field", "x"]], [], []),
        (["normalize", ["field", "x"]], [NAN, NAN], [0, 0]),
        (["normalize", ["field", "x"]], [1, NAN, 3], [0, 0, 1]),
        (["normalize", ["field", "x"]], [1, 5, INF], [0, 0, 1]),
        (["normalize", ["field", "x"]], [-INF, 5, 9], [0, 0, 1]),
        (["normalize", ["field", "x"]], [-INF, 5, INF], [0, 0, 1]),
        (["normalize", ["field", "x"]], [-1.7e308, 0, 1.7e308], [0, 0, 1]),
        (["normalize", ["field", "x"]], [INF, INF], [0, 0]),
    ],
)
def test_a_scorer_scores_the_population(scorer: Any, values: list[float], expected: list[float]) -> None:
    """Worked by hand from the page."""
    assert scores(scorer, values) == expected


def test_add_starts_at_zero_and_adds_in_child_order() -> None:
    """(0.1 + 0.2) + 0.3 and not 0.1 + (0.2 + 0.3); children are sorted by their encoding."""
    assert scores(["add", ["lit", 0.3], ["lit", 0.2], ["lit", 0.1]], [0]) == [0.6000000000000001]
    assert scores(["add", ["lit", 1e16], ["lit", 1], ["lit", -1e16]], [0]) == [0.0]


def test_minus_zero_survives_where_nothing_is_added() -> None:
    """`lit -0.0` scores −0, though it is encoded as 0."""
    assert math.copysign(1, scores(["lit", -0.0], [0])[0]) == -1


def test_infinite_prices_make_nan_and_nan_ranks_last() -> None:
    """inf − inf is NaN: after every number, also −inf, in candidate order."""
    values = scores(["add", ["field", "x"], ["scale", -1, ["field", "x"]]], [INF, 1, INF])
    assert [math.isnan(value) for value in values] == [True, False, True]
    assert order(["argmax"], [NAN, -INF, NAN, 3, INF]) == [4, 3, 1, 0, 2]


def test_argmax_keeps_ties_in_candidate_order() -> None:
    """Minus zero ties with zero."""
    assert order(["argmax"], [1, 2, 1, 2]) == [1, 3, 0, 2]
    assert order(["argmax"], [-0.0, 0.0]) == [0, 1]


def test_ordered_top_k_and_prefer() -> None:
    """Candidate order; the first k; a stable partition of the inner order."""
    assert order(["ordered"], [1, 3, 2]) == [0, 1, 2]
    assert order(["top_k", 2, ["argmax"]], [1, 3, 2]) == [1, 2]
    assert order(["top_k", 9, ["argmax"]], [1, 3, 2]) == [1, 2, 0]
    either = ["or", ["provider_eq", "p0"], ["provider_eq", "p2"]]
    assert order(["prefer", either, ["argmax"]], [1, 3, 2, 4]) == [2, 0, 3, 1]
    assert order(["prefer", either, ["top_k", 2, ["argmax"]]], [1, 3, 2, 4]) == [3, 1]
    assert order(["top_k", 2, ["prefer", either, ["argmax"]]], [1, 3, 2, 4]) == [2, 0]


def test_chain_keeps_the_list_in_list_order() -> None:
    """Scores are minus the position; a repeated pair counts at its last; one entry's candidates stay in order."""
    population = [
        Candidate("a", "m"),
        Candidate("b", "m"),
        Candidate("c", "m"),
        Candidate("a", "m"),
        Candidate("a", "n"),
    ]
    entries = [
        {"provider": "a", "model": "m"},
        {"provider_id": "b", "model_family": "m"},
        {"provider": "a", "model_family": "m"},
    ]
    context = Context(Request(), State(), CORE_SCHEMA)
    ranking = select(("chain", tuple(entries)), population, [9.0] * 5, context)
    assert ranking == [(1, -2.0), (0, -3.0), (3, -3.0)]


def test_the_seeded_numbers_by_hand() -> None:
    """Seed 1 is the minimal standard generator: its fifth state is 1144108930; four steps are discarded."""
    assert next(random_numbers(1)) == 1144108930 / 2147483647
    # The published check of this generator: from 1, the 10,000th state is 1043618065.
    assert next(islice(random_numbers(1), 9_995, None)) == 1043618065 / 2147483647


def test_seeds_wrap_around_the_modulus() -> None:
    """0 and the modulus mean 2147483646; a negative seed keeps its sign under mod before the correction."""
    zero = list(islice(random_numbers(0), 5))
    assert list(islice(random_numbers(2147483647), 5)) == zero
    assert list(islice(random_numbers(2147483646), 5)) == zero
    assert list(islice(random_numbers(2147483648), 5)) == list(islice(random_numbers(1), 5))
    assert list(islice(random_numbers(-5), 5)) == list(islice(random_numbers(2147483641), 5))


def test_sample_draws_by_iterated_weights() -> None:
    """Temperature 1 halves the weights; the draws of seed 1 by hand.

    States after the four discarded: 1144108930, 470211272, … → 0.5328 and 0.2190.
    Weights 1, ½, ¼ in argmax order: r = 0.5328·1.75 = 0.932 ≤ 1, the first; then r = 0.2190·0.75 = 0.164 ≤ ½.
    """
    assert order(["sample", 1], [3, 1, 2], seed=1) == [0, 2, 1]
    # With 12 equal-ish weights (q → 1) the same two numbers pick the 7th, then the 3rd of the rest.
    ranked = order(["sample", 1e12], [float(-n) for n in range(12)], seed=1)
    assert ranked[:2] == [6, 2]
    assert sorted(ranked) == list(range(12))


def test_sample_at_zero_or_negative_temperature_is_argmax() -> None:
    """q = 0: the first has all the weight, and then each first of the rest."""
    for temperature in (0, -3):
        assert order(["sample", temperature], [1, 3, 2, NAN], seed=99) == [1, 2, 0, 3]
