"""Random terms, candidates, requests and states, for whoever holds something against the core."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

from hypothesis import strategies as st

from replay.core import Candidate, Request, Schema, State
from replay.core.signature import ACTIONS, RELATIONS, SIGNATURE

SCHEMA = Schema.declare({"x": {"sort": "Num", "default": 0}, "flag": {"sort": "Bool", "default": False}})
NUM_FIELDS = sorted(name for name, field in SCHEMA.fields.items() if field.sort == "Num")
BOOL_FIELDS = sorted(name for name, field in SCHEMA.fields.items() if field.sort == "Bool")

numbers = st.one_of(
    st.sampled_from([0, 1, -0.0, 0.1, 2**53, 1e300, -1e300, 5e-324]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)
numbers = numbers.filter(lambda number: abs(number) < 2**1000)
names = st.sampled_from(["p", "q", "m", "é", 'a"\\\n'])
KINDS = ["timeout", "auth", "bad_request"]


def op(name: str, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Terms of one operation."""
    return st.tuples(st.just(name), *parts).map(list)


def several(name: str, parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Terms of an operation with one or more arguments."""
    return st.lists(parts, min_size=1, max_size=4).map(lambda children: [name, *children])


preds = st.recursive(
    st.one_of(
        *(op(name) for name in ("top", "bot", "meets_req", "scope_matches")),
        op("is", st.sampled_from(BOOL_FIELDS)),
        op("cmp", st.sampled_from(NUM_FIELDS), st.sampled_from(RELATIONS), numbers),
        op("tier_eq", st.sampled_from(SCHEMA.tiers)),
        op("min_tier", st.sampled_from(SCHEMA.tiers)),
        *(op(name, names) for name in ("family_eq", "provider_eq", "served_by_eq", "has_cap")),
    ),
    lambda inner: st.one_of(several("and", inner), several("or", inner), op("not", inner)),
    max_leaves=8,
)
scorers = st.recursive(
    st.one_of(op("zero"), op("field", st.sampled_from(NUM_FIELDS)), op("lit", numbers)),
    lambda inner: st.one_of(
        several("add", inner),
        op("scale", numbers, inner),
        op("gate", preds, inner),
        op("neg", inner),
        op("normalize", inner),
        op("clamp", numbers, numbers, inner),
    ),
    max_leaves=8,
)
chains = st.lists(st.fixed_dictionaries({"provider": names, "model_family": names}), max_size=3)
selectors = st.recursive(
    st.one_of(op("argmax"), op("ordered"), op("sample", numbers), op("chain", chains)),
    lambda inner: st.one_of(op("top_k", st.integers(1, 5), inner), op("prefer", preds, inner)),
    max_leaves=3,
)
transforms = st.recursive(
    st.one_of(op("id"), op("set_param", names, numbers), op("filter_text", st.just([{}, "x"]))),
    lambda inner: st.one_of(several("seq", inner), op("when", preds, inner)),
    max_leaves=4,
)
actions = st.fixed_dictionaries(
    {"action": st.sampled_from(ACTIONS)},
    optional={
        "then_action": st.sampled_from(ACTIONS),
        "attempts": st.integers(-1, 3),
        "backoff_ms": st.one_of(st.integers(-5, 500), st.lists(st.integers(0, 500), max_size=3)),
        "open_breaker_ms": st.integers(0, 60_000),
        "note": numbers,
    },
)
fail_plans = st.builds(
    lambda base, overrides: reduce(lambda inner, override: ["override", inner, *override], overrides, ["always", base]),
    actions,
    st.lists(st.tuples(st.sampled_from(KINDS), actions), max_size=4),
)
policies = op("policy", preds, scorers, selectors, transforms, fail_plans)

any_number = st.one_of(numbers, st.just(math.inf), st.just(-math.inf), st.just(math.nan))
candidates = st.lists(
    st.builds(
        Candidate,
        provider_id=names,
        model_family=names,
        peer_id=st.none() | names,
        scope=st.none() | names,
        tier=st.none() | st.sampled_from([*SCHEMA.tiers, "gold"]),
        capabilities=st.dictionaries(st.sampled_from(["supports_tools", "p"]), st.booleans()),
        fields=st.dictionaries(
            st.sampled_from(["price_in", "price_out", "latency_ms", "success_rate", "x"]), any_number
        ),
        price_multiplier=st.sampled_from([0.0, 0.5, 1.0]),
    ),
    max_size=6,
)
requests = st.builds(
    Request,
    requirements=st.fixed_dictionaries(
        {}, optional={"needs": st.just(["tools"]), "model_family": names, "privacy": st.just("no_log")}
    ),
    scope=st.none() | names,
    envelope=st.none() | preds,
)
states = st.builds(State, st.frozensets(names), st.frozensets(names), st.dictionaries(names, any_number))
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(sorted(SIGNATURE))),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=20,
)
