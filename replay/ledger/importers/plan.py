"""What an import does with a source row: for each target, how every column it fills is computed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from replay.errors import ReplayError
from replay.ledger.importers.convert import EXPECTED, Cell, as_kind, filled
from replay.ledger.importers.targets import Column, Target, targets

MAPPINGS_PAGE = "docs/mappings.md"


@dataclass(frozen=True)
class Plan:
    """The cells of each target by target and column, in the order of `mirror.sql`.

    `label` is what `mirror_imports` calls it. `identity` names the cells that identify a row without an id, as
    (target, column); None: all of them, and the number of the occurrence. `skipped` gives targets further reasons
    to leave a row out, as (reason, SQL condition over `source_rows`).
    """

    label: str
    cells: dict[str, dict[str, Cell]]
    identity: tuple[tuple[str, str], ...] | None = None
    skipped: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)


def plain_cell(source: str, name: str, column: Column) -> Cell:
    """Return the cell for a source column that already has the target's type and unit."""
    if column.kind == "text":
        return Cell(source, source=name)
    text = filled(source)
    value = as_kind(text, column.kind)
    return Cell(value, f"({text} IS NOT NULL AND ({value}) IS NULL)", name, EXPECTED[column.kind])


def native_plan(table: str, columns: dict[str, str], file: str) -> Plan:
    """Return the plan for a file whose columns are those of `table`; refuse missing and unknown ones."""
    target = targets()[table]
    missing = [column.describe() for column in target.required if column.name not in columns]
    if table == "route_observations" and not {"provider_id", "model_family"} & columns.keys():
        missing.append("provider_id or model_family (the route)")
    unknown = [name for name in columns if name not in target.columns]
    if missing or unknown:
        raise ReplayError(_misfit(target, file, missing, unknown, list(columns)))
    cells = {
        column.name: plain_cell(columns[column.name], column.name, column)
        for column in target.columns.values()
        if column.name in columns
    }
    return Plan("native", {table: cells})


def _misfit(target: Target, file: str, missing: list[str], unknown: list[str], given: list[str]) -> str:
    parts = [f"{file} is no {target.name} table."]
    if missing:
        parts.append(f"Missing: {', '.join(missing)}.")
    if unknown:
        parts.append(f"Unknown: {', '.join(with_nearest(unknown, target.columns))}.")
    parts.append(f"The file has {', '.join(given)}; expected columns of {', '.join(target.columns)}.")
    parts.append(f"Rename the columns, or say what they mean in a mapping ({MAPPINGS_PAGE}). Nothing was imported.")
    return " ".join(parts)


def with_nearest(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return each name, with the nearest known one where there is one.

    >>> with_nearest(["provider", "zzz"], ["provider_id", "ts"])
    ['provider (did you mean provider_id?)', 'zzz']
    """
    choices = list(known)
    said = []
    for name in names:
        near = difflib.get_close_matches(name, choices, n=1)
        said.append(f"{name} (did you mean {near[0]}?)" if near else name)
    return said
