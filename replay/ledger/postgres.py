"""PostgreSQL for the base install: where it is, how it is reached, and what an error means and may say.

Importing this module needs libpq, which psycopg looks for; without it a ReplayError says what to install. What an
error says goes to logs and health views, so hosts, users, passwords and whatever a message quotes are cut out of it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any, Final

from replay.errors import ReplayError

try:
    import psycopg
    import psycopg_pool
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
except ImportError as error:
    raise ReplayError(
        "psycopg cannot be loaded, which is how the store reaches PostgreSQL; expected libpq on this host: install it "
        "(Debian and Ubuntu: apt install libpq5; macOS: brew install libpq), or pip install 'psycopg[binary]', which "
        "brings it"
    ) from error

Connection = psycopg.Connection[dict[str, Any]]

_CONNECT_DEFAULTS: Final = {
    "connect_timeout": "5",  # s; libpq would wait for as long as the network lets it
    "application_name": "route-replay",
    "keepalives_idle": "10",  # s: a server that vanished without a word is noticed within half a minute
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",  # ms
}
_PUBLIC: Final = {*_CONNECT_DEFAULTS, "port", "sslmode", "keepalives", "client_encoding", "options", "channel_binding"}
_ROWS_OWN_FAULT: Final = ("22", "23", "54", "P0")
"""SQLSTATE classes: bad data, a violated constraint, too large for an index, and what a trigger raises."""


def resolve(conninfo: str | None) -> str:
    """Return the connection string to use: the given one, else `DATABASE_URL`, with timeouts where it has none.

    Raises ReplayError, which never shows the string, where there is none or libpq cannot read it.

    >>> resolve("postgresql://somebody:secret@db.example/ledger")[:45]
    'connect_timeout=5 application_name=route-repl'
    """
    source = "the connection string" if conninfo else "DATABASE_URL"
    given = conninfo or os.environ.get("DATABASE_URL")
    if not given:
        raise ReplayError(
            "no connection string was given and DATABASE_URL is not set; expected one of them: "
            "DATABASE_URL=postgresql://user@host/database, for example"
        )
    try:
        parts = conninfo_to_dict(given)
        # A password that is not percent-encoded ends up in other parts, of which the port is the one that is shown.
        readable = re.fullmatch(r"[0-9,]*", str(parts.get("port") or "")) is not None
    except psycopg.Error:
        readable = False
    if not readable:
        raise ReplayError(
            f"{source} cannot be read (it is not shown: it may hold a password); expected "
            "postgresql://user@host/database or key=value pairs, with special characters of a URL percent-encoded"
        )
    return make_conninfo("", **{**_CONNECT_DEFAULTS, **parts})


def connect(conninfo: str) -> Connection:
    """Connect outside of any transaction, for statements with native parameters and rows as dictionaries."""
    return psycopg.connect(
        conninfo,
        autocommit=True,
        cursor_factory=psycopg.RawCursor,
        row_factory=psycopg.rows.dict_row,
        # A prepared statement may be planned without its values; the window decides which plan is good.
        prepare_threshold=None,
    )


BOUNDS: Final = (
    "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '30s'; "
    # Should we vanish half-way, the server ends the transaction, and its fate is known.
    "SET LOCAL idle_in_transaction_session_timeout = '10s'"
)
"""Of one transaction, not of the session: behind a pooler the next transaction may be somebody else's."""


@contextlib.contextmanager
def bounded(connection: Connection) -> Iterator[None]:
    """A transaction that waits for nothing without end."""
    with connection.transaction():
        connection.execute(BOUNDS)
        yield


def is_rows_own_fault(error: Exception) -> bool:
    """Whether an error while writing lies in what was to be written, so that trying again cannot help.

    >>> is_rows_own_fault(psycopg.errors.NumericValueOutOfRange()), is_rows_own_fault(psycopg.OperationalError())
    (True, False)
    """
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_ROWS_OWN_FAULT)
    # Without a state it comes from this side: the connection is gone, or a value has no text form.
    return not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | OSError)


_ENVIRONMENT: Final = ("PGPASSWORD", "PGPASSFILE", "PGUSER", "PGHOST", "PGHOSTADDR", "PGDATABASE", "PGSERVICE")
_NAMES_OUR_OWN: Final = "42"
"""SQLSTATE class whose messages quote tables and columns of the schema, which an operator needs to know."""


class Redactor:
    """Says what an error is, without the connection string's parts and without anything the message quotes."""

    def __init__(self, conninfo: str) -> None:
        parts = {name: str(value) for name, value in conninfo_to_dict(conninfo).items() if value}
        parts |= {name: value for name, value in os.environ.items() if name in _ENVIRONMENT and value}
        hidden = sorted((name for name in parts if name not in _PUBLIC), key=lambda name: -len(parts[name]))
        # A password is cut out wherever it stands; a short host or user only where it is a word.
        self._hidden = [
            re.compile(re.escape(parts[name]) if "pass" in name.lower() else rf"\b{re.escape(parts[name])}\b")
            for name in hidden
        ]

    def say(self, error: BaseException) -> str:
        """Return one line: the kind of error, its SQLSTATE if the server gave one, and its redacted message.

        >>> said = Redactor("host=db.example password=s3cret").say(OSError('no route to db.example, "x", s3cret'))
        >>> said
        'OSError: no route to ***, "***", ***'
        """
        diagnosis = getattr(error, "diag", None)
        state = getattr(error, "sqlstate", None)
        message = getattr(diagnosis, "message_primary", None) or str(error)
        for pattern in self._hidden:
            message = pattern.sub("***", message)
        if not str(state).startswith(_NAMES_OUR_OWN):
            message = re.sub(r'"[^"]*"', '"***"', message)
        message = re.sub(r"\([0-9a-f.:]{3,}\)", "(***)", message)  # the address a host name stands for
        line = " ".join(message.split())[:300]
        return f"{type(error).__name__}{f' ({state})' if state else ''}: {line}"


__all__ = [
    "BOUNDS",
    "Connection",
    "Redactor",
    "bounded",
    "connect",
    "conninfo_to_dict",
    "is_rows_own_fault",
    "make_conninfo",
    "psycopg",
    "psycopg_pool",
    "resolve",
]
