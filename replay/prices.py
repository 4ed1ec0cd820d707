"""The one function that prices tokens: for computed costs, expectations and what-ifs alike."""

from __future__ import annotations

from typing import Any

CACHED_SHARE_OF_INPUT_PRICE = 0.1
"""Where no cached price is known, a cached token costs this share of the input price."""


def cost_usd(
    tokens_in: Any, tokens_cached: Any, tokens_out: Any, price_in: Any, price_out: Any, price_cached_in: Any
) -> Any:
    """Return the cost in USD of tokens at prices in USD per million tokens.

    `tokens_in` includes `tokens_cached`. Only + − × ÷ are used, so plain numbers, NumPy arrays and Polars
    expressions are priced by the very same function; a missing cached price must be filled in before, by
    `cached_price`. Source: `(uncached × in + cached × cached_in + out × out) ÷ 10⁶`.

    >>> cost_usd(1_000, 400, 200, 3.0, 15.0, 0.3)
    0.00492
    """
    return ((tokens_in - tokens_cached) * price_in + tokens_cached * price_cached_in + tokens_out * price_out) / 1e6


def cached_price(price_in: float, price_cached_in: float | None) -> float:
    """Return the cached input price, a tenth of the input price where none is known.

    >>> cached_price(3.0, None), cached_price(3.0, 0.25)
    (0.30000000000000004, 0.25)
    """
    return price_in * CACHED_SHARE_OF_INPUT_PRICE if price_cached_in is None else price_cached_in
