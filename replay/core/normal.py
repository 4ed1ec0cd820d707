"""The normal form: nested tuples, children normalised before their parent, and nothing beyond the page's rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replay.core.encoding import encode_term, encode_value
from replay.core.signature import SIGNATURE, TERM_SORTS

Term = tuple[Any, ...]

_UNIT: dict[str, Term] = {"and": ("top",), "or": ("bot",), "add": ("zero",), "seq": ("id",)}
_ABSORBING: dict[str, Term] = {"and": ("bot",), "or": ("top",)}
_TOP, _BOT, _ZERO = ("top",), ("bot",), ("zero",)


def normal_form(term: Any) -> Term:
    """Return the normal form of an admitted term of any sort.

    >>> normal_form(["and", ["top"], ["and", ["is", "no_log"], ["not", ["not", ["is", "has_tee"]]]]])
    ('and', ('is', 'has_tee'), ('is', 'no_log'))
    """
    return _normal(term, _Texts())


class _Texts:
    """The encodings of the normal subterms of one term, each made once.

    Sorting asks for them at every level; making them anew each time would cost depth × size. The subterm is kept
    beside its text, so that its id cannot be given to another.
    """

    def __init__(self) -> None:
        self._made: dict[int, tuple[Term, str]] = {}

    def __call__(self, term: Term) -> str:
        made = self._made.get(id(term))
        if made is None:
            made = self._made[id(term)] = (term, encode_term(term, self))
        return made[1]


def _normal(term: Any, texts: _Texts) -> Term:
    op, *arguments = term
    operation = SIGNATURE[op]
    if operation.sort == "FailPlan":
        return _fail_plan(term)
    children = [
        _normal(argument, texts) if operation.argument_sort(position) in TERM_SORTS else frozen(argument)
        for position, argument in enumerate(arguments, start=1)
    ]
    if operation.variadic:
        return _associative(op, children, texts)
    return _simplified((op, *children))


def frozen(value: Any) -> Any:
    """Return a parameter as the normal form keeps it: arrays as tuples, records copied with their keys in order.

    Numbers stay as given (minus zero too), but integers that no double holds exactly become the double they encode as.
    """
    if isinstance(value, Mapping):
        return {key: frozen(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return tuple(frozen(item) for item in value)
    if isinstance(value, int) and abs(value) > 2**53:
        return float(value)
    return value


def _associative(op: str, children: list[Term], texts: _Texts) -> Term:
    """Flatten, drop units, collapse on the absorbing element, and sort (`seq` keeps its order)."""
    flat: list[Term] = []
    for child in children:
        flat.extend(child[1:] if child[0] == op else (child,))
    if op in _ABSORBING and _ABSORBING[op] in flat:
        return _ABSORBING[op]
    kept = [child for child in flat if child != _UNIT[op]]
    if not kept:
        return _UNIT[op]
    if len(kept) == 1:
        return kept[0]
    return (op, *(kept if op == "seq" else sorted(kept, key=texts)))


def _simplified(term: Term) -> Term:
    """Apply the one-step rules to a term whose children are normal."""
    match term:
        case ("not", ("not", inner)) | ("scale", 1, inner):
            return tuple(inner)
        case ("not", ("top",)):
            return _BOT
        case ("not", ("bot",)):
            return _TOP
        case ("scale", 0, _) | ("scale", _, ("zero",)) | ("gate", ("bot",), _) | ("gate", _, ("zero",)):
            return _ZERO
        case ("gate", ("top",), inner) | ("normalize", ("normalize", _) as inner):
            return tuple(inner)
    return term


def _fail_plan(plan: Any) -> Term:
    """`always(base)`, then overrides by error kind, the smallest innermost; the outermost of a kind wins."""
    overrides: dict[str, Any] = {}
    while plan[0] == "override":
        _, plan, kind, action = plan
        overrides.setdefault(kind, frozen(action))
    base = frozen(plan[1])
    normal: Term = ("always", base)
    for kind in sorted(overrides):
        if encode_value(overrides[kind]) != encode_value(base):
            normal = ("override", normal, kind, overrides[kind])
    return normal
