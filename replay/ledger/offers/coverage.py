"""How much of a ledger a price list covers: by way of matching, and by price at the moment of each call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replay.ledger.offers.names import WAYS, Match

if TYPE_CHECKING:
    import duckdb

_PER_FAMILY = """
SELECT coalesce(provider_id, ''), coalesce(model_family, ''), count(*),
    coalesce(sum(coalesce(tokens_in, 0) + coalesce(tokens_out, 0)), 0)::BIGINT,
    coalesce(sum(cost_usd) FILTER (WHERE cost_usd >= 0 AND isfinite(cost_usd)), 0)
FROM calls
GROUP BY 1, 2
"""

_ATTEMPTS_PER_FAMILY = """
SELECT coalesce(provider_id, ''), coalesce(model_family, ''), count(*) FROM route_observations GROUP BY 1, 2
"""

_PRICED_PER_FAMILY = """
WITH decided AS (
    SELECT coalesce(provider_id, '') AS provider_id, coalesce(model_family, '') AS model_family,
        CASE WHEN coalesce(served_by, '') = '' THEN coalesce(provider_id, '') ELSE served_by END AS served_by,
        coalesce(decided_at, ts * 1000 - CASE WHEN latency_ms > 0 AND latency_ms < 1e15
            THEN ceil(latency_ms)::BIGINT ELSE 0 END) AS at_ms
    FROM calls
)
SELECT d.provider_id, d.model_family, count(*)
FROM decided AS d
INNER JOIN offer_history AS o
    ON o.provider_id = d.provider_id AND o.model_family = d.model_family
    AND coalesce(o.peer_id, o.provider_id) = d.served_by
    AND o.valid_from <= d.at_ms AND (o.valid_to IS NULL OR d.at_ms < o.valid_to)
WHERE o.price_in IS NOT NULL AND o.price_out IS NOT NULL
GROUP BY 1, 2
"""

_LARGEST_COST = "SELECT max(cost_usd) FROM calls WHERE cost_usd >= 0 AND isfinite(cost_usd)"

UNMATCHED = "unmatched"


@dataclass(frozen=True)
class Covered:
    """What one way of matching covers. `priced_calls`: those with a list price at their own moment."""

    way: str
    families: int
    calls: int
    priced_calls: int
    tokens: int
    cost_usd: float
    attempts: int


@dataclass(frozen=True)
class FamilyMatch:
    """One (provider, family) with its match, if any, and its calls and attempts."""

    provider_id: str
    model_family: str
    match: Match | None
    calls: int
    attempts: int


@dataclass(frozen=True)
class Coverage:
    """`by_way`: exact, rules, alias, unmatched. `families`: most calls first."""

    by_way: tuple[Covered, ...]
    families: tuple[FamilyMatch, ...]
    largest_call_usd: float

    @property
    def unmatched(self) -> list[FamilyMatch]:
        """The families without a listed model, most calls first."""
        return [family for family in self.families if family.match is None]

    @property
    def total(self) -> Covered:
        """All ways together."""
        rows = self.by_way
        return Covered(
            "total",
            sum(row.families for row in rows),
            sum(row.calls for row in rows),
            sum(row.priced_calls for row in rows),
            sum(row.tokens for row in rows),
            sum(row.cost_usd for row in rows),
            sum(row.attempts for row in rows),
        )


def measure_coverage(
    connection: duckdb.DuckDBPyConnection, matches: Mapping[tuple[str, str], Match | None]
) -> Coverage:
    """Return how many calls, tokens, USD and attempts each way of matching covers, with the offers as they now are."""
    calls = {(p, m): (n, tokens, cost) for p, m, n, tokens, cost in connection.execute(_PER_FAMILY).fetchall()}
    attempts = {(p, m): n for p, m, n in connection.execute(_ATTEMPTS_PER_FAMILY).fetchall()}
    priced = {(p, m): n for p, m, n in connection.execute(_PRICED_PER_FAMILY).fetchall()}
    largest = connection.execute(_LARGEST_COST).fetchone()

    def covered(way: str) -> Covered:
        mine = sorted(key for key, match in matches.items() if (match.way if match else UNMATCHED) == way)
        used = [calls.get(key, (0, 0, 0.0)) for key in mine]
        return Covered(
            way,
            len(mine),
            sum(n for n, _, _ in used),
            sum(priced.get(key, 0) for key in mine),
            sum(tokens for _, tokens, _ in used),
            sum(cost for _, _, cost in used),
            sum(attempts.get(key, 0) for key in mine),
        )

    families = [
        FamilyMatch(*key, match, calls.get(key, (0,))[0], attempts.get(key, 0)) for key, match in matches.items()
    ]
    families.sort(key=lambda f: (-f.calls, -f.attempts, f.provider_id, f.model_family))
    return Coverage(
        tuple(covered(way) for way in (*WAYS, UNMATCHED)),
        tuple(families),
        float(largest[0]) if largest and largest[0] is not None else 0.0,
    )
