"""What a mirror remembers of its pulls: whose rows it holds, and for each table how far they go.

One sentence is kept true in `mirror_pulls`, whatever stops a pull, because it is written in the transaction of the
rows it speaks of: every row with an id up to `last_id` that `snapshot` saw, and that ended at `since_ms` or later, is
in the mirror (or was, as production's, before it pruned it).
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from replay.errors import ReplayError
from replay.ledger.pull.source import Snapshot


@dataclass(frozen=True)
class Pulled:
    """How far a table was pulled; `since_ms` None: from its beginning; `complete`: to the end of what there was."""

    last_id: int
    snapshot: Snapshot
    since_ms: int | None
    way: str
    complete: bool


@dataclass(frozen=True)
class Origin:
    """Whose rows a mirror holds: the database, and the fingerprint of the key of its pseudonyms (None: real names)."""

    database: str
    key: str | None


def pulled(connection: duckdb.DuckDBPyConnection, table: str) -> Pulled | None:
    """Return how far a table was pulled, None where it never was."""
    row = connection.execute(
        "SELECT last_id, snapshot, since_ms, way, complete FROM mirror_pulls WHERE target = ?", [table]
    ).fetchone()
    return None if row is None else Pulled(row[0], Snapshot.parse(row[1]), row[2], row[3], row[4])


def remember(connection: duckdb.DuckDBPyConnection, table: str, state: Pulled) -> None:
    """Write how far a table was pulled, inside the caller's transaction."""
    connection.execute(
        "INSERT OR REPLACE INTO mirror_pulls VALUES (?, ?, ?, ?, ?, ?)",
        [table, state.last_id, state.snapshot.text, state.since_ms, state.way, state.complete],
    )


def origin(connection: duckdb.DuckDBPyConnection) -> Origin | None:
    """Return whose rows the mirror holds, None before its first pull; an older mirror may have no such table."""
    if not connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'mirror_source'").fetchone():
        return None
    row = connection.execute("SELECT database, pseudonym_key FROM mirror_source").fetchone()
    return None if row is None else Origin(row[0], row[1])


def claim(connection: duckdb.DuckDBPyConnection, wanted: Origin) -> None:
    """Make the mirror that origin's, or raise ReplayError where it is another's or has other names in it."""
    held = origin(connection)
    if held is None:
        connection.execute("INSERT INTO mirror_source VALUES (?, ?)", [wanted.database, wanted.key])
        return
    check_same_database(held, wanted.database)
    check_names(held, wanted.key)


def check_same_database(held: Origin, database: str) -> None:
    """Raise ReplayError where the mirror's rows came from another database, as far as can be told."""
    (cluster, oid), (other, other_oid) = held.database.split("/"), database.split("/")
    hidden = "" in (cluster, other)  # one of the users may not read the cluster's identifier
    if oid != other_oid or (cluster != other and not hidden):
        raise ReplayError(
            "This mirror holds rows of another database, whose ids and transactions cannot be told from this one's; "
            "nothing was changed. Pull each database into a mirror of its own."
        )


def check_names(held: Origin, key: str | None) -> None:
    """Raise ReplayError where a pull would mix real names and pseudonyms, or those of two keys."""
    if held.key == key:
        return
    if held.key is None:
        raise ReplayError(
            "This mirror holds real names, and a pull with pseudonyms would mix the two; nothing was changed. Pull "
            "with --pseudonymise into a new mirror."
        )
    given = "this pull would bring real names" if key is None else "another key was given"
    raise ReplayError(
        f"This mirror holds pseudonyms (key {held.key}), and {given}; nothing was changed. Pull with --pseudonymise "
        "and the same key, or into a new mirror."
    )
