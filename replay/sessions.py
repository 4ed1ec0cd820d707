"""Sessions: whose one is, where its cache is hot, and its running meter. Another caller's session reveals nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

from replay.ledger.rows import CallRow
from replay.stamps import Evidence, Stamps


@dataclass(frozen=True, slots=True)
class SessionTotals:
    """What a session has used so far: all its calls count, failed ones too; `tokens_in` includes the cached ones."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    cost_usd: float = 0.0

    def plus(self, call: CallRow) -> SessionTotals:
        """Return the totals with one more call; cost to 6 decimals, what is unknown of the call counts as 0.

        >>> SessionTotals(1, 100, 20, 0, 0.25).plus(CallRow(ts=0, tokens_in=10, cost_usd=0.5))
        SessionTotals(calls=2, tokens_in=110, tokens_out=20, tokens_cached=0, cost_usd=0.75)
        """
        cost_usd = call.cost_usd or 0.0
        return SessionTotals(
            self.calls + 1,
            self.tokens_in + (call.tokens_in or 0),
            self.tokens_out + (call.tokens_out or 0),
            self.tokens_cached + (call.tokens_cached or 0),
            round(self.cost_usd + (cost_usd if abs(cost_usd) < 1e6 else 0.0), 6),  # as the shared SQL counts it
        )


@dataclass(frozen=True, slots=True)
class Session:
    """What the committed calls of a session say, read at one instant.

    `owner` is the caller of its earliest call, None where that one named no caller; `hot_route` is the route key of
    its latest successful call. A session without calls belongs to nobody yet.
    """

    session_id: str
    owner: str | None = None
    hot_route: str | None = None
    totals: SessionTotals = SessionTotals()

    def belongs_to(self, caller: str | None) -> bool:
        """Say whether a caller may see this session: the first writer owns it, a new session is anybody's.

        Calls that name no caller are one nameless caller's: a host that tells its callers apart names all of them.

        >>> Session("s").belongs_to("ann"), Session("s", owner="ann", totals=SessionTotals(1)).belongs_to("bob")
        (True, False)
        """
        return self.totals.calls == 0 or (self.owner or "") == (caller or "")


def session_of(session_id: str, owner: Mapping[str, Any], hot: Mapping[str, Any], totals: Mapping[str, Any]) -> Session:
    """Return a session from the rows of the shared queries: session_owner, hot_route (empty: no row), session_totals.

    >>> session_of("s", {"caller": "ann"}, {}, {"calls": 1, "tokens_in": 9, "cost_usd": 0.5, "cost_micro_usd": 500_000})
    ... # doctest: +NORMALIZE_WHITESPACE
    Session(session_id='s', owner='ann', hot_route=None,
            totals=SessionTotals(calls=1, tokens_in=9, tokens_out=0, tokens_cached=0, cost_usd=0.5))
    """
    known = {one.name: totals[one.name] for one in fields(SessionTotals) if one.name in totals}
    return Session(session_id, owner.get("caller"), hot.get("route_key"), SessionTotals(**known))


@runtime_checkable
class SessionStamps(Stamps, Protocol):
    """Stamps that know sessions as well; whatever is raised leaves the session unknown."""

    def read_for(self, now_ms: int, session_id: str) -> tuple[Evidence, Session]:
        """Derive every stamp at an instant and read a session, in one reading."""

    def read_session(self, session_id: str) -> Session:
        """Read a session alone: for a decision whose stamps are remembered."""


def visible_session(session: Session, caller: str | None, read: Callable[[str], Session]) -> Session:
    """Return the session a caller sees under an id: this one, or one of its own if this is another caller's.

    What belongs to somebody else must look as if it were not there, at the first call and at the tenth. So a caller
    that names a taken id gets a session of its own, under an id that only its calls have (`own_id`), which then grows
    as any new session does. `read` reads it.
    """
    if session.belongs_to(caller):
        return session
    own = read(own_id(session.session_id, caller))
    return own if own.belongs_to(caller) else replace(own, owner=caller, hot_route=None, totals=SessionTotals())


def own_id(session_id: str, caller: str | None) -> str:
    """Return the id under which a caller's calls are recorded when another caller owns the session it named.

    >>> own_id("s", "bob")
    's~81b637d8fcd2c6da'
    """
    return f"{session_id}~{hashlib.sha256((caller or '').encode()).hexdigest()[:16]}"
