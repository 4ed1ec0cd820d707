"""Rows older than some days are deleted, looked at once per so many inserts, a bounded number at a time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

from replay.ledger.postgres import Connection, bounded
from replay.ledger.schema import Layout

CHECK_EVERY: Final = 500
"""Inserts into a table between two looks at what has expired in it."""

MOST_ROWS: Final = 10 * CHECK_EVERY
"""Rows deleted at one look: more than came in, so a backlog shrinks, and few enough to be quick."""

_EXPIRED: Final[Mapping[str, tuple[str, ...]]] = {
    # An offer that no longer holds is needed by no decision that is kept; one that holds has no valid_to.
    "calls": ("calls.ts",),
    "route_observations": ("route_observations.ts", "offer_history.valid_to"),
}
_SECONDS: Final = "calls.ts"  # every other instant is in ms


class Retention:
    """Counts inserts, and deletes what is older than `days` (None: keeps everything)."""

    def __init__(self, days: int | None) -> None:
        self.days = days
        self.deleted: Counter[str] = Counter()  # by table
        self._inserted: Counter[str] = Counter()

    def due(self, inserted: Mapping[str, int]) -> list[str]:
        """Enter inserts by table, and return the columns whose expired rows are to be looked for now.

        >>> retention = Retention(30)
        >>> [retention.due({"calls": 499}), retention.due({"calls": 1}), retention.due({"calls": 499})]
        [[], ['calls.ts'], []]
        """
        due: list[str] = []
        for table, count in inserted.items() if self.days is not None else ():
            self._inserted[table] += count
            if self._inserted[table] >= CHECK_EVERY:
                self._inserted[table] %= CHECK_EVERY
                due += _EXPIRED.get(table, ())
        return due

    def delete(self, connection: Connection, layout: Layout, column: str) -> None:
        """Delete a bounded number of expired rows, if this role may delete from that table."""
        table, _, instant = column.partition(".")
        if self.days is None or table not in layout.tables or not layout.tables[table].deletable:
            return
        before_s = int(time.time()) - self.days * 86_400
        before = before_s if column == _SECONDS else before_s * 1000
        some = f"SELECT ctid FROM {table} WHERE {instant} < $1 LIMIT {MOST_ROWS}"
        with bounded(connection):
            done = connection.execute(f"DELETE FROM {table} WHERE ctid = ANY (ARRAY({some}))", [before])
        self.deleted[table] += done.rowcount
