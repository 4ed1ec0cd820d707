"""Plain rows for tests of the store, told apart by a number."""

from __future__ import annotations

from typing import Any

from replay.ledger.rows import AttemptRow, CallRow, OfferRow

NOW_MS = 1_795_000_000_000
"""An instant for rows; tests that keep rows for long turn retention off."""


def attempt(number: int, **more: Any) -> AttemptRow:
    """The attempt of the call with that number."""
    values = {"ts": NOW_MS + number, "ok": True, "provider_id": "p", "model_family": "m", "request_id": f"e{number}"}
    return AttemptRow(**{**values, **more})


def call(number: int, **more: Any) -> CallRow:
    """The call with that number, of session `s`."""
    values = {"ts": NOW_MS // 1000, "session_id": "s", "usage_event_id": f"e{number}", "status": 200, "served_by": "p"}
    return CallRow(**{**values, **more})


def offer(position: int, **more: Any) -> OfferRow:
    """The candidate at that position, of provider `p` and its number."""
    return OfferRow(**{"valid_from": 0, "position": position, "provider_id": f"p{position}", "price_in": 1.0, **more})
