"""The plain frames that cost drift needs, read from a mirror."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay.errors import ReplayError
from replay.queries import END_OF_TIME

if TYPE_CHECKING:
    import duckdb
    import polars as pl

_CALLS = """
SELECT provider_id, model_family, served_by, ts, decided_at, latency_ms, tokens_in, tokens_out, tokens_cached,
    cost_usd, cost_basis
FROM calls
WHERE ts >= $1 AND ts < $2
ORDER BY ts, id
"""

_PRICES = """
SELECT provider_id, model_family, peer_id AS served_by, position, valid_from AS valid_from_ms,
    valid_to AS valid_to_ms, price_in, price_out, price_cached_in
FROM offer_history
ORDER BY position, valid_from, id
"""

_CONSTANT = """
SELECT provider_id, model_family, price_in, price_out, price_cached_in FROM provider_prices
ORDER BY provider_id, model_family
"""


def cost_frames(
    connection: duckdb.DuckDBPyConnection, since_s: int | None = None, until_s: int | None = None
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return (calls, prices, constant prices) for `analysis.cost.price_calls`; calls ended in [since_s, until_s)."""
    window = [-END_OF_TIME if since_s is None else since_s, END_OF_TIME if until_s is None else until_s]
    calls = connection.execute(_CALLS, window).pl()
    if calls.is_empty():
        raise ReplayError(
            "There are no calls in this mirror and window, so there is no cost to compare; expected at least one. "
            "See what the mirror holds with: replay info."
        )
    return calls, connection.execute(_PRICES).pl(), connection.execute(_CONSTANT).pl()
