"""The candidates of every moment as columns: what a program's instructions read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.core import Candidate
from replay.core.candidates import NO_STATE
from replay.core.fields import Field, observed, tier_of
from replay.kernel.program import ColumnKey, Names, Records
from replay.offerbook import Segment
from replay.orderhash import route_hash

NO_SCOPE = -1


PLACE = np.dtype(
    [
        ("price_in", "f8"),  # list prices as offered, nan: not known
        ("price_out", "f8"),
        ("key", "i4"),  # the route key as text
        ("dense", "i4"),  # the provider, for breakers and credits
        ("provider", "i4"),
        ("family", "i4"),
        ("served_by", "i4"),
        ("tier", "i4"),
        ("scope", "i4"),
        ("market", "i4"),
    ],
    align=True,
)


class Population(NamedTuple):
    """Places are the candidates of all segments end to end: segment s has the places `start[s]` to `start[s + 1]`.

    `place` has a record per place, `column` a row per static column; `route` is the route's number on the timeline (the
    number after the last for none), `hash` that of its key.
    """

    start: NDArray[np.int64]
    route: NDArray[np.int32]
    hash: NDArray[np.uint64]
    place: Records
    column: NDArray[np.float64]  # (columns, places)

    @property
    def widest(self) -> int:
        """The most candidates that any segment has."""
        return int(np.diff(self.start).max(initial=1))


def populate(segments: Sequence[Segment], routes: Sequence[str], providers: dict[str, int], names: Names) -> Population:
    """Lay segments out. `providers` numbers providers densely and is extended; `names` must know all columns."""
    candidates, which = distinct_candidates(segments)
    sizes = np.array([len(segment.candidates) for segment in segments], dtype=np.int64)
    columns = [[value(one) for one in candidates] for value in map(_reader, names.columns)]
    place = np.array([_record(one, providers, names) for one in candidates], dtype=PLACE)[which]
    route = np.concatenate([np.empty(0, np.int64), *(segment.routes for segment in segments)])
    route = np.where(route < 0, len(routes), route)
    hashes = np.array([*(route_hash(key) for key in routes), route_hash("")], dtype=np.uint64)
    return Population(
        start=np.append(0, np.cumsum(sizes)).astype(np.int64),
        route=route.astype(np.int32),
        hash=hashes[route],
        place=place,
        column=np.array(columns, dtype=np.float64).reshape(len(names.columns), -1)[:, which].copy(),
    )


def distinct_candidates(segments: Sequence[Segment]) -> tuple[list[Candidate], NDArray[np.int64]]:
    """Return the candidates in the order in which they first come, and which of them each place has.

    Segments share the objects of candidates that did not change in between.
    """
    everyone = [candidate for segment in segments for candidate in segment.candidates]
    objects = np.fromiter(map(id, everyone), dtype=np.uint64, count=len(everyone))
    _, first, which = np.unique(objects, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return [everyone[place] for place in first[order].tolist()], rank[which]


def _record(one: Candidate, providers: dict[str, int], names: Names) -> tuple[object, ...]:
    prices = [one.fields.get(name) for name in ("price_in", "price_out")]
    return (
        *(np.nan if price is None else float(price) for price in prices),
        names.text(one.route_key),
        providers.setdefault(one.provider_id, len(providers)),
        *(names.text(text) for text in (one.provider_id, one.model_family, one.served_by, tier_of(one.tier))),
        NO_SCOPE if one.scope is None else names.text(one.scope),
        one.tier == "marketplace",
    )


def _reader(key: ColumnKey) -> Callable[[Candidate], float]:
    """Return what reads a column's value of a candidate."""
    kind = key[0]
    if kind == "cap":
        name = str(key[1])
        return lambda candidate: float(bool(candidate.capabilities.get(name)))
    if kind == "tier_rank":
        tiers = key[1]
        assert isinstance(tiers, tuple)
        rank = {tier: float(place) for place, tier in reversed([*enumerate(tiers)])}
        return lambda candidate: rank.get(tier_of(candidate.tier), -1.0)
    if kind == "chain":
        entries = key[1]
        assert isinstance(entries, tuple)
        first = {(provider, family): float(place) for provider, family, place in reversed(entries)}
        return lambda candidate: first.get((candidate.provider_id, candidate.model_family), 0.0)
    _, field, sort, default = key
    declared = Field(sort, default)  # type: ignore[arg-type]

    def read(candidate: Candidate) -> float:
        value = observed(str(field), candidate, NO_STATE)
        if value is None:
            return float(declared.default)
        return float(bool(value)) if declared.sort == "Bool" else float(value)

    return read
