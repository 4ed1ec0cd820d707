"""The meaning of a policy: this module is the definition, and reads like the page.

Terms are in normal form. Numbers are IEEE-754 doubles; only + − × ÷ and comparisons are used, in the written
order (never `sum`, which compensates on newer Pythons).

    Pred      refusal(pred, candidate, context)          -> None if true, else the reason
    Scorer    score(scorer, population, context)         -> one number per candidate, in candidate order
    Selector  select(selector, population, scores, …)    -> [(position in the population, score)], best first
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from replay.core.candidates import Candidate, Request, State
from replay.core.fields import Schema, read, tier_of
from replay.core.normal import Term


@dataclass(frozen=True, slots=True)
class Context:
    """What every evaluation of one decision shares."""

    request: Request
    state: State
    schema: Schema
    seed: int = 0

    def read(self, field: str, candidate: Candidate) -> float | bool:
        """Return a candidate's field as the policy reads it."""
        return read(field, candidate, self.state, self.schema)


# ---------------------------------------------------------------- Pred

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    relation: getattr(operator, relation) for relation in ("lt", "le", "eq", "ne", "ge", "gt")
}


def refusal(pred: Term, candidate: Candidate, context: Context) -> str | None:
    """Return None if the Pred is true of the candidate, else the reason why not.

    >>> from replay.core.fields import CORE_SCHEMA
    >>> context = Context(Request(), State(), CORE_SCHEMA)
    >>> refusal(("cmp", "price_in", "le", 5), Candidate("p", "m"), context)
    'cmp:price_in:le'
    """
    return _PREDS[pred[0]](pred, candidate, context)


def _and(pred: Term, candidate: Candidate, context: Context) -> str | None:
    for child in pred[1:]:
        reason = _PREDS[child[0]](child, candidate, context)
        if reason is not None:
            return reason
    return None


def _or(pred: Term, candidate: Candidate, context: Context) -> str | None:
    for child in pred[1:]:
        if _PREDS[child[0]](child, candidate, context) is None:
            return None
    return "or"


def _not(pred: Term, candidate: Candidate, context: Context) -> str | None:
    return "not" if refusal(pred[1], candidate, context) is None else None


def _is(pred: Term, candidate: Candidate, context: Context) -> str | None:
    return None if context.read(pred[1], candidate) else f"is:{pred[1]}"


def _cmp(pred: Term, candidate: Candidate, context: Context) -> str | None:
    _, field, relation, bound = pred
    holds = _COMPARISONS[relation](context.read(field, candidate), float(bound))
    return None if holds else f"cmp:{field}:{relation}"


def _tier_eq(pred: Term, candidate: Candidate, context: Context) -> str | None:
    return None if tier_of(candidate.tier) == pred[1] else "tier"


def _min_tier(pred: Term, candidate: Candidate, context: Context) -> str | None:
    rank = context.schema.tier_rank
    return None if rank(candidate.tier) >= rank(pred[1]) else "min_tier"


def _has_cap(pred: Term, candidate: Candidate, context: Context) -> str | None:
    return None if candidate.capabilities.get(pred[1]) else f"missing_capability:{pred[1]}"


def _scope_matches(pred: Term, candidate: Candidate, context: Context) -> str | None:
    return None if candidate.scope is None or candidate.scope == context.request.scope else "scope"


_CAPABILITY_NEEDS = frozenset({"tools", "vision", "json_mode", "seed"})


def _meets_req(pred: Term, candidate: Candidate, context: Context) -> str | None:
    required = context.request.requirements
    for need in context.request.needs:
        if need in _CAPABILITY_NEEDS and not candidate.capabilities.get(f"supports_{need}"):
            return f"missing_capability:{need}"
    min_context = required.get("min_context")
    if min_context is not None and context.read("context", candidate) < float(min_context):
        return "min_context"
    family = required.get("model_family")
    if family is not None and candidate.model_family != family:
        return "model_family"
    tier = required.get("tier")
    if tier is not None and tier_of(candidate.tier) != tier:
        return "tier"
    privacy = required.get("privacy")
    if privacy == "tee_required" and not context.read("has_tee", candidate):
        return "tee_required"
    if privacy == "no_log" and not (context.read("no_log", candidate) or context.read("has_tee", candidate)):
        return "no_log"
    min_tok_s = required.get("min_tok_s")
    if min_tok_s is not None and context.read("tok_s", candidate) < float(min_tok_s):
        return "min_tok_s"
    return None


_PREDS: dict[str, Callable[[Term, Candidate, Context], str | None]] = {
    "top": lambda pred, candidate, context: None,
    "bot": lambda pred, candidate, context: "bot",
    "and": _and,
    "or": _or,
    "not": _not,
    "is": _is,
    "cmp": _cmp,
    "tier_eq": _tier_eq,
    "min_tier": _min_tier,
    "family_eq": lambda pred, candidate, context: None if candidate.model_family == pred[1] else "model_family",
    "provider_eq": lambda pred, candidate, context: None if candidate.provider_id == pred[1] else "provider_id",
    "served_by_eq": lambda pred, candidate, context: None if candidate.served_by == pred[1] else "served_by",
    "has_cap": _has_cap,
    "scope_matches": _scope_matches,
    "meets_req": _meets_req,
}


# ---------------------------------------------------------------- Scorer

Population = Sequence[Candidate]
"""The candidates that survived the filter, in candidate order."""


def score(scorer: Term, population: Population, context: Context) -> list[float]:
    """Return the scores of the whole surviving population, in candidate order.

    >>> from replay.core.fields import CORE_SCHEMA
    >>> population = [Candidate("p", "m", fields={"price_in": price}) for price in (1.0, 2.0, 5.0)]
    >>> score(("normalize", ("field", "price_in")), population, Context(Request(), State(), CORE_SCHEMA))
    [0.0, 0.25, 1.0]
    """
    return _SCORERS[scorer[0]](scorer, population, context)


def _field(scorer: Term, population: Population, context: Context) -> list[float]:
    return [float(context.read(scorer[1], candidate)) for candidate in population]


def _add(scorer: Term, population: Population, context: Context) -> list[float]:
    totals = [0.0] * len(population)
    for child in scorer[1:]:
        totals = [total + s for total, s in zip(totals, score(child, population, context), strict=True)]
    return totals


def _scale(scorer: Term, population: Population, context: Context) -> list[float]:
    factor = float(scorer[1])
    return [factor * s for s in score(scorer[2], population, context)]


def _gate(scorer: Term, population: Population, context: Context) -> list[float]:
    scores = score(scorer[2], population, context)
    return [
        s if refusal(scorer[1], candidate, context) is None else 0.0
        for candidate, s in zip(population, scores, strict=True)
    ]


def _normalize(scorer: Term, population: Population, context: Context) -> list[float]:
    scores = score(scorer[1], population, context)
    numbers = [s for s in scores if not math.isnan(s)]
    lo, hi = min(numbers, default=0.0), max(numbers, default=0.0)
    if hi <= lo:
        return [0.0] * len(scores)
    return [_share(s, lo, hi) for s in scores]


def _share(s: float, lo: float, hi: float) -> float:
    if s >= hi:
        return 1.0
    if s <= lo:
        return 0.0
    share = (s - lo) / (hi - lo)
    return 0.0 if math.isnan(share) else share


def _clamp(scorer: Term, population: Population, context: Context) -> list[float]:
    lo, hi = float(scorer[1]), float(scorer[2])
    return [lo if s < lo else hi if s > hi else s for s in score(scorer[3], population, context)]


_SCORERS: dict[str, Callable[[Term, Population, Context], list[float]]] = {
    "zero": lambda scorer, population, context: [0.0] * len(population),
    "lit": lambda scorer, population, context: [float(scorer[1])] * len(population),
    "field": _field,
    "neg": lambda scorer, population, context: [1.0 - s for s in score(scorer[1], population, context)],
    "add": _add,
    "scale": _scale,
    "gate": _gate,
    "normalize": _normalize,
    "clamp": _clamp,
}


# ---------------------------------------------------------------- Selector

Ranking = list[tuple[int, float]]
"""(position in the population, score), best first."""


def select(selector: Term, population: Population, scores: Sequence[float], context: Context) -> Ranking:
    """Return the ranking that a Selector makes of the scored population.

    >>> from replay.core.fields import CORE_SCHEMA
    >>> context = Context(Request(), State(), CORE_SCHEMA)
    >>> select(("top_k", 2, ("argmax",)), [Candidate("p", "m")] * 3, [0.1, 0.9, 0.9], context)
    [(1, 0.9), (2, 0.9)]
    """
    return _SELECTORS[selector[0]](selector, population, scores, context)


def _argmax(selector: Term, population: Population, scores: Sequence[float], context: Context) -> Ranking:
    # The sort is stable, so ties stay in candidate order, and so do the NaN after every number.
    numbers = [ranked for ranked in enumerate(scores) if not math.isnan(ranked[1])]
    rest = [ranked for ranked in enumerate(scores) if math.isnan(ranked[1])]
    return sorted(numbers, key=lambda ranked: -ranked[1]) + rest


def _ordered(selector: Term, population: Population, scores: Sequence[float], context: Context) -> Ranking:
    return list(enumerate(scores))


def _top_k(selector: Term, population: Population, scores: Sequence[float], context: Context) -> Ranking:
    return select(selector[2], population, scores, context)[: int(selector[1])]


def _prefer(selector: Term, population: Population, scores: Sequence[float], context: Context) -> Ranking:
    matching: Ranking = []
    others: Ranking = []
    for ranked in select(selector[2], population, scores, context):
        preferred = refusal(selector[1], population[ranked[0]], context) is None
        (matching if preferred else others).append(ranked)
    return matching + others


def _chain(selector: Term, population: Population, scores: Sequence[float], context: Context) -> Ranking:
    places = {}
    for place, entry in enumerate(selector[1], start=1):
        provider = entry["provider"] if "provider" in entry else entry["provider_id"]
        family = entry["model"] if "model" in entry else entry["model_family"]
        places[provider, family] = place  # a pair listed twice counts at its last position
    listed = [
        (position, -float(places[candidate.provider_id, candidate.model_family]))
        for position, candidate in enumerate(population)
        if (candidate.provider_id, candidate.model_family) in places
    ]
    return sorted(listed, key=lambda ranked: -ranked[1])


def _sample(selector: Term, population: Population, scores: Sequence[float], context: Context) -> Ranking:
    temperature = max(float(selector[1]), 0.0)
    q = temperature / (temperature + 1.0)
    weight, pool = 1.0, []
    for ranked in _argmax(selector, population, scores, context):
        pool.append((weight, ranked))
        weight *= q
    random = random_numbers(context.seed)
    drawn = []
    while pool:
        total = 0.0
        for weight, _ in pool:
            total += weight
        drawn.append(pool.pop(_first_reaching(next(random) * total, [weight for weight, _ in pool]))[1])
    return drawn


def _first_reaching(mark: float, weights: Sequence[float]) -> int:
    """Return the place of the first weight whose running sum reaches the mark, the last place if none does."""
    running = 0.0
    for place, weight in enumerate(weights):
        running += weight
        if running >= mark:
            return place
    return len(weights) - 1


_MODULUS = 2147483647
_MULTIPLIER = 16807
_DISCARDED_STEPS = 4


def random_numbers(seed: int) -> Iterator[float]:
    """Yield the page's seeded numbers in (0, 1).

    A negative seed keeps its sign under `mod`, as where the rule comes from; that is what `s ≤ 0` is for.
    """
    s = seed % _MODULUS if seed >= 0 else -(-seed % _MODULUS)
    if s <= 0:
        s += _MODULUS - 1
    for _ in range(_DISCARDED_STEPS):
        s = s * _MULTIPLIER % _MODULUS
    while True:
        s = s * _MULTIPLIER % _MODULUS
        yield s / _MODULUS


_SELECTORS: dict[str, Callable[[Term, Population, Sequence[float], Context], Ranking]] = {
    "argmax": _argmax,
    "ordered": _ordered,
    "sample": _sample,
    "chain": _chain,
    "top_k": _top_k,
    "prefer": _prefer,
}
