"""What every frame that comes in must hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from replay.errors import ReplayError


def require_columns(frame: pl.DataFrame, schema: Mapping[str, Any], what: str, remedy: str) -> None:
    """Refuse a frame that lacks a column; the message names it, what was expected, and the remedy.

    >>> require_columns(pl.DataFrame({"a": [1]}), {"a": pl.Int64}, "rows", "Read them again.")
    """
    missing = [name for name in schema if name not in frame.columns]
    if missing:
        raise ReplayError(f"The {what} lack the columns {missing}; expected {list(schema)}. {remedy}")
