"""An admitted policy: its term, normal form, encoding and identity, and what it does on each failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from replay.core.admission import check_term
from replay.core.encoding import encode, identity
from replay.core.fields import CORE_SCHEMA, Schema
from replay.core.normal import Term, normal_form


@dataclass(frozen=True, slots=True)
class Action:
    """What to do on a failure. `attempts` bounds the retries; `backoff_ms` is one wait or one per retry."""

    action: str
    then_action: str | None = None
    attempts: float = 1
    backoff_ms: float | tuple[float, ...] = 0
    open_breaker_ms: float | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Action:
        """Read an admitted Action record; keys without a meaning here are ignored."""
        return cls(
            record["action"],
            record.get("then_action"),
            record.get("attempts", 1),
            record.get("backoff_ms", 0),
            record.get("open_breaker_ms"),
        )

    def backoff_before(self, retry: int) -> float:
        """Return the wait in ms before a retry, counted from 1; the last entry of an array repeats.

        >>> action = Action("retry_same", backoff_ms=(200, 600))
        >>> [action.backoff_before(retry) for retry in (1, 2, 3)], Action("retry_same", backoff_ms=()).backoff_before(1)
        ([200, 600, 600], 0)
        """
        if not isinstance(self.backoff_ms, tuple):
            return self.backoff_ms
        return self.backoff_ms[min(retry, len(self.backoff_ms)) - 1] if self.backoff_ms else 0


@dataclass(frozen=True, eq=False)
class Policy:
    """An admitted policy; made by `admit` only. Compare policies by `identity`."""

    term: Any
    schema: Schema
    normal: Term
    encoding: str
    identity: str
    base_action: Action = field(repr=False)
    overrides: Mapping[str, Action] = field(repr=False)

    @property
    def filter(self) -> Term:
        """The normal form's Pred."""
        return tuple(self.normal[1])

    @property
    def scorer(self) -> Term:
        """The normal form's Scorer."""
        return tuple(self.normal[2])

    @property
    def selector(self) -> Term:
        """The normal form's Selector."""
        return tuple(self.normal[3])

    def action(self, error_kind: str | None) -> Action:
        """Return the Action for a failure of this kind: its override, else the one for `always`."""
        return self.base_action if error_kind is None else self.overrides.get(error_kind, self.base_action)


def admit(term: Any, schema: Schema = CORE_SCHEMA) -> Policy:
    """Admit a policy term (JSON arrays, or nested tuples) and return it with its normal form and identity.

    Raises `AdmissionError`, whose message starts with the path, for whatever is not a policy of this schema.

    >>> policy = admit(["policy", ["and", ["top"]], ["lit", 1.0], ["argmax"], ["id"], ["always", {"action": "abort"}]])
    >>> policy.encoding
    'sigma-pol/v2:(policy (top) (lit 1) (argmax) (id) (always {"action":"abort"}))'
    """
    check_term(term, "Policy", schema)
    normal = normal_form(term)
    encoding = encode(normal)
    overrides: dict[str, Action] = {}
    plan = normal[5]
    while plan[0] == "override":
        _, plan, kind, record = plan
        overrides[kind] = Action.from_record(record)
    return Policy(term, schema, normal, encoding, identity(encoding), Action.from_record(plan[1]), overrides)


def admit_pred(term: Any, schema: Schema = CORE_SCHEMA) -> Term:
    """Admit a Pred, for example a host's envelope, and return its normal form.

    >>> admit_pred(["or", ["bot"], ["is", "no_log"]])
    ('is', 'no_log')
    """
    check_term(term, "Pred", schema)
    return normal_form(term)
