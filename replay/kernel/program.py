"""A policy in normal form as flat instructions: what a compiled loop needs, with no term left in it.

A Pred becomes postfix instructions over vectors of truth, one entry per candidate; the filter a list of clauses, whose
first failing one gives the reason. A Scorer becomes postfix instructions over vectors of scores of the survivors.
Every part that reads no measurement is split off: it is evaluated when the survivors change, not per decision.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.core import CORE_SCHEMA, Policy, Schema
from replay.core.candidates import Request
from replay.core.normal import Term
from replay.core.planning import narrowed

RATE, LATENCY, HEALTH, TOOLS, HOT, RATE_CROSSED, LATENCY_CROSSED = 1, 2, 4, 8, 16, 32, 64
"""What an instruction depends on beside the offers and the request; a set of bits.

A comparison of a measurement with a bound changes only when the measurement crosses the bound, which is seldom.
"""

MEASURED = RATE | LATENCY
CROSSED = RATE_CROSSED | LATENCY_CROSSED
ANYTHING = MEASURED | HEALTH | TOOLS | HOT | CROSSED

# Where a field's values come from.
COLUMN, FROM_RATE, FROM_LATENCY, FROM_OPEN, FROM_DISABLED, FROM_CREDITS, FROM_HOT = range(7)
SOURCES = 7

# Pred instructions: (operation, a, b, x).
TRUE, FALSE, COMPARE, IDENTITY, CAN_TOOLS, SCOPE, MEETS, NOT, AND, OR = range(10)

# Scorer instructions.
LITERAL, FIELD, SCALE, NEGATE, NORMALIZE, CLAMP, GATE, ADD, ADD_ZERO, PUSH, ADD_STATIC, STORE = range(20, 32)

# Selectors, and what may stand around them.
ARGMAX, ORDERED, SAMPLE, CHAIN = range(40, 44)
TOP_K, PREFER = range(50, 52)

RELATIONS = {"lt": 0, "le": 1, "eq": 2, "ne": 3, "ge": 4, "gt": 5}
IDENTITIES = {"provider_eq": 0, "family_eq": 1, "served_by_eq": 2, "tier_eq": 3}

Records = Any
"""An array of records (a NumPy structured array): compiled code reads their fields as attributes."""

ColumnKey = tuple[Hashable, ...]
"""What a static column holds: ("field", name, default), ("cap", name), ("tier_rank", tiers) or ("chain", entries)."""


class Instruction(NamedTuple):
    """One step; the meaning of `a`, `b` and `x` is the operation's."""

    operation: int
    a: int = 0
    b: int = 0
    x: float = 0.0
    y: float = 0.0


@dataclass
class Piece:
    """Instructions that belong together, what they depend on, and (a clause) the reason it refuses with."""

    steps: list[Instruction]
    needs: int
    reason: str | None = None


@dataclass
class Program:
    """One policy with one envelope. `preds` are the predicates that gates and preferences refer to by number."""

    clauses: list[Piece] = field(default_factory=list)
    preds: list[Piece] = field(default_factory=list)
    statics: list[Piece] = field(default_factory=list)
    scorer: Piece = field(default_factory=lambda: Piece([], 0))
    selector: int = ARGMAX
    temperature: float = 0.0
    chain_column: int = -1
    hot_column: int = -1
    classes: list[int] = field(default_factory=list)  # preds of preferences right around argmax, outermost first
    wrappers: list[tuple[int, int]] = field(default_factory=list)  # (TOP_K, k) or (PREFER, pred), innermost first


REFUSALS = ("min_context", "model_family", "tier", "tee_required", "no_log", "min_tok_s")
"""What `meets_req` refuses with beside missing capabilities; their numbers are known to compiled code."""

TOO_SHORT, OTHER_FAMILY, OTHER_TIER, NO_TEE, LOGS, TOO_SLOW = range(1, 7)
CONTEXT, TOK_S, HAS_TEE, LOGS_NOTHING, SUPPORTS_TOOLS = range(5)
"""Columns that requirements read."""


class Names:
    """Numbers for texts, columns and reasons, handed out as they are met; some are fixed."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        self.columns: dict[ColumnKey, int] = {}
        self.reasons: dict[str, int] = {}
        self.bounds: dict[tuple[int, int, float], int] = {}  # (source, relation, bound) that measurements are held to
        for reason in ("", *REFUSALS):
            self.reason(reason)
        for name in ("context", "tok_s", "has_tee", "no_log"):
            declared = CORE_SCHEMA.fields[name]
            self.column("field", name, declared.sort, declared.default)
        self.column("cap", "supports_tools")

    def text(self, text: str) -> int:
        """Return the number of a text: provider, family, server, tier, scope or route key, all in one space."""
        return self.texts.setdefault(text, len(self.texts))

    def column(self, *key: Hashable) -> int:
        """Return the number of a static column."""
        return self.columns.setdefault(key, len(self.columns))

    def reason(self, text: str) -> int:
        """Return the number of a reason; 0 is none."""
        return self.reasons.setdefault(text, len(self.reasons))


def compile_policy(policy: Policy, request: Request, names: Names) -> Program:
    """Compile a policy, narrowed by the request's envelope; raises AdmissionError where that is no Pred.

    >>> from replay.core import admit
    >>> term = ["policy", ["cmp", "price_in", "le", 5], ["field", "success_rate"], ["argmax"], ["id"],
    ...         ["always", {"action": "abort"}]]
    >>> made = compile_policy(admit(term), Request(), Names())
    >>> [piece.reason for piece in made.clauses], made.scorer.needs == RATE
    (['cmp:price_in:le'], True)
    """
    return _Compiler(policy.schema, names).compile(narrowed(policy, request), policy.scorer, policy.selector)


class _Compiler:
    def __init__(self, schema: Schema, names: Names) -> None:
        self.schema = schema
        self.names = names
        self.made = Program()

    def compile(self, pred: Term, scorer: Term, selector: Term) -> Program:
        for clause in pred[1:] if pred[0] == "and" else (pred,):
            if clause[0] != "top":
                self.made.clauses.append(self._pred(clause, _reason(clause)))
        self._selector(selector)
        steps: list[Instruction] = []
        needs = self._score(scorer, steps)
        self.made.scorer = Piece(steps, needs)
        return self.made

    # Pred

    def _pred(self, pred: Term, reason: str | None = None) -> Piece:
        steps: list[Instruction] = []
        return Piece(steps, self._truth(pred, steps), reason)

    def _truth(self, pred: Term, steps: list[Instruction]) -> int:
        """Append the instructions of a Pred and return what they depend on."""
        op = pred[0]
        if op in ("and", "or", "not"):
            needs = self._truth(pred[1], steps)
            for child in pred[2:]:
                needs |= self._truth(child, steps)
                steps.append(Instruction(AND if op == "and" else OR))
            if op == "not":
                steps.append(Instruction(NOT))
            return needs
        step, needs = self._leaf(pred)
        steps.append(step)
        return needs

    def _leaf(self, pred: Term) -> tuple[Instruction, int]:
        op = pred[0]
        if op == "is":
            source, column, needs = self._source(pred[1])
            return Instruction(COMPARE, source, column, 0.0, RELATIONS["ne"]), needs
        if op == "cmp":
            source, column, needs = self._source(pred[1])
            bound, relation = float(pred[3]), RELATIONS[pred[2]]
            if needs & MEASURED:
                self.names.bounds.setdefault((source, relation, bound), len(self.names.bounds))
                needs = RATE_CROSSED if source == FROM_RATE else LATENCY_CROSSED
            return Instruction(COMPARE, source, column, bound, relation), needs
        if op == "min_tier":
            column = self.names.column("tier_rank", self.schema.tiers)
            least = float(self.schema.tier_rank(pred[1]))
            return Instruction(COMPARE, COLUMN, column, least, RELATIONS["ge"]), 0
        if op == "has_cap":
            column = self.names.column("cap", pred[1])
            tools = pred[1] == "supports_tools"
            return (
                (Instruction(CAN_TOOLS), TOOLS)
                if tools
                else (Instruction(COMPARE, COLUMN, column, 0.0, RELATIONS["ne"]), 0)
            )
        if op in IDENTITIES:
            return Instruction(IDENTITY, IDENTITIES[op], self.names.text(pred[1])), 0
        return Instruction({"top": TRUE, "bot": FALSE, "scope_matches": SCOPE, "meets_req": MEETS}[op]), (
            TOOLS if op == "meets_req" else 0
        )

    def _source(self, name: str) -> tuple[int, int, int]:
        """Return where a field is read from: the source, its column, and what that depends on."""
        measured = {
            "success_rate": (FROM_RATE, RATE),
            "latency_ms": (FROM_LATENCY, LATENCY),
            "breaker_open": (FROM_OPEN, HEALTH),
            "disabled": (FROM_DISABLED, HEALTH),
        }
        if name in measured:
            source, needs = measured[name]
            return source, -1, needs
        default = self.schema.fields[name].default
        if name == "credits":
            return FROM_CREDITS, -1, 0
        column = self.names.column("field", name, self.schema.fields[name].sort, default)
        if name == "cache_hot":
            self.made.hot_column = column
            return FROM_HOT, column, HOT
        return COLUMN, column, 0

    def _named_pred(self, pred: Term) -> tuple[int, int]:
        piece = self._pred(pred)
        self.made.preds.append(piece)
        return len(self.made.preds) - 1, piece.needs

    # Scorer

    def _score(self, scorer: Term, steps: list[Instruction]) -> int:
        """Append the instructions of a Scorer and return what they depend on; static parts go apart."""
        op = scorer[0]
        if op in ("zero", "lit"):
            steps.append(Instruction(LITERAL, x=float(scorer[1]) if op == "lit" else 0.0))
            return 0
        if self._depends(scorer) == 0:
            steps.append(Instruction(PUSH, self._static(scorer)))
            return 0
        if op == "add":
            return self._add(scorer, steps)
        return self._plain(scorer, steps, self._score)

    def _plain(self, scorer: Term, steps: list[Instruction], inner: Callable[[Term, list[Instruction]], int]) -> int:
        """Append a Scorer that is no sum; `inner` appends its subterm."""
        op = scorer[0]
        if op == "field":
            source, column, needs = self._source(scorer[1])
            steps.append(Instruction(FIELD, source, column))
            return needs
        needs = inner(scorer[-1], steps)
        if op == "scale":
            steps.append(Instruction(SCALE, x=float(scorer[1])))
        elif op == "neg":
            steps.append(Instruction(NEGATE))
        elif op == "normalize":
            steps.append(Instruction(NORMALIZE))
        elif op == "clamp":
            steps.append(Instruction(CLAMP, x=float(scorer[1]), y=float(scorer[2])))
        else:
            pred, more = self._named_pred(scorer[1])
            steps.append(Instruction(GATE, len(self.made.clauses) + pred))
            needs |= more
        return needs

    def _add(self, scorer: Term, steps: list[Instruction]) -> int:
        """A sum in child order; what comes before the first measured child is one static part."""
        children = list(scorer[1:])
        first = next(place for place, child in enumerate(children) if self._depends(child))
        if first:
            steps.append(Instruction(PUSH, self._static(("add", *children[:first]))))
            needs = 0
        else:
            needs = self._score(children[0], steps)
            steps.append(Instruction(ADD_ZERO))
            first = 1
        for child in children[first:]:
            if self._depends(child):
                needs |= self._score(child, steps)
                steps.append(Instruction(ADD))
            else:
                steps.append(Instruction(ADD_STATIC, self._static(child)))
        return needs

    def _static(self, scorer: Term) -> int:
        steps: list[Instruction] = []
        self._whole(scorer, steps)
        number = len(self.made.statics)
        steps.append(Instruction(STORE, number))
        self.made.statics.append(Piece(steps, 0))
        return number

    def _whole(self, scorer: Term, steps: list[Instruction]) -> int:
        """Append a Scorer with nothing split off, and return what it depends on."""
        op = scorer[0]
        if op in ("zero", "lit"):
            return self._score(scorer, steps)
        if op != "add":
            return self._plain(scorer, steps, self._whole)
        needs = 0
        for place, child in enumerate(scorer[1:]):
            needs |= self._whole(child, steps)
            steps.append(Instruction(ADD if place else ADD_ZERO))
        return needs

    def _depends(self, term: Term) -> int:
        """What a Scorer depends on, with nothing emitted."""
        return _Compiler(self.schema, self.names)._whole(term, [])

    # Selector

    def _selector(self, selector: Term) -> None:
        around: list[tuple[int, int]] = []
        while selector[0] in ("prefer", "top_k"):
            if selector[0] == "prefer":
                around.append((PREFER, self._named_pred(selector[1])[0]))
            else:
                around.append((TOP_K, min(int(selector[1]), 2**31 - 1)))
            selector = selector[2]
        self.made.selector = {"argmax": ARGMAX, "ordered": ORDERED, "sample": SAMPLE, "chain": CHAIN}[selector[0]]
        if selector[0] == "sample":
            self.made.temperature = max(float(selector[1]), 0.0)
        if selector[0] == "chain":
            self.made.chain_column = self.names.column("chain", chain_places(selector[1]))
        around.reverse()
        if selector[0] == "argmax":
            while around and around[0][0] == PREFER and len(self.made.classes) < MOST_CLASSES:
                self.made.classes.insert(0, around.pop(0)[1])
        self.made.wrappers = around


MOST_CLASSES = 30
"""Preferences that fit into one sort key; those beyond are applied one by one."""


def chain_places(chain: Iterable[Mapping[str, str]]) -> tuple[tuple[str, str, int], ...]:
    """Return (provider, family, place) of a chain's entries, a pair listed twice at its last place."""
    places: dict[tuple[str, str], int] = {}
    for place, entry in enumerate(chain, start=1):
        provider = entry["provider"] if "provider" in entry else entry["provider_id"]
        family = entry["model"] if "model" in entry else entry["model_family"]
        places[provider, family] = place
    return tuple((provider, family, place) for (provider, family), place in places.items())


def _reason(clause: Term) -> str | None:
    """Return what a clause refuses with; None where it depends on the candidate (`meets_req`)."""
    op = clause[0]
    named = {
        "tier_eq": "tier",
        "family_eq": "model_family",
        "provider_eq": "provider_id",
        "served_by_eq": "served_by",
        "scope_matches": "scope",
    }
    if op == "meets_req":
        return None
    if op == "is":
        return f"is:{clause[1]}"
    if op == "cmp":
        return f"cmp:{clause[1]}:{clause[2]}"
    if op == "has_cap":
        return f"missing_capability:{clause[1]}"
    return named.get(op, str(op))


# All programs of a run as arrays


STEP = np.dtype([("op", "i4"), ("a", "i4"), ("b", "i4"), ("x", "f8"), ("y", "f8")], align=True)
PIECE = np.dtype([("lo", "i8"), ("hi", "i8"), ("needs", "i4"), ("reason", "i4")], align=True)
PROGRAM = np.dtype(
    [
        *((name, "i8") for name in ("clause", "pred", "static", "scorer")),  # where each begins
        *((f"{name}_{end}", "i8") for name in ("class", "wrap") for end in ("lo", "hi")),
        ("needs", "i4"),
        ("hot_column", "i4"),
        ("selector", "i4"),
        ("chain_column", "i4"),
        ("order_needs", "i4"),
        ("temperature", "f8"),
    ],
    align=True,
)
BOUND = np.dtype([("source", "i8"), ("relation", "i8"), ("x", "f8")])
WRAP = np.dtype([("kind", "i8"), ("value", "i8")])


class Code(NamedTuple):
    """All programs end to end, as records.

    A piece has the steps `lo` to `hi`. A program's pieces are its clauses, its named preds, its statics and its scorer,
    in that order; a pred's number counts from the first clause. Preferences are spans of `class_pred` and `wrap`.
    `needs` is what any piece depends on, `order_needs` what the order depends on beside survivors and scores. `bound`
    are the bounds that any program holds a measurement to.
    """

    step: Records
    piece: Records
    program: Records
    class_pred: NDArray[np.int64]
    wrap: Records
    bound: Records


def assemble(programs: list[Program], names: Names) -> Code:
    """Lay programs end to end."""
    pieces: list[Piece] = []
    rows: list[tuple[float, ...]] = []
    class_pred: list[int] = []
    wraps: list[tuple[int, int]] = []
    for program in programs:
        clause = len(pieces)
        pred = clause + len(program.clauses)
        static = pred + len(program.preds)
        scorer = static + len(program.statics)
        mine = [*program.clauses, *program.preds, *program.statics, program.scorer]
        pieces += mine
        around = [*program.classes, *(value for kind, value in program.wrappers if kind == PREFER)]
        order_needs = int(np.bitwise_or.reduce([0, *(program.preds[number].needs for number in around)]))
        needs = int(np.bitwise_or.reduce([piece.needs for piece in mine]))
        first = len(program.clauses)  # a named pred's number, in the program
        classes, wrapped = len(class_pred), len(wraps)
        class_pred += [first + number for number in program.classes]
        wraps += [(kind, first + value if kind == PREFER else value) for kind, value in program.wrappers]
        rows.append(
            (
                *(clause, pred, static, scorer, classes, len(class_pred), wrapped, len(wraps)),
                *(needs, program.hot_column, program.selector, program.chain_column, order_needs),
                program.temperature,
            )
        )
    steps = [step for piece in pieces for step in piece.steps]
    ends = np.cumsum([len(piece.steps) for piece in pieces]).tolist()
    return Code(
        step=np.array([tuple(step) for step in steps], dtype=STEP),
        piece=np.array(
            [
                (end - len(piece.steps), end, piece.needs, -1 if piece.reason is None else names.reason(piece.reason))
                for piece, end in zip(pieces, ends, strict=True)
            ],
            dtype=PIECE,
        ),
        program=np.array(rows, dtype=PROGRAM),
        class_pred=np.array(class_pred, dtype=np.int64),
        wrap=np.array(wraps, dtype=WRAP),
        bound=np.array(list(names.bounds), dtype=BOUND),
    )
