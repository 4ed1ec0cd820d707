"""What calls ask of the core, as tables: one row per distinct combination of program, requirements and credits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.core import CORE_SCHEMA, AdmissionError, Policy, Request
from replay.core.normal import frozen
from replay.kernel.program import Code, Names, Program, Records, assemble, compile_policy

NO_CREDITS = float(CORE_SCHEMA.fields["credits"].default)

NOT_ASKED = -1
ANY = -2
TEE_REQUIRED, NO_LOG = 1, 2
CAPABILITY_NEEDS = ("tools", "vision", "json_mode", "seed")


REQUEST = np.dtype(
    [
        ("min_context", "f8"),
        ("min_tok_s", "f8"),
        *((name, "i4") for name in ("program", "family", "tier", "scope", "privacy", "pin_provider", "pin_family")),
    ],
    align=True,
)
NEED = np.dtype([("column", "i4"), ("reason", "i4")])


class Asking(NamedTuple):
    """Requests as records; -1 stands for "not asked for" (nan in the numbers).

    `need` has a row per request: the columns of the capabilities asked for, in order, and the reasons that their lack
    refuses with, -1 after the last. `credits` has a row per request and a column per provider that any request knows
    credits of, the field's default where it knows none.
    """

    request: Records
    need: Records
    credits: NDArray[np.float64]


@dataclass
class Requests:
    """Collects what is asked, numbers it, and lays it out once all is known."""

    names: Names = field(default_factory=Names)
    providers: dict[str, int] = field(default_factory=dict)
    programs: list[Program] = field(default_factory=list)
    _programs: dict[tuple[str, str], int] = field(default_factory=dict)
    _rows: dict[str, int] = field(default_factory=dict)
    _asked: list[tuple[int, Request, Mapping[str, float]]] = field(default_factory=list)

    def number(self, policy: Policy, request: Request, credits: Mapping[str, float]) -> int:
        """Return the number of a combination, NOT_ASKED where the envelope is refused."""
        program = self._program(policy, request)
        if program == NOT_ASKED:
            return NOT_ASKED
        key = repr((program, request.needs, request.scope, frozen(request.requirements), sorted(credits.items())))
        if key not in self._rows:
            self._rows[key] = len(self._asked)
            self._asked.append((program, request, credits))
        return self._rows[key]

    def _program(self, policy: Policy, request: Request) -> int:
        key = (policy.identity, repr((policy.schema.declared, policy.schema.tiers, request.envelope)))
        if key not in self._programs:
            try:
                program = compile_policy(policy, request, self.names)
            except AdmissionError:
                self._programs[key] = NOT_ASKED
            else:
                self._programs[key] = len(self.programs)
                self.programs.append(program)
        return self._programs[key]

    def layout(self) -> tuple[Asking, Code]:
        """Return all requests and all programs as arrays; `names` then knows every column."""
        needs = [[need for need in request.needs if need in CAPABILITY_NEEDS] for _, request, _ in self._asked]
        number = {
            need: (self.names.column("cap", f"supports_{need}"), self.names.reason(f"missing_capability:{need}"))
            for need in CAPABILITY_NEEDS
        }
        need = np.full((len(needs), max([1, *map(len, needs)])), NOT_ASKED, dtype=NEED)
        for row, asked in enumerate(needs):
            for place, name in enumerate(asked):
                need[row, place] = number[name]
        request = np.array([self._record(program, one) for program, one, _ in self._asked], dtype=REQUEST)
        return Asking(request, need, self._credits()), assemble(self.programs, self.names)

    def _record(self, program: int, request: Request) -> tuple[float, ...]:
        asked = request.requirements
        pin = request.pin or (None, None)
        return (
            *(np.nan if asked.get(name) is None else float(asked[name]) for name in ("min_context", "min_tok_s")),
            program,
            *(self._text(asked.get(name)) for name in ("model_family", "tier")),
            ANY if request.scope is None else self.names.text(request.scope),
            {"tee_required": TEE_REQUIRED, "no_log": NO_LOG}.get(asked.get("privacy") or "", 0),
            *(self._text(part) for part in pin),
        )

    def _text(self, text: str | None) -> int:
        return NOT_ASKED if text is None else self.names.text(text)

    def _credits(self) -> NDArray[np.float64]:
        for _, _, credits in self._asked:
            for provider in credits:
                self.providers.setdefault(provider, len(self.providers))
        table = np.full((len(self._asked), max(1, len(self.providers))), NO_CREDITS)
        for row, (_, _, credits) in enumerate(self._asked):
            for provider, value in credits.items():
                if value is not None:
                    table[row, self.providers[provider]] = float(value)
        return table
