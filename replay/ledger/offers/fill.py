"""Filling `offer_history` and `provider_prices` from a price list: which routes, from when, at what price."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import duckdb

from replay.errors import ReplayError
from replay.ledger.offers.coverage import Coverage, measure_coverage
from replay.ledger.offers.names import Asked, Match, Matcher, NamingRules, load_rules
from replay.ledger.offers.pricelist import Listing, Period, PriceList, Terms, join_renames
from replay.ledger.rows import OfferRow, columns, values

Family = tuple[str, str]
"""(provider_id, model_family), missing parts empty."""

_USED = """
WITH used AS (
    SELECT provider_id, model_family, served_by, served_model_id,
        coalesce(decided_at, ts * 1000 - CASE WHEN latency_ms > 0 AND latency_ms < 1e15
            THEN ceil(latency_ms)::BIGINT ELSE 0 END) AS used_at
    FROM calls
    UNION ALL
    SELECT provider_id, model_family, served_by, NULL,
        coalesce(started_at, ts - CASE WHEN latency_ms > 0 AND latency_ms < 1e15
            THEN ceil(latency_ms)::BIGINT ELSE 0 END)
    FROM route_observations
)
SELECT coalesce(provider_id, ''), coalesce(model_family, ''), coalesce(served_by, ''), min(used_at),
    list(DISTINCT served_model_id) FILTER (WHERE served_model_id <> '')
FROM used
GROUP BY 1, 2, 3
"""


@dataclass(frozen=True)
class SeenRoute:
    """A candidate route as a ledger shows it: `peer` is None for a direct route, `served_ids` the models it named."""

    provider: str
    family: str
    peer: str | None
    first_use_ms: int
    served_ids: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """The key of the candidate this route becomes, `provider|family|served_by`."""
        return f"{self.provider}|{self.family}|{self.peer or self.provider}"


@dataclass(frozen=True)
class FillReport:
    """What filling did: the list, the offers written, how names were joined and what it covers."""

    prices: PriceList
    alias_version: int
    routes: int
    routes_merged: int
    offers_written: int
    offers_replaced: int
    prices_written: int
    prices_kept: int
    coverage: Coverage


def fill_offers(
    connection: duckdb.DuckDBPyConnection,
    prices: PriceList,
    *,
    rules: NamingRules | None = None,
    replace: bool = False,
) -> FillReport:
    """Write one offer per route and price period, and the latest list price per provider and family.

    Every route that calls or attempts of the mirror have seen becomes a candidate (a call with neither provider nor
    family names no route). A route that no listed model matches gets one offer without prices from its first use on.
    A matched one gets an offer per price period, from its first use or its first listing, whichever is earlier.
    Before the first listing and after a delisting the price is unknown (null), since nothing vouches for it: the
    routing core then reads +inf, and cost drift skips the call.

    Running again replaces what an earlier run wrote, in one transaction. Offers and prices from elsewhere (recorded
    by a router, or imported) are not ours: offers make it refuse, prices are kept, unless `replace` is given.
    """
    rules = rules or load_rules(prices.source)
    prices = join_renames(prices, rules.spelled)
    seen, merged = seen_routes(connection)
    if not seen:
        raise ReplayError(
            "The mirror has no calls and no attempts, so there is no route to price; "
            "expected a ledger. Import one first: replay import."
        )
    matches = match_families(seen, prices, rules)
    candidates = [route for route in seen if route.provider or route.family]
    offers = offers_of(candidates, matches, prices.listings)
    connection.execute("BEGIN TRANSACTION")
    try:
        replaced = _clear_offers(connection, replace)
        _insert(connection, offers)
        written, kept = _write_latest_prices(connection, matches, prices.listings, replaced, replace)
        coverage = measure_coverage(connection, matches)
        connection.execute("COMMIT")
    except BaseException as error:
        with suppress(duckdb.Error):  # a failed commit has already rolled back
            connection.execute("ROLLBACK")
        if isinstance(error, duckdb.Error):
            raise ReplayError(
                f"The offers could not be written: {str(error).splitlines()[0]}. Expected a mirror that can be "
                "written; nothing was changed. If the disk is full, make room and try again."
            ) from error
        raise
    return FillReport(
        prices, rules.version, len(candidates), merged, len(offers), len(replaced), written, kept, coverage
    )


def seen_routes(connection: duckdb.DuckDBPyConnection) -> tuple[list[SeenRoute], int]:
    """Return the candidate routes of a ledger in byte order of their keys, and how many ledger routes were merged.

    A direct route may be written with an empty served_by or with the provider's own name: both are one candidate.
    First use is the instant of the first decision for it, or the start of its first attempt.
    """
    routes: dict[str, SeenRoute] = {}
    rows = connection.execute(_USED).fetchall()
    for provider, family, served_by, used_at, served_ids in rows:
        peer = served_by if served_by not in ("", provider) else None
        new = SeenRoute(provider, family, peer, int(used_at), frozenset(served_ids or ()))
        old = routes.get(new.key, new)
        routes[new.key] = dataclasses.replace(
            new,
            first_use_ms=min(old.first_use_ms, new.first_use_ms),
            served_ids=old.served_ids | new.served_ids,
        )
    ordered = sorted(routes.values(), key=lambda route: route.key.encode())
    return ordered, len(rows) - len(routes)


def match_families(seen: Iterable[SeenRoute], prices: PriceList, rules: NamingRules) -> dict[Family, Match | None]:
    """Join each (provider, family) to a listed model, by its family and else by the one served model it ever named."""
    matcher = Matcher(rules, {name: listing.other_names for name, listing in prices.listings.items()})
    served: dict[Family, frozenset[str]] = {}
    for route in seen:
        family = (route.provider, route.family)
        served[family] = served.get(family, frozenset()) | route.served_ids
    found: dict[Family, Match | None] = {}
    for family, served_ids in served.items():
        names = [family[1], *(served_ids if len(served_ids) == 1 else ())]
        tries = (matcher.match(Asked(family[0], name)) for name in names)
        found[family] = next((match for match in tries if match is not None), None)
    return found


def offers_of(
    seen: Sequence[SeenRoute], matches: Mapping[Family, Match | None], listings: Mapping[str, Listing]
) -> list[OfferRow]:
    """Return the offers of routes given in candidate order: per route its periods, in order and without overlap."""
    offers = []
    for position, route in enumerate(seen):
        match = matches[route.provider, route.family]
        periods = route_periods(route.first_use_ms, listings[match.listed].periods if match else ())
        offers += [_offer(route, position, match, period) for period in periods]
    return offers


def route_periods(first_use_ms: int, listed: Sequence[Period]) -> list[Period]:
    """Return the periods that cover a route from its first use or first listing on, for ever, without a gap.

    >>> from replay.ledger.offers.pricelist import make_periods
    >>> [(p.from_ms, p.to_ms, p.terms.price_in) for p in route_periods(3, make_periods([(9, Terms(1.0, 2.0))]))]
    [(3, 9, None), (9, None, 1.0)]
    """
    if not listed:
        return [Period(first_use_ms, None, Terms())]
    start = listed[0].from_ms
    if start is not None and start <= first_use_ms:
        return list(listed)
    if start is not None:
        return [Period(first_use_ms, start, Terms()), *listed]
    current = [period for period in listed if period.to_ms is None or period.to_ms > first_use_ms]
    return [dataclasses.replace(current[0], from_ms=_later(current[0].from_ms, first_use_ms)), *current[1:]]


def _later(from_ms: int | None, first_use_ms: int) -> int:
    return first_use_ms if from_ms is None else max(from_ms, first_use_ms)


def _offer(route: SeenRoute, position: int, match: Match | None, period: Period) -> OfferRow:
    assert period.from_ms is not None, "a route's periods begin at a known instant"
    tools = period.terms.supports_tools
    row = OfferRow(
        valid_from=period.from_ms,
        valid_to=period.to_ms,
        position=position,
        provider_id=route.provider,
        model_family=route.family,
        served_model_id=match.listed if match else None,
        peer_id=route.peer,
        price_in=period.terms.price_in,
        price_out=period.terms.price_out,
        price_cached_in=period.terms.price_cached_in,
        capabilities=None if tools is None else json.dumps({"supports_tools": bool(tools)}),
        context=period.terms.context,
    )
    return dataclasses.replace(row, id=offer_id(row))


def offer_id(row: OfferRow) -> int:
    """Return the id that marks an offer as written here: 2^62 and 62 bits of a hash over its values and a salt.

    An offer whose id is not this one was recorded by a router, imported, or changed by hand.
    """
    content = json.dumps(["replay prices", *values(row)[1:]], ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.md5(content.encode(), usedforsecurity=False).digest()
    return 2**62 + (int.from_bytes(digest, "big") & (2**62 - 1))


def _clear_offers(connection: duckdb.DuckDBPyConnection, replace: bool) -> list[OfferRow]:
    """Delete the offers and return them; refuse if one of them is not ours and `replace` is not given."""
    names = columns(OfferRow)
    found = connection.execute(f"SELECT {', '.join(names)} FROM offer_history").fetchall()
    old = [OfferRow(**dict(zip(names, row, strict=True))) for row in found]
    foreign = sum(row.id != offer_id(row) for row in old)
    if foreign and not replace:
        raise ReplayError(
            f"offer_history holds {foreign} offers that replay prices did not write (a router or an import did). "
            "They say what each decision could see, better than a price list can. Nothing was changed. "
            "To discard them, give --replace."
        )
    connection.execute("DELETE FROM offer_history")
    return old


def _insert(connection: duckdb.DuckDBPyConnection, offers: Sequence[OfferRow]) -> None:
    import polars as pl

    names = columns(OfferRow)
    types = {"id": pl.Int64, "valid_from": pl.Int64, "valid_to": pl.Int64, "position": pl.Int32, "context": pl.Int64}
    numbers = ("price_in", "price_out", "price_cached_in", "price_multiplier", "tok_s")
    flags = ("has_tee", "no_log")
    schema = {
        name: types.get(name) or (pl.Float64 if name in numbers else pl.Boolean if name in flags else pl.String)
        for name in names
    }
    frame = pl.DataFrame([values(offer) for offer in offers], schema=schema, orient="row")
    connection.register("new_offers", frame)
    connection.execute(f"INSERT INTO offer_history ({', '.join(names)}) SELECT {', '.join(names)} FROM new_offers")
    connection.unregister("new_offers")


Latest = tuple[float, float, float | None, int | None]
"""price_in, price_out, price_cached_in, since when (ms)."""


def _latest_listed(periods: Iterable[Period]) -> Latest | None:
    for period in reversed(list(periods)):
        if period.terms.price_in is not None and period.terms.price_out is not None:
            return period.terms.price_in, period.terms.price_out, period.terms.price_cached_in, period.from_ms
    return None


def _write_latest_prices(
    connection: duckdb.DuckDBPyConnection,
    matches: Mapping[Family, Match | None],
    listings: Mapping[str, Listing],
    replaced: Sequence[OfferRow],
    replace: bool,
) -> tuple[int, int]:
    """Write the latest list price per family; return how many were written and how many foreign ones kept.

    A row is ours if its prices are what the offers just replaced say. Where the list does not know since when a price
    holds, `updated_at` is null.
    """
    table = "SELECT provider_id, model_family, price_in, price_out, price_cached_in FROM provider_prices"
    present = {(row[0], row[1]): tuple(row[2:]) for row in connection.execute(table).fetchall()}
    listed = {family: _latest_listed(listings[match.listed].periods) for family, match in matches.items() if match}
    latest = {family: price for family, price in listed.items() if price is not None}
    written_before = _latest_in_offers(replaced)
    ours = {family for family, price in present.items() if written_before.get(family) == price}
    stale = sorted(ours | (present.keys() & latest.keys() if replace else set()))
    if stale:
        connection.executemany("DELETE FROM provider_prices WHERE provider_id = $1 AND model_family = $2", stale)
    kept = latest.keys() & (present.keys() - set(stale))
    new = [(*family, *price) for family, price in sorted(latest.items()) if family not in kept]
    if new:
        connection.executemany("INSERT INTO provider_prices VALUES ($1, $2, $3, $4, $5, $6)", new)
    return len(new), len(kept)


def _latest_in_offers(offers: Iterable[OfferRow]) -> dict[Family, tuple[float, float, float | None]]:
    latest: dict[Family, tuple[float, float, float | None]] = {}
    for row in sorted(offers, key=lambda row: row.valid_from):
        if row.price_in is not None and row.price_out is not None and row.id == offer_id(row):
            family = (row.provider_id or "", row.model_family or "")
            latest[family] = (row.price_in, row.price_out, row.price_cached_in)
    return latest
