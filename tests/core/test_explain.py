from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from replay.cli.policy import render_explanation
from replay.core import Candidate, Request, State
from replay.core.explain import FieldReading, decision_from_record, explain, fields_read
from replay.errors import ReplayError

CHEAP = Candidate("a", "m", fields={"price_in": 1.0, "latency_ms": 50.0}, price_multiplier=2.0)
DEAR = Candidate("b", "m", fields={"price_in": 4.0})
REFUSED = Candidate("c", "m", fields={"price_in": 9.0})
SCORER = ["add", ["scale", 0.5, ["neg", ["normalize", ["field", "price_in"]]]], ["gate", ["is", "has_tee"], ["lit", 3]]]


def test_sub_terms_reasons_and_order(make: Any) -> None:
    """Prices as ranked (doubled for the first) are 2 and 4; the third is refused; argmax puts the cheap one first."""
    policy = make(["cmp", "price_in", "le", 5], SCORER, ["top_k", 1, ["argmax"]])
    explanation = explain(policy, [DEAR, CHEAP, REFUSED])
    assert [(sub.label, sub.depth, sub.text) for sub in explanation.sub_terms] == [
        ("s0", 0, "add s1 s3"),
        ("s1", 1, 'gate (is "has_tee") s2'),
        ("s2", 2, "lit 3"),
        ("s3", 1, "scale 0.5 s4"),
        ("s4", 2, "neg s5"),
        ("s5", 3, "normalize s6"),
        ("s6", 4, 'field "price_in"'),
    ]
    dear, cheap, refused = explanation.candidates
    assert cheap.sub_scores == (0.5, 0.0, 3.0, 0.5, 1.0, 0.0, 2.0)
    assert (cheap.place, cheap.score, cheap.reason) == (1, 0.5, None)
    assert (dear.place, dear.score, dear.reason, dear.sub_scores[0]) == (None, None, None, 0.0)
    assert (refused.place, refused.score, refused.reason, refused.sub_scores) == (None, None, "cmp:price_in:le", ())


def test_fields_say_which_are_defaults(make: Any) -> None:
    """As the policy reads them: multiplied, stated, or the default."""
    policy = make(["not", ["is", "disabled"]], ["add", ["field", "price_in"], ["field", "latency_ms"]])
    explanation = explain(policy, [CHEAP, DEAR], state=State(disabled=frozenset({"b"})))
    assert explanation.candidates[0].fields == {
        "price_in": FieldReading(2.0, False),
        "latency_ms": FieldReading(50.0, False),
        "disabled": FieldReading(False, False),
    }
    assert explanation.candidates[1].fields["latency_ms"] == FieldReading(float("inf"), True)
    assert explanation.candidates[1].fields["disabled"] == FieldReading(True, False)


def test_fields_read_covers_selector_requirements_and_envelope(make: Any) -> None:
    """What `meets_req` reads depends on what the request requires."""
    policy = make(["meets_req"], selector=["prefer", ["is", "breaker_open"], ["argmax"]])
    assert fields_read(policy) == ["breaker_open"]
    request = Request({"min_context": 1, "privacy": "no_log", "min_tok_s": None}, envelope=["cmp", "credits", "gt", 0])
    assert fields_read(policy, request) == ["context", "credits", "has_tee", "no_log", "breaker_open"]


def rendered(*arguments: Any) -> str:
    """Return the rendered explanation as text."""
    console = Console(file=io.StringIO(), width=200)
    console.print(render_explanation(explain(*arguments)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_rendering_says_it_all(make: Any) -> None:
    """Order, verdicts, default marks, scores and the legend of sub-terms."""
    text = rendered(make(["cmp", "price_in", "le", 5], SCORER, ["top_k", 1, ["argmax"]]), [DEAR, CHEAP, REFUSED])
    for words in ("rejected: cmp:price_in:le", "left out by the selector", "first", "false*", "a|m|a"):
        assert words in text
    assert 's1 = gate (is "has_tee") s2' in text


@pytest.mark.parametrize(
    ("filter_", "request_", "words"),
    [
        (["bot"], Request(), "nothing to call: no_candidates"),
        (["top"], Request({"pin": {"provider": "z", "model": "m"}}), "nothing to call: pin_not_found"),
        (["top"], Request({"pin": {"provider": "a", "model": "m"}}), "not pinned"),
    ],
)
def test_the_rendering_of_odd_ends(make: Any, filter_: Any, request_: Request, words: str) -> None:
    """Nothing to call, and candidates that a pin passed over."""
    assert words in rendered(make(filter_), [DEAR, CHEAP], request_)


def test_the_rendering_of_no_candidates_and_of_a_big_scorer(make: Any) -> None:
    """Neither an empty list nor hundreds of sub-terms break it."""
    assert "no_candidates" in rendered(make(), [])
    big = make(scorer=["add", *[["lit", n] for n in range(300)]])
    assert "the first 12 of 301 sub-terms" in rendered(big, [DEAR])


@pytest.mark.parametrize("record", [3, {}, {"candidates": {}}, {"candidates": [], "seed": "x"}, {"candidates": [3]}])
def test_a_record_that_is_no_decision_is_refused(record: Any) -> None:
    """With what was expected."""
    with pytest.raises(ReplayError, match="expected"):
        decision_from_record(record)


def test_a_decision_needs_candidates_only() -> None:
    """Request, state and seed may be absent."""
    assert decision_from_record({"candidates": []}) == ([], Request(), State(), 0)
