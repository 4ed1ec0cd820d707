"""The `prices` setting: what the candidates would have cost at other prices."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from replay.core import Candidate
from replay.errors import ReplayError
from replay.offerbook import OfferBook, list_prices
from replay.prices import cost_usd
from replay.settings import Prices
from replay.timeline import Timeline

ListPrices = tuple[float, float, float]
"""(in, out, cached in), USD per million tokens."""


@dataclass(frozen=True)
class MeasuredSeries:
    """Reported calls of one (provider, family), by their end: running measured and expected cost in USD."""

    ends_ms: list[int]
    measured: list[float]
    expected: list[float]

    def deviation(self, at_ms: int, window_ms: int, min_calls: int) -> float | None:
        """Return measured ÷ expected over calls that ended in [at − window, at), None if there are too few."""
        low, high = bisect.bisect_left(self.ends_ms, at_ms - window_ms), bisect.bisect_left(self.ends_ms, at_ms)
        if high - low < min_calls:
            return None
        expected = self.expected[high] - self.expected[low]
        return (self.measured[high] - self.measured[low]) / expected if expected > 0 else None


@dataclass(frozen=True)
class PriceFactors:
    """Which prices a decision's candidates carry instead of the recorded ones."""

    setting: Prices
    fixed: Mapping[str, ListPrices | None] = field(default_factory=dict)
    measured: Mapping[tuple[str, str], MeasuredSeries] = field(default_factory=dict)

    @property
    def recorded(self) -> bool:
        """Whether candidates simply keep the prices they were recorded with."""
        return self.setting.mode == "recorded"

    def prices(
        self, at_ms: int, candidate: Candidate, listed: ListPrices | None
    ) -> tuple[float | None, float | None] | None:
        """Return (in, out) in USD per million tokens, None to keep the recorded ones."""
        if self.setting.mode == "at":
            if candidate.route_key not in self.fixed:
                return None  # not offered at that instant: it keeps its own price, rather than none
            fixed = self.fixed[candidate.route_key]
            return (None, None) if fixed is None else fixed[:2]
        if listed is None:
            return None
        if self.setting.mode == "scaled":
            factor = self.setting.scale.get(candidate.provider_id)
        else:
            series = self.measured.get((candidate.provider_id, candidate.model_family), MeasuredSeries([], [0], [0]))
            factor = series.deviation(at_ms, self.setting.window_ms, self.setting.min_calls)
        return None if factor is None else (listed[0] * factor, listed[1] * factor)


def price_factors(timeline: Timeline, book: OfferBook, setting: Prices) -> PriceFactors:
    """Prepare a `prices` setting for a timeline."""
    if setting.mode == "scaled":
        known = {candidate.provider_id for segment in book.segments for candidate in segment.candidates}
        unknown = sorted(set(setting.scale) - known)
        if unknown:
            raise ReplayError(
                f"prices.scale names provider {unknown[0]!r}, which no offer has; expected one of "
                f"{', '.join(sorted(known)) or 'none, as there are no offers'}: correct the name"
            )
    if setting.mode == "at" and setting.at_ms is not None:
        segment = book.at(setting.at_ms)
        pairs = enumerate(segment.candidates)
        return PriceFactors(setting, {one.route_key: list_prices(segment, place) for place, one in pairs})
    if setting.mode == "measured":
        return PriceFactors(setting, measured=_measured(timeline, book))
    return PriceFactors(setting)


def _measured(timeline: Timeline, book: OfferBook) -> dict[tuple[str, str], MeasuredSeries]:
    """Collect, per (provider, family), what reported calls cost and what the list price of their moment expected."""
    frame = timeline.ledger.calls.filter(
        (pl.col("cost_basis") == "reported") & pl.col("cost_usd").is_finite() & pl.col("tokens_in").is_not_null()
    )
    decided = dict(zip(timeline.calls.id.tolist(), timeline.calls.decided_ms.tolist(), strict=True))
    series: dict[tuple[str, str], list[tuple[int, int, float, float]]] = {}
    for row in frame.filter(pl.col("id").is_in(list(decided))).to_dicts():
        segment = book.at(decided[row["id"]])
        found = np.flatnonzero(segment.routes == timeline.number(row["route_key"] or ""))
        place = int(found[0]) if len(found) and timeline.number(row["route_key"] or "") >= 0 else None
        listed = None if place is None else list_prices(segment, place)
        if listed is not None and all(0 <= price < math.inf for price in listed):
            tokens = (row["tokens_in"], row["tokens_cached"] or 0, row["tokens_out"] or 0)
            expected = cost_usd(*tokens, *listed)
            key = (row["provider_id"] or "", row["model_family"] or "")
            last_ms = row["ts"] * 1000 + 999  # a call's end is known in whole seconds: never count it too early
            series.setdefault(key, []).append((last_ms, row["id"], row["cost_usd"], expected))
    return {key: _running(sorted(rows)) for key, rows in series.items()}


def _running(rows: list[tuple[int, int, float, float]]) -> MeasuredSeries:
    measured = np.concatenate([[0.0], np.cumsum([row[2] for row in rows])])
    expected = np.concatenate([[0.0], np.cumsum([row[3] for row in rows])])
    return MeasuredSeries([row[0] for row in rows], measured.tolist(), expected.tolist())
