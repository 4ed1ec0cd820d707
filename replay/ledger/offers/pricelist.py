"""A price list: per listed model, what it cost in which period."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Terms:
    """What a list says of a model: prices in USD per million tokens (None: not known; 0: free), size, tools."""

    price_in: float | None = None
    price_out: float | None = None
    price_cached_in: float | None = None
    context: int | None = None
    supports_tools: bool | None = None

    def without_price(self) -> Terms:
        """Return the same model with unknown prices: its size and abilities do not leave the list with its price."""
        return replace(self, price_in=None, price_out=None, price_cached_in=None)


@dataclass(frozen=True)
class Period:
    """Terms valid in [from_ms, to_ms); from_ms None: as far back as the list knows; to_ms None: still."""

    from_ms: int | None
    to_ms: int | None
    terms: Terms


@dataclass(frozen=True)
class Listing:
    """One listed model: its periods, in order and without gaps, and other names the list itself gives it."""

    name: str
    periods: tuple[Period, ...]
    other_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class PriceList:
    """A whole list. `source` chooses the naming rules; `rejected` and `notes` count what was refused or simplified."""

    source: str
    version: str
    listings: Mapping[str, Listing]
    rejected: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


def make_periods(changes: Iterable[tuple[int | None, Terms]]) -> tuple[Period, ...]:
    """Return the periods between changes that are sorted by instant; a change that changes nothing starts none.

    >>> make_periods([(0, Terms(1.0, 2.0)), (5, Terms(1.0, 2.0)), (9, Terms(3.0, 4.0))])[0].to_ms
    9
    """
    kept: list[tuple[int | None, Terms]] = []
    for at, terms in changes:
        if not kept or kept[-1][1] != terms:
            kept.append((at, terms))
    ends: list[int | None] = [at for at, _ in kept[1:]] + [None]
    return tuple(Period(at, end, terms) for (at, terms), end in zip(kept, ends, strict=True))


def price_fault(price: float | None) -> str | None:
    """Return why a price cannot be used, or None if it can.

    >>> price_fault(0.0), price_fault(-1.0), price_fault(None)
    (None, 'negative price', 'price missing')
    """
    if price is None:
        return "price missing"
    if not math.isfinite(price):
        return "infinite price"
    return "negative price" if price < 0 else None


def list_from_events(
    source: str,
    events: Iterable[Mapping[str, Any]],
    version: str = "",
    already_rejected: Mapping[str, int] | None = None,
) -> PriceList:
    """Build a price list from listed/changed/delisted events, in any order.

    Each event has ts_ms, model, event, price_in, price_out, price_cached_in (USD per million tokens), context and
    supports_tools. From a delisting on, and from an event whose price is missing, negative or infinite, the price
    is unknown: the list no longer vouches for the old one. Rows that contradict each other at one instant are
    all rejected, and the price is unknown from then on. Exact repeats count once.
    """
    rejected: Counter[str] = Counter(already_rejected or {})
    notes: Counter[str] = Counter()
    by_model: dict[str, dict[int, set[tuple[str, Terms]]]] = {}
    for event in events:
        terms = Terms(
            event["price_in"], event["price_out"], event["price_cached_in"], event["context"], event["supports_tools"]
        )
        at = by_model.setdefault(event["model"], {}).setdefault(int(event["ts_ms"]), set())
        at.add((event["event"], terms))
    listings = {
        model: Listing(model, make_periods(_changes(instants, rejected, notes)))
        for model, instants in sorted(by_model.items())
    }
    return PriceList(source, version, listings, +rejected, +notes)


def _changes(
    instants: Mapping[int, set[tuple[str, Terms]]], rejected: Counter[str], notes: Counter[str]
) -> list[tuple[int | None, Terms]]:
    changes: list[tuple[int | None, Terms]] = []
    last = Terms()
    for at, found in sorted(instants.items(), key=lambda item: item[0]):
        if len(found) > 1:
            rejected["contradicts another row of the same instant"] += len(found)
            last = last.without_price()
        else:
            kind, terms = next(iter(found))
            last = last.without_price() if kind == "delisted" else _checked(terms, rejected, notes)
        changes.append((at, last))
    return changes


def _checked(terms: Terms, rejected: Counter[str], notes: Counter[str]) -> Terms:
    """Return usable terms: a faulty price makes all prices unknown, a faulty cached price only that one."""
    fault = price_fault(terms.price_in) or price_fault(terms.price_out)
    if fault:
        rejected[fault] += 1
        return terms.without_price()
    if terms.price_cached_in is None:
        return terms
    cached_fault = price_fault(terms.price_cached_in)
    if cached_fault:
        rejected[f"cached: {cached_fault}"] += 1
        return replace(terms, price_cached_in=None)
    if terms.price_cached_in == 0 and terms.price_in:
        notes["cached input listed as free beside a paid input price (kept as listed)"] += 1
    return terms


def join_renames(prices: PriceList, spelled: Callable[[str], str]) -> PriceList:
    """Return the list with renamed models in one piece: both names then mean the one history.

    A rename is a name delisted for good at the very instant at which one that differs only in spelling is first
    listed (claude-3-5-haiku became claude-3.5-haiku). Anything less certain stays apart.
    """
    alike: dict[str, list[Listing]] = {}
    for listing in sorted(
        prices.listings.values(), key=lambda listing: (listing.periods[0].from_ms or 0, listing.name)
    ):
        alike.setdefault(spelled(listing.name), []).append(listing)
    listings = dict(prices.listings)
    notes = Counter(prices.notes)
    for group in alike.values():
        for old, new in pairwise(group):
            old = listings[old.name]
            if _renamed(old, new):
                listings[new.name] = _joined(old, new)
                del listings[old.name]
                notes["listed names joined with the one they were renamed to"] += 1
    return replace(prices, listings=listings, notes=notes)


def _renamed(old: Listing, new: Listing) -> bool:
    end = old.periods[-1]
    return end.from_ms is not None and end.from_ms == new.periods[0].from_ms and end.terms == end.terms.without_price()


def _joined(old: Listing, new: Listing) -> Listing:
    changes = [(period.from_ms, period.terms) for period in (*old.periods[:-1], *new.periods)]
    return Listing(new.name, make_periods(changes), tuple(sorted({old.name, *old.other_names, *new.other_names})))
