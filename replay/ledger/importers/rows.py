"""Turns `source_rows` into `mapped_rows`: every target's values, the row's identity, and why a row cannot be used.

Everything is SQL, so a million rows take seconds. `mapped_rows` has, per source row, a column `target.column` for each
cell, `identity` (see `_identify`), `bad` (the number of the first unreadable cell, or null), and for each target
`reason.target` (why the row is not for it, or null).
"""

from __future__ import annotations

from collections.abc import Callable

import duckdb

from replay.errors import ReplayError
from replay.ledger.importers.convert import Cell, literal, quote
from replay.ledger.importers.files import ROW, SOURCE_ROWS, Source
from replay.ledger.importers.plan import Plan
from replay.ledger.importers.targets import Column, targets

MAPPED_ROWS = "mapped_rows"

_FIRST_IDENTITY = 1 << 62
_UNITS_PER_SECOND = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}
_EARLIEST_S, _LATEST_S = 1_420_070_400, 4_102_444_800  # 2015 and 2100, between which a ledger is expected to lie
_FILE_SHARE = 0.5


def map_rows(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    plan: Plan,
    *,
    reject_unreadable: bool,
    note: Callable[[str], None] = lambda _: None,
) -> None:
    """Fill `mapped_rows`. Raises ReplayError for an unreadable value (unless set aside) or a wrong unit."""
    note(f"converting {source.rows:,} rows")
    _convert(connection, plan)
    if not reject_unreadable:
        _refuse_unreadable(connection, source, plan)
    note("checking times")
    misplaced = _misplaced(connection, source, plan)
    note("identifying rows")
    _identify(connection, plan, misplaced)


def _cells(plan: Plan) -> list[tuple[str, str, Cell]]:
    return [(table, name, cell) for table, cells in plan.cells.items() for name, cell in cells.items()]


def column_of(table: str, name: str) -> str:
    """Return the quoted column of `mapped_rows` that holds a target's column."""
    return quote(f"{table}.{name}")


def _convert(connection: duckdb.DuckDBPyConnection, plan: Plan) -> None:
    cells = [cell for cell in _cells(plan) if not cell[2].is_row_id]
    values = [
        f"CAST({cell.value} AS {targets()[table].columns[name].sql_type}) AS {column_of(table, name)}"
        for table, name, cell in cells
    ]
    bad = " ".join(
        f"WHEN {cell.unreadable} THEN {index}" for index, (_, _, cell) in enumerate(_cells(plan)) if not cell.is_row_id
    )
    skips = [
        f"CASE {' '.join(f'WHEN {condition} THEN {literal(reason)}' for reason, condition in reasons)} END AS "
        + quote(f"skip.{table}")
        for table, reasons in plan.skipped.items()
    ]
    columns = ", ".join([ROW, *values, *skips, f"CASE {bad} END AS bad"])
    connection.execute(f"CREATE OR REPLACE TEMP TABLE converted_rows AS SELECT {columns} FROM {SOURCE_ROWS}")


def _refuse_unreadable(connection: duckdb.DuckDBPyConnection, source: Source, plan: Plan) -> None:
    found = connection.execute(
        f"SELECT {ROW}, bad, (SELECT count(*) FROM converted_rows WHERE bad IS NOT NULL) "
        f"FROM converted_rows WHERE bad IS NOT NULL ORDER BY {ROW} LIMIT 1"
    ).fetchone()
    if found is None:
        return
    row, bad, count = found
    table, name, cell = _cells(plan)[bad]
    value = "a value"
    if cell.source in source.columns:
        stored = source.columns[cell.source]
        got = connection.execute(f"SELECT {stored} FROM {SOURCE_ROWS} WHERE {ROW} = ?", [row]).fetchone()
        value = repr(got[0]) if got else value
    raise ReplayError(
        f"{source.path}, row {row} (the header not counted), column {cell.source}: {value} cannot be read as "
        f"{table}.{name}; expected {cell.expected}. {count:,} of {source.rows:,} rows hold such a value. "
        "Correct the file, or set such rows aside with --reject-unreadable. Nothing was imported."
    )


def _inside(value: str, units_per_second: int) -> str:
    return f"({value} BETWEEN {_EARLIEST_S * units_per_second} AND {_LATEST_S * units_per_second})"


def _instants(plan: Plan) -> list[tuple[str, Column]]:
    columns = [(table, targets()[table].columns[name]) for table, cells in plan.cells.items() for name in cells]
    return [(table, column) for table, column in columns if column.kind in ("s", "ms")]


def _misplaced(connection: duckdb.DuckDBPyConnection, source: Source, plan: Plan) -> dict[str, list[tuple[str, str]]]:
    """Refuse a file whose times are in another unit; return, by target, the reasons to reject single such rows.

    A time lies outside 2015 to 2100 in its own unit, yet inside in another. If that holds for half of a column or more,
    the whole file is in the wrong unit; a simulated ledger that starts at 0 fits no unit and is left alone.
    """
    misplaced: dict[str, list[tuple[str, str]]] = {}
    for table, column in _instants(plan):
        value = column_of(table, column.name)
        own = "seconds" if column.kind == "s" else "milliseconds"
        others = {unit: scale for unit, scale in _UNITS_PER_SECOND.items() if unit != own}
        outside = f"NOT {_inside(value, _UNITS_PER_SECOND[own])}"
        tests = {unit: f"({outside} AND {_inside(value, scale)})" for unit, scale in others.items()}
        counts = ", ".join(f"count(*) FILTER (WHERE {test})" for test in tests.values())
        row = connection.execute(f"SELECT count({value}), {counts}, min({value}) FROM converted_rows").fetchone()
        assert row is not None
        for unit, count in zip(tests, row[1:-1], strict=True):
            if count == 0:
                continue
            if count >= _FILE_SHARE * row[0]:
                raise ReplayError(
                    f"{source.path}: {table}.{column.name} was read as {own} (the smallest is {row[-1]}), but "
                    f"{count:,} of {row[0]:,} values only lie between 2015 and 2100 as {unit}. Convert the column "
                    f"to {own}, or say its unit in a mapping (as = …). Nothing was imported."
                )
            reason = f"{column.name} is not in {own}: it only makes sense as {unit}"
            misplaced.setdefault(table, []).append((reason, tests[unit]))
    return misplaced


def _canonical(table: str, column: Column) -> str:
    """Return a value as `target.column=length:text;`, nothing for null: null, empty and neighbours stay apart.

    Doubles are written with 17 significant digits, which every version writes alike.
    """
    value = column_of(table, column.name)
    text = f"format('{{:.17g}}', {value} + 0.0)" if column.kind == "double" else f"CAST({value} AS VARCHAR)"
    return f"coalesce('{table}.{column.name}=' || length({text}) || ':' || {text} || ';', '')"


def _identify(connection: duckdb.DuckDBPyConnection, plan: Plan, misplaced: dict[str, list[tuple[str, str]]]) -> None:
    """Give every row its identity: 2⁶² plus the low 62 bits of md5(md5(canonical values) + '#' + occurrence).

    The occurrence counts exact repeats of the values (1, 2, …), so that neither the order in the file nor chunks nor
    threads matter: repeats are interchangeable. A plan with an identity of its own has no repeats: they are one row.
    """
    chosen = plan.identity or tuple((table, name) for table, name, cell in _cells(plan) if not cell.is_row_id)
    parts = [_canonical(table, targets()[table].columns[name]) for table, name in chosen if name != "id"]
    digest = f"md5({' || '.join(parts)})"
    occurrence = "1" if plan.identity else "coalesce(occurrence, 1)"
    low = f"('0x' || right(md5(digest || '#' || {occurrence}), 16))::UBIGINT & {_FIRST_IDENTITY - 1}::UBIGINT"
    reasons = ", ".join(_reasons(plan, table, misplaced.get(table, [])) for table in plan.cells)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE digests AS SELECT {ROW}, {digest} AS digest FROM converted_rows")
    # Few rows have repeats: numbering only those spares a sort of the whole file.
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE repeats AS "
        f"SELECT {ROW}, row_number() OVER (PARTITION BY digest ORDER BY {ROW}) AS occurrence FROM digests "
        f"WHERE digest IN (SELECT digest FROM digests GROUP BY digest HAVING count(*) > 1)"
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE {MAPPED_ROWS} AS "
        f"SELECT * EXCLUDE (digest, occurrence), ({low})::BIGINT + {_FIRST_IDENTITY} AS identity, {reasons} "
        f"FROM converted_rows JOIN digests USING ({ROW}) LEFT JOIN repeats USING ({ROW})"
    )


def _reasons(plan: Plan, table: str, misplaced: list[tuple[str, str]]) -> str:
    cells = _cells(plan)
    cases = [
        (f"unreadable {cell.source}: expected {cell.expected}", f"bad = {index}")
        for index, (_, _, cell) in enumerate(cells)
        if not cell.is_row_id
    ]
    cases += [(reason, f"{quote(f'skip.{table}')} = {literal(reason)}") for reason, _ in plan.skipped.get(table, ())]
    cases += misplaced
    for reason, condition, columns in targets()[table].rejections:
        present = [name for name in columns if name in plan.cells[table] and not plan.cells[table][name].is_row_id]
        if not present:
            continue
        for name in columns:
            standing = column_of(table, name) if name in present else "NULL"
            condition = _replace_name(condition, name, standing)
        cases.append((reason, condition))
    body = " ".join(f"WHEN {condition} THEN {literal(reason)}" for reason, condition in cases)
    return f"CASE {body} END AS {quote(f'reason.{table}')}"


def _replace_name(condition: str, name: str, standing: str) -> str:
    return condition.replace("{" + name + "}", standing)
