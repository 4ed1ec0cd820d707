"""The mirror: one DuckDB file with production's tables, opened by one writer or by several readers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path

import duckdb

from replay.errors import ReplayError

TABLES = ("calls", "route_observations", "provider_prices", "peer_offers", "offer_history", "policies", "settings")
"""Production's tables, in the order of `mirror.sql`."""

OWN_TABLES = ("mirror_imports", "mirror_rejects")
"""The mirror's own tables: what was imported, and what could not be."""

_POLL_S = 0.1
_FORMAT = "v1.4.0"
"""Of a new file: the oldest DuckDB that `pyproject.toml` allows reads it, and its columns are compressed faster."""


def schema_sql() -> str:
    """Return the text of `mirror.sql`, every statement of which may be run again."""
    return (resources.files("replay") / "sql" / "mirror.sql").read_text(encoding="utf-8")


@contextmanager
def open_mirror(path: str | Path, *, write: bool = False, wait_s: float = 10.0) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the mirror at `path` and close it again when the block ends.

    A writer creates the file if there is none, and removes it again if its block fails, so that a failing command
    leaves nothing behind. A reader needs an existing mirror. Sessions run in UTC. While another process holds the
    file, this waits up to `wait_s` seconds. Raises ReplayError, and says which: no such file, not a DuckDB file, not a
    mirror, held by another process (with its id and command).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open_mirror(Path(folder) / "m.duckdb", write=True) as connection:
    ...         connection.execute("SELECT count(*) FROM calls").fetchone()
    (0,)
    """
    file = Path(path)
    _check_place(file, write)
    created = not file.exists()
    connection = _connect(file, write, wait_s)
    try:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")  # it would be drawn over ours, or into what is piped
        if not created:
            _check_tables(connection, file)
        if write:
            connection.execute(schema_sql())
        yield connection
    except BaseException:
        _close(connection)
        if created:
            for leftover in (file, file.with_name(file.name + ".wal")):
                leftover.unlink(missing_ok=True)
        raise
    _close(connection)


def _close(connection: duckdb.DuckDBPyConnection) -> None:
    # A connection broken by a full disk may refuse to close; the error that matters is the one already on its way.
    with suppress(duckdb.Error):
        connection.close()


def _check_place(file: Path, write: bool) -> None:
    if file.is_dir():
        raise ReplayError(f"{file} is a folder; expected a mirror file; give for example {file / 'ledger.duckdb'}.")
    if not file.exists():
        if not write:
            raise ReplayError(
                f"There is no mirror at {file}. Expected a DuckDB file made by `replay import`; "
                f"create it with: replay import FILE --into {file}"
            )
        if not file.parent.is_dir():
            raise ReplayError(f"The folder {file.parent} for the mirror {file.name} does not exist; create it first.")


def _connect(file: Path, write: bool, wait_s: float) -> duckdb.DuckDBPyConnection:
    if file.exists() and file.stat().st_size == 0:
        raise _not_a_mirror(file, "it is empty, not a DuckDB file")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            if file.exists():
                return duckdb.connect(str(file), read_only=not write)
            return duckdb.connect(str(file), config={"storage_compatibility_version": _FORMAT})
        except duckdb.ConnectionException as error:
            raise ReplayError(
                f"The mirror {file} is already open in this process in another way: a DuckDB file has one writer or "
                "several readers. Close the other connection first."
            ) from error
        except duckdb.Error as error:
            message = str(error)
            if "not a valid DuckDB database" in message:
                raise _not_a_mirror(file, "it is not a DuckDB file") from error
            if "Could not set lock" not in message:
                raise ReplayError(f"The mirror {file} cannot be opened: {message.splitlines()[0]}") from error
            if time.monotonic() >= deadline:
                raise ReplayError(
                    f"The mirror {file} is held by {_holder(message)}, and was not released within {wait_s:g} s. A "
                    "DuckDB file has one writer or several readers: close that process (a notebook, another import), "
                    "then try again."
                ) from error
        time.sleep(_POLL_S)


def _holder(message: str) -> str:
    """Return who holds the lock, from DuckDB's message: the process id, and its command where /proc knows it."""
    found = re.search(r"held in (.*?) ?\(PID (\d+)\)", message)
    if found is None:
        return "another process"
    program, pid = found.groups()
    command = program
    with suppress(OSError):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        command = " ".join(part.decode(errors="replace") for part in arguments if part) or program
    shown = command if len(command) <= 120 else command[:117] + "…"
    return f"process {pid} ({' '.join(shown.split())})"


def _check_tables(connection: duckdb.DuckDBPyConnection, file: Path) -> None:
    present = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    missing = [table for table in (*TABLES, *OWN_TABLES) if table not in present]
    if missing:
        raise _not_a_mirror(file, f"it is a DuckDB file without the tables {', '.join(missing)}")


def _not_a_mirror(file: Path, why: str) -> ReplayError:
    return ReplayError(
        f"{file} is not a mirror: {why}. Expected a DuckDB file made by `replay import`; nothing was changed. "
        "Give another path, or a new one to create a mirror."
    )
