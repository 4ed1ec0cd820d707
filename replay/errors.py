"""The errors a user can meet. Each message says what was given, what was expected, and what to do."""

from __future__ import annotations


class ReplayError(Exception):
    """Base of every error this package raises on purpose; `exit_code` is what the command line returns.

    >>> str(ReplayError("window is 0 ms; expected more than 0; give for example 15m"))
    'window is 0 ms; expected more than 0; give for example 15m'
    """

    exit_code = 2


class NotComparableError(ReplayError):
    """Two results that do not rest on the same input were to be compared."""

    exit_code = 3


class StoppedError(ReplayError):
    """Somebody pressed Ctrl-C; the message says what is kept."""

    exit_code = 130
