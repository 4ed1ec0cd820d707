"""The signature of the policy language: which operation takes what, and which positions hold subterms.

This is data. Admission, normal form and encoding all read it, so that no value is ever inspected to find out
whether it is a term.
"""

from __future__ import annotations

from dataclasses import dataclass

TERM_SORTS = frozenset({"Pred", "Scorer", "Selector", "Xform", "FailPlan", "Policy"})
"""Positions of these sorts hold subterms; every other sort names a parameter."""

RELATIONS = ("lt", "le", "eq", "ne", "ge", "gt")
ACTIONS = ("retry_same", "next_candidate", "next_provider_same_model", "disable_provider", "abort")
DEFAULT_TIERS = ("fallback", "marketplace", "partner")

MAX_DEPTH = 64
MAX_NODES = 4096


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: the sort it makes and the sorts of its arguments (repeated one or more times if variadic)."""

    sort: str
    arguments: tuple[str, ...] = ()
    variadic: bool = False

    def argument_sort(self, position: int) -> str:
        """Return the sort expected at a position, counted from 1 as in paths.

        >>> SIGNATURE["cmp"].argument_sort(2), SIGNATURE["and"].argument_sort(9)
        ('Relation', 'Pred')
        """
        return self.arguments[0] if self.variadic else self.arguments[position - 1]


def _several(sort: str) -> Operation:
    return Operation(sort, (sort,), variadic=True)


SIGNATURE: dict[str, Operation] = {
    # Pred
    "top": Operation("Pred"),
    "bot": Operation("Pred"),
    "and": _several("Pred"),
    "or": _several("Pred"),
    "not": Operation("Pred", ("Pred",)),
    "meets_req": Operation("Pred"),
    "scope_matches": Operation("Pred"),
    "is": Operation("Pred", ("BoolField",)),
    "cmp": Operation("Pred", ("NumField", "Relation", "Num")),
    "tier_eq": Operation("Pred", ("Tier",)),
    "min_tier": Operation("Pred", ("Tier",)),
    "family_eq": Operation("Pred", ("Str",)),
    "provider_eq": Operation("Pred", ("Str",)),
    "served_by_eq": Operation("Pred", ("Str",)),
    "has_cap": Operation("Pred", ("Str",)),
    # Scorer
    "zero": Operation("Scorer"),
    "add": _several("Scorer"),
    "scale": Operation("Scorer", ("Num", "Scorer")),
    "gate": Operation("Scorer", ("Pred", "Scorer")),
    "neg": Operation("Scorer", ("Scorer",)),
    "normalize": Operation("Scorer", ("Scorer",)),
    "clamp": Operation("Scorer", ("Num", "Num", "Scorer")),
    "field": Operation("Scorer", ("NumField",)),
    "lit": Operation("Scorer", ("Num",)),
    # Selector
    "argmax": Operation("Selector"),
    "ordered": Operation("Selector"),
    "sample": Operation("Selector", ("Num",)),
    "chain": Operation("Selector", ("Chain",)),
    "top_k": Operation("Selector", ("Count", "Selector")),
    "prefer": Operation("Selector", ("Pred", "Selector")),
    # Xform
    "id": Operation("Xform"),
    "seq": _several("Xform"),
    "set_param": Operation("Xform", ("Str", "Scalar")),
    "inject_seed": Operation("Xform", ("Str",)),
    "clamp_param": Operation("Xform", ("Str", "Num", "Num")),
    "jitter": Operation("Xform", ("Str", "Num")),
    "filter_text": Operation("Xform", ("Recipe",)),
    "filter_image": Operation("Xform", ("Recipe",)),
    "custom": Operation("Xform", ("Str",)),
    "when": Operation("Xform", ("Pred", "Xform")),
    # FailPlan
    "always": Operation("FailPlan", ("Action",)),
    "override": Operation("FailPlan", ("FailPlan", "Str", "Action")),
    # Policy
    "policy": Operation("Policy", ("Pred", "Scorer", "Selector", "Xform", "FailPlan")),
}
