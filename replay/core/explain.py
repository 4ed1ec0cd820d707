"""Why one decision came out as it did: fields as the policy reads them, reject reasons, scores by sub-term, order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replay.core.candidates import NO_REQUEST, NO_STATE, Candidate, Request, State
from replay.core.encoding import encode_argument, encode_term
from replay.core.fields import observed
from replay.core.interpreter import Context, score
from replay.core.normal import Term
from replay.core.planning import Plan, narrowed, plan, surviving
from replay.core.policy import Policy
from replay.core.signature import SIGNATURE, TERM_SORTS
from replay.errors import ReplayError


@dataclass(frozen=True, slots=True)
class FieldReading:
    """A field as the policy reads it; `is_default` if nothing was observed."""

    value: float | bool
    is_default: bool


@dataclass(frozen=True, slots=True)
class SubTerm:
    """One sub-term of the scorer: its label, what it is (children by label), and its depth (0: the whole scorer)."""

    label: str
    text: str
    depth: int


@dataclass(frozen=True, slots=True)
class ExplainedCandidate:
    """One candidate, with its place in the final order (from 1) and its scores, aligned with the sub-terms.

    A rejected candidate has a `reason` and no scores. One without reason and place survived the filter, but the
    selector (or the pin) left it out.
    """

    index: int
    candidate: Candidate
    fields: Mapping[str, FieldReading]
    reason: str | None
    place: int | None
    score: float | None
    sub_scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision, explained; `candidates` in candidate order."""

    policy: Policy
    request: Request
    plan: Plan
    sub_terms: tuple[SubTerm, ...]
    selector: str
    candidates: tuple[ExplainedCandidate, ...]


def explain(
    policy: Policy,
    candidates: Sequence[Candidate],
    request: Request = NO_REQUEST,
    state: State = NO_STATE,
    seed: int = 0,
) -> Explanation:
    """Make the decision and say of every candidate why it stands where it does.

    >>> from replay.core.policy import admit
    >>> cheap = admit(["policy", ["top"], ["neg", ["field", "price_in"]], ["argmax"], ["id"],
    ...                ["always", {"action": "abort"}]])
    >>> explanation = explain(cheap, [Candidate("p", "m", fields={"price_in": 3})])
    >>> [(sub.label, sub.text) for sub in explanation.sub_terms], explanation.candidates[0].sub_scores
    ([('s0', 'neg s1'), ('s1', 'field "price_in"')], (-2.0, 3.0))
    """
    context = Context(request, state, policy.schema, seed)
    decided = plan(policy, candidates, request, state, seed)
    survivors, rejected = surviving(policy, candidates, context)
    reasons = dict(rejected)
    population = [candidates[index] for index in survivors]
    terms = list(_scorers(policy.scorer))
    columns = [score(term, population, context) for term, _ in terms]
    sub_scores = dict(zip(survivors, zip(*columns, strict=True), strict=True))
    places = {index: place for place, index in enumerate(decided.ordered, start=1)}
    names = fields_read(policy, request)
    return Explanation(
        policy,
        request,
        decided,
        tuple(SubTerm(f"s{number}", _text(terms, number), depth) for number, (_, depth) in enumerate(terms)),
        encode_term(policy.selector),
        tuple(
            ExplainedCandidate(
                index,
                candidate,
                {
                    name: FieldReading(context.read(name, candidate), observed(name, candidate, state) is None)
                    for name in names
                },
                reasons.get(index),
                places.get(index),
                decided.scores[places[index] - 1] if index in places else None,
                sub_scores.get(index, ()),
            )
            for index, candidate in enumerate(candidates)
        ),
    )


def fields_read(policy: Policy, request: Request = NO_REQUEST) -> list[str]:
    """Return the fields that a decision reads, in the schema's order: the policy's, and the requirements' own."""
    names: set[str] = set()
    operations: set[str] = set()
    for root in (narrowed(policy, request), policy.scorer, policy.selector):
        for term in _subterms(root):
            operations.add(term[0])
            if term[0] in ("is", "cmp", "field"):
                names.add(term[1])
    if "meets_req" in operations:
        required = {key for key, value in request.requirements.items() if value is not None}
        names |= {"context"} if "min_context" in required else set()
        names |= {"tok_s"} if "min_tok_s" in required else set()
        names |= {"has_tee", "no_log"} if "privacy" in required else set()
    return [name for name in policy.schema.fields if name in names]


def decision_from_record(record: Any) -> tuple[list[Candidate], Request, State, int]:
    """Read a decision in the vectors' form: {candidates, request, state, seed}; all but candidates are optional."""
    if not isinstance(record, Mapping) or not isinstance(record.get("candidates"), list):
        raise ReplayError(
            "the decision holds no list of candidates; expected {candidates, request, state, seed} as in a plan "
            "vector; give such a JSON object"
        )
    seed = record.get("seed") or 0
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ReplayError(f"the decision's seed is {type(seed).__name__}; expected an integer; correct it")
    return (
        [Candidate.from_record(candidate) for candidate in record["candidates"]],
        Request.from_record(record.get("request") or {}),
        State.from_record(record.get("state") or {}),
        seed,
    )


def _children(term: Term) -> list[tuple[int, Term]]:
    operation = SIGNATURE[term[0]]
    return [
        (position, argument)
        for position, argument in enumerate(term[1:], start=1)
        if operation.argument_sort(position) in TERM_SORTS
    ]


def _subterms(term: Term) -> Iterator[Term]:
    yield term
    for _, child in _children(term):
        yield from _subterms(child)


def _scorers(term: Term, depth: int = 0) -> Iterator[tuple[Term, int]]:
    """Yield the scorer and its scorer sub-terms with their depth, parents before children."""
    yield term, depth
    for _, child in _children(term):
        if SIGNATURE[child[0]].sort == "Scorer":
            yield from _scorers(child, depth + 1)


def _text(terms: Sequence[tuple[Term, int]], number: int) -> str:
    """Write one sub-term with its scorer children as labels: they are the next ones of one more depth."""
    term, depth = terms[number]
    labels = []
    for later in range(number + 1, len(terms)):
        if terms[later][1] <= depth:
            break
        if terms[later][1] == depth + 1:
            labels.append(f"s{later}")
    children = {position: child for position, child in _children(term) if SIGNATURE[child[0]].sort == "Scorer"}
    following = iter(labels)
    parts = [
        next(following)
        if position in children
        else repr(argument)  # a number as people write it, not as it is encoded
        if isinstance(argument, float)
        else encode_argument(term[0], position, argument)
        for position, argument in enumerate(term[1:], start=1)
    ]
    return " ".join([term[0], *parts])
