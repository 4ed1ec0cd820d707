"""The candidates of every moment as columns: what a program's instructions read."""

from __future__ import annotations

from collections.abc import Sequence
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
    distinct: dict[int, int] = {}
    candidates: list[Candidate] = []
    places: list[int] = []
    for segment in segments:
        for candidate in segment.candidates:
            if id(candidate) not in distinct:
                distinct[id(candidate)] = len(candidates)
                candidates.append(candidate)
            places.append(distinct[id(candidate)])
    which = np.array(places, dtype=np.int64)
    sizes = np.array([len(segment.candidates) for segment in segments], dtype=np.int64)
    columns = [[_value(key, one) for one in candidates] for key in names.columns]
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


def _value(key: ColumnKey, candidate: Candidate) -> float:
    kind = key[0]
    if kind == "cap":
        return float(bool(candidate.capabilities.get(str(key[1]))))
    if kind == "tier_rank":
        tiers, tier = key[1], tier_of(candidate.tier)
        assert isinstance(tiers, tuple)
        return float(tiers.index(tier)) if tier in tiers else -1.0
    if kind == "chain":
        entries = key[1]
        assert isinstance(entries, tuple)
        pair = (candidate.provider_id, candidate.model_family)
        return next((float(place) for provider, family, place in entries if (provider, family) == pair), 0.0)
    _, name, sort, default = key
    declared = Field(sort, default)  # type: ignore[arg-type]
    value = observed(str(name), candidate, NO_STATE)
    if value is None:
        return float(declared.default)
    return float(bool(value)) if declared.sort == "Bool" else float(value)
