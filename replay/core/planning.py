"""One decision: filter the candidates, score the survivors, order them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from replay.core.candidates import NO_REQUEST, NO_STATE, Candidate, Request, State
from replay.core.interpreter import Context, refusal, score, select
from replay.core.normal import Term, normal_form
from replay.core.policy import Policy, admit_pred

Reason = Literal["no_candidates", "pin_not_found"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The ranking: candidate indices best first, their scores, and who was rejected why.

    `reason` says why the ranking is empty: `no_candidates` or `pin_not_found`; None if it is not.
    """

    ordered: tuple[int, ...]
    scores: tuple[float, ...]
    rejected: tuple[tuple[int, str], ...]
    reason: Reason | None = None


def plan(
    policy: Policy,
    candidates: Sequence[Candidate],
    request: Request = NO_REQUEST,
    state: State = NO_STATE,
    seed: int = 0,
) -> Plan:
    """Decide: the same five inputs give the same plan everywhere.

    `seed` is any integer and only matters to `sample`. Raises `AdmissionError` for an envelope that is no Pred.

    >>> from replay.core.policy import admit
    >>> cheap = admit(["policy", ["cmp", "price_in", "le", 5], ["neg", ["field", "price_in"]], ["argmax"], ["id"],
    ...                ["always", {"action": "next_candidate"}]])
    >>> plan(cheap, [Candidate("p", "m", fields={"price_in": price}) for price in (3, 9, 2)])
    Plan(ordered=(2, 0), scores=(-1.0, -2.0), rejected=((1, 'cmp:price_in:le'),), reason=None)
    """
    context = Context(request, state, policy.schema, seed)
    survivors, rejected = surviving(policy, candidates, context)
    if request.pin is not None and not survivors:
        return Plan((), (), (), "pin_not_found")
    population = [candidates[index] for index in survivors]
    ranking = select(policy.selector, population, score(policy.scorer, population, context), context)
    return Plan(
        tuple(survivors[position] for position, _ in ranking),
        tuple(s for _, s in ranking),
        tuple(rejected),
        None if ranking else "no_candidates",
    )


def surviving(
    policy: Policy, candidates: Sequence[Candidate], context: Context
) -> tuple[list[int], list[tuple[int, str]]]:
    """Return the indices that are to be scored, and (index, reason) of the rejected, both in candidate order.

    A pin skips the filter, envelope included: the first matching candidate alone survives, nobody is rejected.
    """
    survivors: list[int] = []
    rejected: list[tuple[int, str]] = []
    if context.request.pin is not None:
        return pinned(context.request.pin, candidates), rejected
    pred = narrowed(policy, context.request)
    for index, candidate in enumerate(candidates):
        reason = refusal(pred, candidate, context)
        if reason is None:
            survivors.append(index)
        else:
            rejected.append((index, reason))
    return survivors, rejected


def narrowed(policy: Policy, request: Request) -> Term:
    """Return the policy's filter, with the host's envelope and-ed onto it, in normal form."""
    if request.envelope is None:
        return policy.filter
    return normal_form(("and", policy.filter, admit_pred(request.envelope, policy.schema)))


def pinned(pin: tuple[str, str], candidates: Sequence[Candidate]) -> list[int]:
    """Return the index of the first candidate of the pinned provider and family, alone, or nothing."""
    for index, candidate in enumerate(candidates):
        if (candidate.provider_id, candidate.model_family) == pin:
            return [index]
    return []
