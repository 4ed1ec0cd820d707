"""The shared SQL: one file per query in `replay/sql/`, run byte for byte by production and by the workbench.

A query file is one statement with native positional parameters, `$1`, `$2`, …, that psycopg's `RawCursor` and DuckDB
both run as it stands. Its first line names it and its parameters, in order; the comment under it is its documentation:

    -- name: route_stats(since_ms, until_ms)
    -- Per route: success rate, mean latency and counts of the attempts that ended in a window.

This module reads the files, checks declared against used parameters, and turns named values into positions. It never
touches the text, and needs nothing but the standard library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from replay.errors import ReplayError

END_OF_TIME = 2**63 - 1
"""The largest bigint: what production passes as the exclusive end of a window that has none."""

DDL_NAMES = ("mirror", "schema")
"""The files that hold tables, not queries: DuckDB's mirror and production's PostgreSQL schema."""

_HEADER = re.compile(r"-- name: (?P<name>[a-z][a-z0-9_]*)\((?P<parameters>[^()]*)\)")
_PARAMETER_NAME = re.compile(r"[a-z][a-z0-9_]*")
_NOT_CODE = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"", re.DOTALL)
_PARAMETER = re.compile(r"\$(\d+)")


@dataclass(frozen=True)
class Query:
    """One shared query: `parameters` are in positional order, `text` is the file as it stands."""

    name: str
    parameters: tuple[str, ...]
    text: str
    documentation: str

    @property
    def signature(self) -> str:
        """The name with its parameters, as the header has it."""
        return f"{self.name}({', '.join(self.parameters)})"

    @property
    def summary(self) -> str:
        """The documentation's first line."""
        return self.documentation.split("\n", 1)[0]

    @property
    def statement(self) -> str:
        """The text without its header and documentation, for a reader; what is run is `text`."""
        lines = self.text.splitlines(keepends=True)
        first = next((index for index, line in enumerate(lines) if not line.startswith("--")), len(lines))
        return "".join(lines[first:])

    def bind(self, **values: Any) -> list[Any]:
        """Return the values in positional order; every parameter must be given and no other.

        >>> load("route_stats").bind(until_ms=2_000, since_ms=1_000)
        [1000, 2000]
        """
        missing = [name for name in self.parameters if name not in values]
        unknown = sorted(name for name in values if name not in self.parameters)
        if missing or unknown:
            found = "; ".join(
                part
                for part in (
                    f"{', '.join(missing)} not given" if missing else "",
                    f"{', '.join(unknown)} unknown" if unknown else "",
                )
                if part
            )
            expected = ", ".join(self.parameters) or "no parameters"
            raise ReplayError(f"query {self.name}: {found}; expected exactly {expected}, by keyword")
        return [values[name] for name in self.parameters]


def parse(stem: str, text: str) -> Query:
    """Return the query in a file named `stem`.sql with that text, or refuse it with what is wrong.

    >>> query = parse("one_more", "-- name: one_more(n)\\n-- The number after n.\\nSELECT $1::bigint + 1 AS n")
    >>> query.parameters, query.documentation
    (('n',), 'The number after n.')
    """
    first, *rest = text.splitlines() or [""]
    header = _HEADER.fullmatch(first.rstrip())
    if header is None:
        raise ReplayError(
            f"{stem}.sql begins with {first!r}; expected a header such as `-- name: {stem}(since_ms, until_ms)` "
            "on its first line"
        )
    if header["name"] != stem:
        raise ReplayError(f"{stem}.sql declares the name {header['name']}; expected {stem}: rename one of them")
    parameters = _declared_parameters(stem, header["parameters"])
    documentation = _documentation(rest)
    if not documentation:
        raise ReplayError(
            f"{stem}.sql has no documentation; expected a comment under its header that says what the query means, "
            "its units and its neutral value"
        )
    _check_used(stem, parameters, text)
    return Query(stem, parameters, text, documentation)


def names() -> list[str]:
    """Return the names of all queries, sorted.

    >>> "route_stats" in names(), "schema" in names()
    (True, False)
    """
    stems = (entry.name.removesuffix(".sql") for entry in _folder().iterdir() if entry.name.endswith(".sql"))
    return sorted(stem for stem in stems if stem not in DDL_NAMES)


@cache
def load(name: str) -> Query:
    """Return the query of that name; raise ReplayError, with the names there are, for another one."""
    if name not in names():
        raise ReplayError(
            f"there is no shared SQL named {name!r}; expected one of {', '.join(names())}, "
            f"or {' or '.join(DDL_NAMES)} for the tables; replay sql lists them"
        )
    return parse(name, _read(name))


@cache
def ddl(name: str) -> str:
    """Return the statements that create the tables: `schema` for PostgreSQL, `mirror` for DuckDB."""
    if name not in DDL_NAMES:
        raise ReplayError(f"there is no schema {name!r}; expected one of {', '.join(DDL_NAMES)}")
    return _read(name)


def _folder() -> Any:  # importlib.resources.abc.Traversable, whose home moved between Python versions
    return resources.files("replay") / "sql"


def _read(name: str) -> str:
    # As bytes: newline translation would make the text differ from the file.
    text: str = (_folder() / f"{name}.sql").read_bytes().decode("utf-8")
    return text


def _declared_parameters(stem: str, declared: str) -> tuple[str, ...]:
    parameters = tuple(part.strip() for part in declared.split(",")) if declared.strip() else ()
    for position, name in enumerate(parameters):
        if not _PARAMETER_NAME.fullmatch(name) or name in parameters[:position]:
            raise ReplayError(
                f"{stem}.sql declares the parameters ({declared}); expected distinct lower-case names with a comma "
                f"between them, and {name!r} is not one"
            )
    return parameters


def _documentation(lines: list[str]) -> str:
    comment: list[str] = []
    for line in lines:
        if not line.startswith("--"):
            break
        comment.append(line.removeprefix("--").removeprefix(" ").rstrip())
    return "\n".join(comment).strip("\n")


def _check_used(stem: str, parameters: tuple[str, ...], text: str) -> None:
    code = _NOT_CODE.sub(" ", text)
    used = {int(number) for number in _PARAMETER.findall(code)}
    declared = set(range(1, len(parameters) + 1))
    if used != declared:
        raise ReplayError(
            f"{stem}.sql declares {_positions(declared)} ({', '.join(parameters) or 'no parameters'}) but uses "
            f"{_positions(used)}; expected the same: correct the header or the statement"
        )


def _positions(numbers: set[int]) -> str:
    return ", ".join(f"${number}" for number in sorted(numbers)) or "no position"
