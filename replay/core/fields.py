"""Fields: everything a policy can observe of a candidate, and what an absent value reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from replay.core.candidates import Candidate, State
from replay.core.signature import DEFAULT_TIERS
from replay.errors import ReplayError


@dataclass(frozen=True, slots=True)
class Field:
    """A field's sort and the value that an absent one reads."""

    sort: Literal["Num", "Bool"]
    default: float | bool


_CORE_FIELDS: Mapping[str, Field] = {
    # Conservative for money and speed, optimistic for reliability.
    "price_in": Field("Num", math.inf),
    "price_out": Field("Num", math.inf),
    "latency_ms": Field("Num", math.inf),
    "tok_s": Field("Num", 0.0),
    "success_rate": Field("Num", 1.0),
    "context": Field("Num", 0.0),
    "credits": Field("Num", 0.0),
    "has_tee": Field("Bool", False),
    "no_log": Field("Bool", False),
    "breaker_open": Field("Bool", False),
    "disabled": Field("Bool", False),
}


@dataclass(frozen=True)
class Schema:
    """The declared fields and the tier order, lowest first, that a policy is admitted against."""

    fields: Mapping[str, Field] = field(default_factory=lambda: _CORE_FIELDS)
    tiers: tuple[str, ...] = DEFAULT_TIERS

    @classmethod
    def declare(cls, declared: Mapping[str, Mapping[str, Any]], tiers: Sequence[str] | None = None) -> Schema:
        """Add a catalog's fields to the core ones.

        `declared` maps a name to {"sort": "Num" or "Bool", "default": a value of that sort}. Raises `ReplayError`
        where a declaration is malformed or redefines a core field.

        >>> Schema.declare({"bench_x": {"sort": "Num", "default": 0}}).fields["bench_x"]
        Field(sort='Num', default=0.0)
        """
        if not isinstance(declared, Mapping):
            raise ReplayError('the declared fields are no JSON object; expected {"name": {"sort", "default"}}')
        added = {name: _declared_field(name, declaration) for name, declaration in declared.items()}
        order = DEFAULT_TIERS if tiers is None else tuple(tiers)
        if not order or len(set(order)) < len(order) or not all(isinstance(tier, str) and tier for tier in order):
            raise ReplayError(f"tier order {order!r}; expected distinct names, lowest first; correct the list")
        return cls({**_CORE_FIELDS, **added}, order)

    @property
    def declared(self) -> dict[str, dict[str, Any]]:
        """What `declare` was given: the fields beyond the core ones."""
        return {
            name: {"sort": field.sort, "default": field.default}
            for name, field in self.fields.items()
            if name not in _CORE_FIELDS
        }

    def tier_rank(self, tier: str | None) -> int:
        """Return a tier's place in the order; none counts as `fallback`, an unknown one is below all.

        >>> CORE_SCHEMA.tier_rank("partner"), CORE_SCHEMA.tier_rank(None), CORE_SCHEMA.tier_rank("gold")
        (2, 0, -1)
        """
        name = tier_of(tier)
        return self.tiers.index(name) if name in self.tiers else -1


CORE_SCHEMA = Schema()


def tier_of(tier: str | None) -> str:
    """Return the tier that counts: a candidate without one is `fallback`."""
    return "fallback" if tier is None else tier


def observed(name: str, candidate: Candidate, state: State) -> float | bool | None:
    """Return what was observed of a candidate's field as a policy sees it, or None where it is absent."""
    if name == "context":
        context = candidate.capabilities.get("context")
        return context if isinstance(context, int | float) else None
    if name == "credits":
        return state.credits.get(candidate.provider_id)
    if name == "breaker_open":
        return candidate.provider_id in state.open_breakers
    if name == "disabled":
        return candidate.provider_id in state.disabled
    value = candidate.fields.get(name)
    if value is not None and name in ("price_in", "price_out"):
        return value * candidate.price_multiplier
    return value


def read(name: str, candidate: Candidate, state: State, schema: Schema) -> float | bool:
    """Return a field as the policy reads it: the observed value in the field's sort, else the default.

    >>> read("price_in", Candidate("p", "m", fields={"price_in": 3}, price_multiplier=0.5), State(), CORE_SCHEMA)
    1.5
    >>> read("success_rate", Candidate("p", "m"), State(), CORE_SCHEMA)
    1.0
    """
    declared = schema.fields[name]
    value = observed(name, candidate, state)
    if value is None:
        return declared.default
    return bool(value) if declared.sort == "Bool" else float(value)


def _declared_field(name: str, declaration: Mapping[str, Any]) -> Field:
    if not isinstance(name, str) or not name:
        raise ReplayError("a declared field has no name; expected a non-empty text; name it")
    if name in _CORE_FIELDS:
        raise ReplayError(f"field {name!r} is declared, but it is a core field; choose another name")
    sort = declaration.get("sort") if isinstance(declaration, Mapping) else None
    default = declaration.get("default") if isinstance(declaration, Mapping) else None
    if sort == "Bool" and isinstance(default, bool):
        return Field("Bool", default)
    if sort == "Num" and isinstance(default, int | float) and not isinstance(default, bool) and default == default:
        with suppress(OverflowError):  # an integer beyond every double
            return Field("Num", float(default))
    raise ReplayError(
        f'field {name!r} is not declared well; expected {{"sort": "Num" or "Bool", "default": a value of that sort}}; '
        "correct it"
    )
