"""Admission: the total check that comes before anything runs.

Whatever JSON arrives, the answer is yes or one `AdmissionError` naming the path and the reason. The recursion is
bounded by the depth limit, and no unbounded value is ever printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from replay.core.fields import Schema
from replay.core.signature import ACTIONS, MAX_DEPTH, MAX_NODES, RELATIONS, SIGNATURE, TERM_SORTS
from replay.errors import ReplayError


class AdmissionError(ReplayError):
    """A term that is refused; the message starts with the path (`$.policy[1].and[2]: …`)."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def check_term(term: Any, sort: str, schema: Schema) -> None:
    """Admit `term` as a term of `sort`, or raise `AdmissionError`.

    >>> from replay.core.fields import CORE_SCHEMA
    >>> check_term(["not", ["cmp", "price", "le", 5]], "Pred", CORE_SCHEMA)
    Traceback (most recent call last):
    replay.core.admission.AdmissionError: $.not[1].cmp[1]: undeclared field 'price'
    """
    _Admission(schema).term(term, sort, "$", 1)


class _Admission:
    """One admission: it carries the schema and counts the nodes."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.nodes = 0

    def term(self, term: Any, sort: str, path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise AdmissionError(path, f"term exceeds max depth {MAX_DEPTH}")
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise AdmissionError(path, f"term exceeds max size {MAX_NODES} nodes")
        if not isinstance(term, list | tuple) or not term:
            raise AdmissionError(path, f"expected a {sort} term [op, …], got {_kind(term)}")
        op, *arguments = term
        if not isinstance(op, str):
            raise AdmissionError(path, f"expected an operation's name first, got {_kind(op)}")
        operation = SIGNATURE.get(op)
        if operation is None:
            raise AdmissionError(path, f"unknown op {_quoted(op)}")
        if operation.sort != sort:
            raise AdmissionError(path, f"expected a {sort}, got {op} which is a {operation.sort}")
        if operation.variadic and not arguments:
            raise AdmissionError(path, f"{op} needs at least one argument")
        if not operation.variadic and len(arguments) != len(operation.arguments):
            raise AdmissionError(path, f"{op} takes {len(operation.arguments)} argument(s), got {len(arguments)}")
        for position, argument in enumerate(arguments, start=1):
            expected = operation.argument_sort(position)
            place = f"{path}.{op}[{position}]"
            if expected in TERM_SORTS:
                self.term(argument, expected, place, depth + 1)
            else:
                reason = _PARAMETERS[expected](argument, self.schema)
                if reason is not None:
                    raise AdmissionError(place, reason)


# Each parameter check returns the reason for refusing the value, or None.


def _num(value: Any, schema: Schema) -> str | None:
    return None if is_finite_number(value) else "expected a finite number"


def _count(value: Any, schema: Schema) -> str | None:
    whole = is_finite_number(value) and value >= 1 and value == math.floor(value)
    return None if whole else "expected an integer of at least 1"


def _str(value: Any, schema: Schema) -> str | None:
    return None if is_text(value) else "expected a string"


def _scalar(value: Any, schema: Schema) -> str | None:
    fine = isinstance(value, bool) or is_text(value) or is_finite_number(value)
    return None if fine else "expected a string, a boolean or a finite number"


def _tier(value: Any, schema: Schema) -> str | None:
    if not is_text(value):
        return "expected a tier's name"
    return None if value in schema.tiers else f"unknown tier {_quoted(value)}"


def _relation(value: Any, schema: Schema) -> str | None:
    known = isinstance(value, str) and value in RELATIONS
    return None if known else f"expected a relation ({'|'.join(RELATIONS)})"


def _field_of(sort: str) -> Callable[[Any, Schema], str | None]:
    def check(value: Any, schema: Schema) -> str | None:
        if not is_text(value):
            return "expected a field's name"
        declared = schema.fields.get(value)
        if declared is None:
            return f"undeclared field {_quoted(value)}"
        return None if declared.sort == sort else f"field {_quoted(value)} is {declared.sort}, expected {sort}"

    return check


def _action(value: Any, schema: Schema) -> str | None:
    if not isinstance(value, Mapping):
        return f"expected an Action record, got {_kind(value)}"
    if "action" not in value:
        return "Action.action is missing"
    for key in ("action", "then_action"):
        if key in value and (not isinstance(value[key], str) or value[key] not in ACTIONS):
            return f"Action.{key} invalid: {_shown(value[key])}"
    for key, knob in value.items():
        if not is_text(key):
            return "Action has a key that is no text"
        if key in ("action", "then_action") or is_finite_number(knob):
            continue
        if key != "backoff_ms":
            return f"Action key {_quoted(key)} must map to a finite number"
        if not isinstance(knob, list | tuple) or not all(is_finite_number(step) for step in knob):
            return "Action key 'backoff_ms' must map to a finite number or an array of them"
    return None


_CHAIN_KEYS = (("provider", "provider_id"), ("model", "model_family"))


def _chain(value: Any, schema: Schema) -> str | None:
    if not isinstance(value, list | tuple):
        return f"expected a Chain (an array of records), got {_kind(value)}"
    for position, entry in enumerate(value, start=1):
        place = f"Chain[{position}]"
        if not isinstance(entry, Mapping):
            return f"{place}: expected a record, got {_kind(entry)}"
        for key in entry:
            if not isinstance(key, str) or not any(key in names for names in _CHAIN_KEYS):
                return f"{place}: unknown key {_shown(key, quote=True)}"
            if not is_text(entry[key]):
                return f"{place}: {key} must be a string"
        for names in _CHAIN_KEYS:
            present = sum(name in entry for name in names)
            if present != 1:
                return f"{place}: {'missing' if present == 0 else 'both'} {' or '.join(names)}, expected exactly one"
    return None


def _recipe(value: Any, schema: Schema) -> str | None:
    if not isinstance(value, list | tuple):
        return f"expected a Recipe (an array), got {_kind(value)}"
    for position, entry in enumerate(value, start=1):
        flat = isinstance(entry, Mapping) and all(is_text(k) and is_finite_number(v) for k, v in entry.items())
        if not flat and not is_text(entry):
            return f"Recipe[{position}]: expected a string or a flat record of finite numbers"
    return None


_PARAMETERS: dict[str, Callable[[Any, Schema], str | None]] = {
    "Num": _num,
    "Count": _count,
    "Str": _str,
    "Scalar": _scalar,
    "Tier": _tier,
    "Relation": _relation,
    "NumField": _field_of("Num"),
    "BoolField": _field_of("Bool"),
    "Action": _action,
    "Chain": _chain,
    "Recipe": _recipe,
}


def is_finite_number(value: Any) -> bool:
    """Tell whether a value is a number that a finite double can hold.

    >>> [is_finite_number(value) for value in (1, 2.5, True, float("inf"), 10**400, "1")]
    [True, True, False, False, False, False]
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every double
        return False


def is_text(value: Any) -> bool:
    """Tell whether a value is a string that can be written as UTF-8 (a lone surrogate cannot)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    """Name a value's JSON kind without printing it: it may be too deep or too long to print."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "a record"
    return ("an array" if value else "an empty array") if isinstance(value, list | tuple) else type(value).__name__


_SHOWN_CHARACTERS = 60


def _shown(value: Any, quote: bool = False) -> str:
    if not isinstance(value, str):
        return _kind(value)
    text = value.encode("utf-8", "replace").decode("utf-8")
    text = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
    return f"'{text}'" if quote else text


def _quoted(value: str) -> str:
    return _shown(value, quote=True)
