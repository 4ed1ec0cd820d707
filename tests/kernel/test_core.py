"""The compiled core against the interpreter: the same plans, to the last bit."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from absent import shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from terms import SCHEMA, candidates, policies, requests, states

from replay.core import AdmissionError, Candidate, Plan, Policy, Request, Schema, State, admit, plan
from replay.kernel import single

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())


def as_bits(found: Plan) -> Plan:
    """Write scores so that NaN equals itself and minus zero differs from zero."""
    return replace(found, scores=tuple(float(score).hex() for score in found.scores))  # type: ignore[misc]


def plans(
    policy: Policy, population: list[Candidate], request: Request, state: State, seed: int
) -> tuple[object, object]:
    """What the interpreter and the compiled core make of the same."""
    found: list[object] = []
    for decide in (plan, single.plan):
        try:
            found.append(as_bits(decide(policy, population, request, state, seed)))
        except AdmissionError as refused:
            found.append(str(refused))
    return found[0], found[1]


def test_every_vector_is_planned_alike() -> None:
    """All plans of the contract's vectors: order, rejects and scores."""
    document = json.loads(gzip.decompress(shared("vectors/plan.json.gz").read_bytes()))
    schema = Schema.declare(document.get("extensions") or {}, document.get("tiers"))
    seen = 0
    for vector in (one for one in document["vectors"] if one["kind"] == "plan"):
        population = [Candidate.from_record(record) for record in vector["candidates"]]
        request, state = Request.from_record(vector["request"]), State.from_record(vector["state"])
        expected, found = plans(admit(vector["term"], schema), population, request, state, vector["seed"])
        assert found == expected, vector.get("id")
        seen += 1
    assert seen > 400


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(policies, candidates, requests, states, st.integers(-(2**40), 2**40))
def test_random_policies_plan_alike(
    term: Any, population: list[Candidate], request: Request, state: State, seed: int
) -> None:
    """Random terms on random populations, with envelopes, breakers, credits and seeds."""
    measured = ("success_rate", "latency_ms")  # a stamp is a number, or absent
    population = [
        replace(
            one, fields={name: value for name, value in one.fields.items() if value == value or name not in measured}
        )
        for one in population
    ]
    expected, found = plans(admit(term, SCHEMA), population, request, state, seed)
    assert found == expected


def test_credits_that_are_no_number_are_read_as_they_are() -> None:
    """What is known of a provider's credits counts, even where it is no number; what is not known is the default."""
    term = ["policy", ["top"], ["field", "credits"], ["argmax"], ["id"], ["always", {"action": "abort"}]]
    population = [Candidate("p", "m"), Candidate("q", "m"), Candidate("r", "m")]
    expected, found = plans(admit(term), population, Request(), State(credits={"p": float("nan"), "q": 2.0}), 0)
    assert found == expected
    assert found.ordered == (1, 2, 0)  # type: ignore[attr-defined]


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(candidates, st.sampled_from(["p", "q"]), st.sampled_from(["m", "p"]))
def test_a_pin_plans_alike(population: list[Candidate], provider: str, family: str) -> None:
    """A pinned request takes the first match past every filter, or nothing."""
    term = ["policy", ["bot"], ["field", "price_in"], ["argmax"], ["id"], ["always", {"action": "abort"}]]
    request = Request(requirements={"pin": {"provider": provider, "model": family}})
    expected, found = plans(admit(term), population, request, State(), 0)
    assert found == expected
