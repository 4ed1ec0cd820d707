from __future__ import annotations

import random
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st
from terms import KINDS, SCHEMA, candidates, json_values, policies, requests, states

from replay.core import (
    AdmissionError,
    Candidate,
    Health,
    Outcome,
    Request,
    State,
    Walk,
    admit,
    failover,
    plan,
)
from replay.core.encoding import encode
from replay.core.explain import explain
from replay.core.machine import Attempt
from replay.core.normal import normal_form
from replay.core.signature import SIGNATURE


def as_bits(scores: tuple[float, ...]) -> list[str]:
    """Write scores so that NaN equals itself and minus zero differs from zero."""
    return [score.hex() for score in scores]


@given(policies)
def test_the_normal_form_is_idempotent(term: Any) -> None:
    """Normalising again changes nothing, and the normal form has the same identity."""
    policy = admit(term, SCHEMA)
    assert encode(normal_form(policy.normal)) == policy.encoding
    assert admit(policy.normal, SCHEMA).identity == policy.identity


@given(policies, st.randoms(use_true_random=False))
def test_identity_ignores_order_and_nesting_of_children(term: Any, luck: random.Random) -> None:
    """Permuting the children of and, or, add, and grouping or flattening them, is the same policy."""
    assume(len(str(term)) < 3000)
    assert admit(rearranged(term, luck), SCHEMA).identity == admit(term, SCHEMA).identity


def rearranged(term: Any, luck: random.Random) -> Any:
    """Return the same policy written otherwise: children of and, or, add permuted, grouped, flattened."""
    if not isinstance(term, list) or not term or term[0] not in SIGNATURE:
        return term
    name, *children = term
    operation = SIGNATURE[name]
    if name in ("chain", "filter_text"):
        return term
    children = [
        rearranged(child, luck) if operation.argument_sort(n) != "Str" else child for n, child in enumerate(children, 1)
    ]
    if name in ("and", "or", "add"):
        luck.shuffle(children)
        if len(children) > 1 and luck.random() < 0.5:
            cut = luck.randrange(1, len(children))
            children = [[name, *children[:cut]], *children[cut:]]
        children = [
            part for child in children for part in (child[1:] if child[0] == name and luck.random() < 0.5 else [child])
        ]
    return [name, *children]


@given(policies, candidates, requests, states, st.integers())
def test_evaluation_is_total_on_admitted_terms(
    term: Any, offered: list[Candidate], request: Request, state: State, seed: int
) -> None:
    """Any admitted policy decides on any candidates; everyone is ranked, rejected or left out, once."""
    policy = admit(term, SCHEMA)
    decided = plan(policy, offered, request, state, seed)
    assert len(decided.ordered) == len(decided.scores)
    ranked, rejected = set(decided.ordered), {index for index, _ in decided.rejected}
    assert len(ranked) == len(decided.ordered)
    assert not ranked & rejected
    assert ranked | rejected <= set(range(len(offered)))
    assert (decided.reason is None) == bool(ranked)
    again = plan(policy, offered, request, state, seed)
    assert (again.ordered, again.rejected, as_bits(again.scores)) == (
        decided.ordered,
        decided.rejected,
        as_bits(decided.scores),
    )


@given(policies, candidates, requests, states, st.integers())
def test_an_explanation_agrees_with_the_plan(
    term: Any, offered: list[Candidate], request: Request, state: State, seed: int
) -> None:
    """Reasons and places are the plan's; the first sub-term's score is what the selector was given."""
    explanation = explain(admit(term, SCHEMA), offered, request, state, seed)
    decided = explanation.plan
    assert [(e.index, e.reason) for e in explanation.candidates if e.reason is not None] == list(decided.rejected)
    placed = sorted((e.place, e.index) for e in explanation.candidates if e.place is not None)
    assert [index for _, index in placed] == list(decided.ordered)
    for e in explanation.candidates:
        assert len(e.sub_scores) == (len(explanation.sub_terms) if e.reason is None else 0)
        if e.score is not None and '"chain"' not in explanation.selector and "(chain" not in explanation.selector:
            assert e.score.hex() == e.sub_scores[0].hex()


@given(json_values)
def test_admission_is_total_on_any_json(value: Any) -> None:
    """Whatever arrives is admitted or refused with a path."""
    for term in (value, ["policy", value, value, value, value, value]):
        try:
            message = admit(term, SCHEMA).identity
        except AdmissionError as refused:
            message = str(refused)
        assert message.startswith("$")  # no arbitrary JSON is a policy
        assert len(message) < 2000


@given(policies, st.data())
def test_a_spoiled_policy_is_admitted_or_refused(term: Any, data: st.DataObject) -> None:
    """One part of a good policy replaced by any JSON: a policy, or an error with its path."""
    node: Any = term
    while data.draw(st.booleans()):
        inner = [child for child in node[1:] if isinstance(child, list) and len(child) > 1]
        if not inner:
            break
        node = data.draw(st.sampled_from(inner))
    node[data.draw(st.integers(0, len(node) - 1))] = data.draw(json_values)
    try:
        result = admit(term, SCHEMA).encoding
    except AdmissionError as refused:
        result = str(refused)
    assert result.startswith(("sigma-pol/v2:(policy ", "$"))


@given(policies, candidates.filter(bool), st.lists(st.sampled_from([*KINDS, None]), min_size=60, max_size=60))
def test_a_walk_ends_and_its_attempts_are_its_events(
    term: Any, offered: list[Candidate], kinds: list[str | None]
) -> None:
    """Bounded by candidates × (retries + 1); ok exactly when the last attempt was; numbered without gaps."""
    policy = admit(["policy", ["top"], ["zero"], ["ordered"], ["id"], term[5]], SCHEMA)
    machine = failover(policy, plan(policy, offered), offered, Health(), 0)
    attempts: list[Attempt] = []
    walk: Walk | None = None
    now_ms = 0.0
    try:
        step = next(machine)
        while True:
            outcome = None
            if isinstance(step, Attempt):
                kind = kinds[len(attempts)]
                attempts.append(step)
                outcome = Outcome(kind is None, kind)
                now_ms += 10
            else:
                assert step.backoff_ms >= 0
                now_ms += step.backoff_ms
            step = machine.send((outcome, now_ms))
    except StopIteration as finished:
        walk = finished.value
    assert walk is not None
    assert len(attempts) <= len(offered) * 4
    assert [attempt.attempt for attempt in attempts] == list(range(1, len(attempts) + 1))
    events = [event for event in walk.path if event["event"] == "attempted"]
    assert [event["attempt"] for event in events] == [attempt.candidate_attempt for attempt in attempts]
    assert [event.get("error_kind") for event in events] == kinds[: len(attempts)]
    assert walk.ok == (kinds[len(attempts) - 1] is None)
    assert walk.chosen == (attempts[-1].candidate if walk.ok else None)
