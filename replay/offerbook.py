"""Who could be chosen, and when: the candidates of every instant, in recorded order."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from replay.core import Candidate
from replay.errors import ReplayError
from replay.ledger.rows import OfferRow, columns
from replay.prices import cached_price
from replay.timeline import Ints, Timeline


@dataclass(frozen=True)
class Segment:
    """The candidates between two changes of the offers, in order; `routes` are their numbers on the timeline."""

    candidates: tuple[Candidate, ...]
    routes: Ints
    cached_prices: tuple[float | None, ...]


@dataclass(frozen=True)
class OfferBook:
    """All segments; segment i holds from `starts_ms[i]` until the next one's start."""

    starts_ms: list[int]
    segments: list[Segment]
    recorded: bool

    @cached_property
    def sizes(self) -> NDArray[np.int32]:
        """Candidates in each segment."""
        return np.array([len(segment.candidates) for segment in self.segments], dtype=np.int32)

    @cached_property
    def routes(self) -> Ints:
        """The routes of all segments' candidates, end to end."""
        return np.concatenate([np.empty(0, dtype=np.int64), *(segment.routes for segment in self.segments)])

    @cached_property
    def starts(self) -> Ints:
        """Where each segment's candidates begin among all."""
        return (np.cumsum(self.sizes, dtype=np.int64) - self.sizes).astype(np.int64)

    def numbers_at(self, at_ms: Ints) -> Ints:
        """Return the number of the segment that holds at each instant."""
        starts_ms = np.array(self.starts_ms)
        if np.all(at_ms[1:] >= at_ms[:-1]):  # as decisions come: the other way around is much faster
            ends = np.append(np.searchsorted(at_ms, starts_ms[1:], side="left"), len(at_ms))
            return np.repeat(np.arange(len(starts_ms), dtype=np.int64), np.diff(ends, prepend=0))
        return (np.searchsorted(starts_ms, at_ms, side="right") - 1).astype(np.int64)

    def number_at(self, at_ms: int) -> int:
        """Return the number of the segment that holds at an instant."""
        return bisect.bisect_right(self.starts_ms, at_ms) - 1

    def at(self, at_ms: int) -> Segment:
        """Return the candidates that a decision at an instant could have seen."""
        return self.segments[self.number_at(at_ms)]


def build(timeline: Timeline) -> OfferBook:
    """Read the offers' history; without one, the routes of the ledger are candidates from their first use on.

    The fallback never looks ahead: a route enters at its own first call or attempt, in byte order of its key, with
    the list price of `provider_prices` (one price for all time, as the old schema knows no other).
    """
    frame = timeline.ledger.offers
    recorded = len(frame) > 0
    offers = [OfferRow(**row) for row in frame.select(columns(OfferRow)).to_dicts()] if recorded else []
    offers = [offer for offer in offers if offer.valid_to is None or offer.valid_to > offer.valid_from]
    offers = offers if recorded else _from_ledger(timeline)
    # An instant before every offer has no candidates, so the first segment is empty and starts before all time.
    changes = {offer.valid_from for offer in offers} | {
        offer.valid_to for offer in offers if offer.valid_to is not None
    }
    known = [_Known(offer) for offer in offers]
    renamed = {key: timeline.renamed_ms(key) for key in {offer.route_key for offer in known}}
    changes |= set().union(*renamed.values())
    fixed = {key: timeline.route_of(key, 0) for key, at_ms in renamed.items() if not at_ms}
    places = [(offer.position, offer.id or 0, number) for number, offer in enumerate(offers)]
    starts_ms = [-(2**62), *sorted(changes)]
    entering: dict[int, list[int]] = {}
    leaving: dict[int, list[int]] = {}
    for number, offer in enumerate(offers):
        entering.setdefault(offer.valid_from, []).append(number)
        if offer.valid_to is not None:
            leaving.setdefault(offer.valid_to, []).append(number)
    segments: list[Segment] = []
    present: set[int] = set()
    for start in starts_ms:
        present |= set(entering.get(start, ()))
        present -= set(leaving.get(start, ()))
        order = sorted(present, key=places.__getitem__)
        segments.append(_segment([known[number] for number in order], timeline, start, fixed))
    return OfferBook(starts_ms, segments, recorded)


class _Known:
    """An offer with what is derived from it once."""

    def __init__(self, offer: OfferRow) -> None:
        try:
            self.candidate = offer.candidate()
            if not isinstance(self.candidate.capabilities, dict):
                raise TypeError("its capabilities are no object")
        except (ValueError, TypeError) as error:
            raise ReplayError(
                f"offer {offer.id} in offer_history cannot be read ({error}); expected its capabilities and declared "
                "fields to be JSON objects, or null; correct the row"
            ) from error
        self.route_key = self.candidate.route_key
        self.price_cached_in = offer.price_cached_in


def _segment(offers: list[_Known], timeline: Timeline, start_ms: int, fixed: Mapping[str, int]) -> Segment:
    """Put offers together; `fixed` are the routes of the keys whose route never changes its name."""
    keys = [offer.route_key for offer in offers]
    routes = [fixed[key] if key in fixed else timeline.route_of(key, start_ms) for key in keys]
    return Segment(
        tuple([offer.candidate for offer in offers]),
        np.array(routes, dtype=np.int64),
        tuple([offer.price_cached_in for offer in offers]),
    )


def _from_ledger(timeline: Timeline) -> list[OfferRow]:
    attempts, calls = timeline.attempts, timeline.calls
    starts = np.where(attempts.start_ms >= 0, attempts.start_ms, attempts.ts_ms)
    routes = [*attempts.route.tolist(), *calls.route.tolist()]
    entered: dict[tuple[str, str, str], int] = {}
    for route, at_ms in zip(routes, [*starts.tolist(), *calls.decided_ms.tolist()], strict=True):
        if route >= 0:
            provider, family, served_by = (*timeline.routes[route].split("|", 2), "", "")[:3]
            candidate = (provider, family, served_by or provider)  # `p|m|` is `p|m|p` with the server left out
            entered[candidate] = min(at_ms, entered.get(candidate, at_ms))
    prices = {(row["provider_id"], row["model_family"]): row for row in timeline.ledger.prices.to_dicts()}
    offers = []
    for position, (provider, family, served_by) in enumerate(
        sorted(entered, key=lambda parts: "|".join(parts).encode())
    ):
        price = prices.get((provider, family), {})
        offers.append(
            OfferRow(
                valid_from=entered[provider, family, served_by],
                position=position,
                provider_id=provider,
                model_family=family,
                peer_id=None if served_by == provider else served_by,
                price_in=price.get("price_in"),
                price_out=price.get("price_out"),
                price_cached_in=price.get("price_cached_in"),
                # What a route can do is not in an old ledger; unknown must not filter it out.
                capabilities='{"supports_json_mode":true,"supports_seed":true,"supports_tools":true,"supports_vision":true}',
            )
        )
    return offers


def repriced(candidate: Candidate, price_in: float | None, price_out: float | None) -> Candidate:
    """Return the candidate at other list prices (USD per million tokens; None: no price known).

    >>> repriced(Candidate("p", "m", fields={"price_in": 3.0, "price_out": 15.0}), 6.0, None).fields
    {'price_in': 6.0}
    """
    fields = {name: value for name, value in candidate.fields.items() if name not in ("price_in", "price_out")}
    prices: Mapping[str, float | None] = {"price_in": price_in, "price_out": price_out}
    fields |= {name: value for name, value in prices.items() if value is not None}
    return replace(candidate, fields=fields)


def list_prices(segment: Segment, place: int) -> tuple[float, float, float] | None:
    """Return (in, out, cached in) of the candidate at a place of a segment, None where the list price is not known."""
    fields = segment.candidates[place].fields
    price_in, price_out = fields.get("price_in"), fields.get("price_out")
    if price_in is None or price_out is None:
        return None
    return float(price_in), float(price_out), cached_price(float(price_in), segment.cached_prices[place])
