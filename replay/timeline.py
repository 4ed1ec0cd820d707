"""The timeline: every call and attempt of a ledger as arrays, and when each attempt became visible to whom.

Time has one rule everywhere: an attempt has a *key*, a reader has a key, and the reader sees the attempt exactly
when the attempt's key is smaller. What a key is depends on what the ledger recorded:

    recorded   key of an attempt: the first evidence snapshot that sees its transaction; of a decision: its snapshot
    lagged     key of an attempt: its end + write lag; of a decision: its evidence instant, both in ms
    in process key of an attempt and of a decision: their place in the replica's own numbering, else their instants

    attempt ends   ─────┬──── visible ────┬─────────────▶
                    ts  │    ts + lag = v │
    decision        not seen at e ≤ v     seen at e > v
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from replay.kernel.compiled import compiled
from replay.kernel.layout import sorted_by
from replay.kernel.snapshots import first_seen
from replay.ledger.load import Ledger
from replay.matching import last_places
from replay.settings import Settings
from replay.snapshots import Snapshot, Snapshots
from replay.virtual import Luck

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Codes = NDArray[np.int32]

NEVER = np.int64(2**62)
"""A key no reader reaches."""

BEFORE = np.int64(2**61)
"""Keys of what came before the first snapshot of a ledger: instants less this, so below every snapshot's place."""


_ROUTE_PARTS = ("provider_id", "model_family", "served_by")
_DENSE_UP_TO = 2**22


@dataclass(frozen=True)
class Texts:
    """A column of texts as numbers: `codes[i]` is the place in `values` of row i's text, -1 where it has none.

    >>> texts = Texts.of(pl.Series(["b", None, "a", "b"]))
    >>> texts.values, texts.codes.tolist(), texts[1], texts[3]
    (['a', 'b'], [1, -1, 0, 1], None, 'b')
    """

    codes: Codes
    values: list[str]

    @classmethod
    def of(cls, series: pl.Series) -> Texts:
        """Number the distinct texts of a column in byte order."""
        if isinstance(series.dtype, pl.Enum):  # as `load_ledger` makes them, its values in byte order
            codes, known = _codes(series.to_physical()), series.dtype.categories
            return cls(codes, [known[code] for code in _renumber(codes, len(known)).tolist()])
        values = series.drop_nulls().unique().sort()
        return cls(_codes(series.cast(pl.Enum(values), strict=True).to_physical()), values.to_list())

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> str | None:
        code = int(self.codes[row])
        return None if code < 0 else self.values[code]

    def __iter__(self) -> Iterator[str | None]:
        known = [*self.values, None]  # -1, no text, is the last
        return (known[code] for code in self.codes.tolist())

    def code(self, text: str) -> int:
        """Return the number of a text, -2 (of no row) if no row has it."""
        return self.values.index(text) if text in self.values else -2

    def or_empty(self) -> Texts:
        """Return the same with the empty text where there is none."""
        if (self.codes >= 0).all():
            return self
        if self.values[:1] == [""]:
            return Texts(np.maximum(self.codes, 0), self.values)
        return Texts(self.codes + np.int32(1), ["", *self.values])


@dataclass(frozen=True)
class Attempts:
    """Attempts as arrays of one length, sorted by id. -1 stands for an absent index, start, number or txid."""

    id: Ints
    ts_ms: Ints
    start_ms: Ints
    route: Ints
    provider: Texts
    call: Ints
    number: Ints
    ok: Bools
    latency_ms: Floats  # nan: not recorded; inf: recorded, but no finite number
    error_kind: Texts
    tools_requested: Bools
    tools_emitted: Bools
    replica: Texts
    replica_seq: Ints
    txid: Ints

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True)
class Calls:
    """Calls as arrays of one length, sorted by (decided_ms, id); each is one decision."""

    id: Ints
    decided_ms: Ints
    evidence_ms: Ints
    route: Ints  # the final route as recorded, -1: none
    first_attempt: Ints  # index of the attempt numbered 1, -1: unknown
    snapshot: Snapshots
    state: Texts
    replica: Texts
    replica_seq: Ints
    request: Texts
    requested_model: Texts
    policy_id: Texts
    settings_id: Texts

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True)
class Timeline:
    """A ledger on one axis. `routes` are all route keys of attempts, calls and offers in byte order."""

    ledger: Ledger
    routes: list[str]
    attempts: Attempts
    calls: Calls
    _index: dict[str, int]
    _first_ms: Ints  # per route: the first attempt's start or call's decision; NEVER without any, and for "no route"

    @cached_property
    def taken(self) -> Ints:
        """The number of the route that each call took: its first attempt's where known, else its final one."""
        first = self.calls.first_attempt
        if not len(self.attempts):
            return self.calls.route
        return np.where(first >= 0, self.attempts.route[np.maximum(first, 0)], self.calls.route)

    def number(self, key: str) -> int:
        """Return the number of a route key as the ledger writes it, -1 (no route) if it never does."""
        return self._index.get(key, -1)

    def route_of(self, candidate_key: str, at_ms: int) -> int:
        """Return the number of a candidate's route at an instant.

        A direct candidate is served by its provider (`p|m|p`); a ledger that leaves the server out writes `p|m|`.
        Where only the latter was seen until then, it is that candidate's route.
        """
        index, bare = self._index.get(candidate_key, -1), self._index.get(_without_server(candidate_key) or "", -1)
        return bare if index < 0 or self._first_ms[index] > at_ms >= self._first_ms[bare] else index

    def renamed_ms(self, candidate_key: str) -> set[int]:
        """Return the instants at which a candidate's route may change its name: see `route_of`."""
        bare = self._index.get(_without_server(candidate_key) or "", -1)
        first_ms = {int(self._first_ms[self._index.get(candidate_key, -1)]), int(self._first_ms[bare])}
        return first_ms - {int(NEVER)} if self._first_ms[bare] < NEVER else set()


def _without_server(key: str) -> str | None:
    provider, family, served_by = (*key.split("|", 2), "", "")[:3]
    return f"{provider}|{family}|" if served_by == provider else None


@dataclass(frozen=True)
class Visibility:
    """Keys of every attempt and every decision; `instants` gives the key of a reader at any instant.

    `visible_ms` is each attempt's end plus the assumed write lag. Recorded: `snapshot(key)` is what a reader with that
    key saw, and of rows without a transaction id those that were visible before `reach_ms[key − 1]`.
    """

    kind: Literal["recorded", "lagged"]
    attempts: Ints
    calls: Ints
    visible_ms: Ints
    reach_ms: Ints
    _known_ms: Ints  # recorded: evidence instants in order, and the highest key read until then
    _known_key: Ints
    _snapshots: pl.Series  # recorded: their texts, in the order of what they see

    def snapshot(self, key: int) -> Snapshot:
        """Return what a reader with this key saw: recorded visibility, keys from 1."""
        return Snapshot.parse(self._snapshots[key - 1])

    def reaches(self, at_ms: int) -> bool:
        """Say whether it is known what a reader at an instant saw: recorded visibility begins with a snapshot."""
        return self.kind == "lagged" or bool(len(self._known_ms) and self._known_ms[0] <= at_ms)

    def instants(self, at_ms: Ints) -> Ints:
        """Return the reader's key at each instant; recorded: what the latest decision until then had seen."""
        if self.kind == "lagged":
            return at_ms
        place = np.searchsorted(self._known_ms, at_ms, side="right") - 1
        return np.where(place >= 0, self._known_key[np.maximum(place, 0)], at_ms - BEFORE).astype(np.int64)


def route_key_expr() -> pl.Expr:
    """Return the route key of an attempt's three parts, a missing part written as the empty string.

    >>> frame = pl.DataFrame({"provider_id": ["p"], "model_family": ["m"], "served_by": [None]})
    >>> frame.select(route_key_expr()).item()
    'p|m|'
    """
    parts = [pl.col(name).cast(pl.String).fill_null("") for name in _ROUTE_PARTS]
    return pl.concat_str(parts, separator="|").alias("route_key")


def build(ledger: Ledger) -> Timeline:
    """Put a ledger on its timeline. What had to be inferred for it, `replay.ledger.lacks` says."""
    calls = _call_frame(ledger)
    provider, *others = (Texts.of(ledger.attempts[name]).or_empty() for name in _ROUTE_PARTS)
    taken, ended = _route_keys(provider, *others), Texts.of(calls["route"])
    offered = ledger.offers.select(offer_route_expr())["route_key"]
    routes = sorted({*taken.values, *ended.values, *offered}, key=str.encode)
    index = {key: number for number, key in enumerate(routes)}
    of_attempts, of_calls = (_numbers(texts, index) for texts in (taken, ended))
    arrays = _attempts(
        ledger.attempts, of_attempts, provider, last_places(ledger.attempts["request_id"], calls["usage_event_id"])
    )
    on_calls = _calls(calls, of_calls, arrays)
    first_ms = np.full(len(routes) + 1, NEVER, dtype=np.int64)
    np.minimum.at(first_ms, of_attempts, np.where(arrays.start_ms >= 0, arrays.start_ms, arrays.ts_ms))
    np.minimum.at(first_ms, of_calls, on_calls.decided_ms)
    first_ms[-1] = NEVER
    return Timeline(ledger, routes, arrays, on_calls, index, first_ms)


def _route_keys(*parts: Texts) -> Texts:
    """Join the parts of every row's route key; the keys are numbered in no particular order."""
    joined = np.zeros(len(parts[0]), dtype=np.int64)
    for part in parts:
        joined = joined * len(part.values) + part.codes
    distinct, codes = densely(joined)
    keys = []
    for number in distinct.tolist():
        names = []
        for part in reversed(parts):
            number, place = divmod(number, len(part.values))
            names.append(part.values[place])
        keys.append("|".join(reversed(names)))
    return Texts(codes, keys)


def densely(codes: Ints) -> tuple[Ints, Codes]:
    """Return the distinct codes in order, and each row's place among them."""
    highest = int(codes.max(initial=0))
    if highest > _DENSE_UP_TO:
        distinct, places = np.unique(codes, return_inverse=True)
        return distinct, places.astype(np.int32)
    used = np.bincount(codes, minlength=1) > 0
    distinct = np.flatnonzero(used).astype(np.int64)
    return distinct, (np.cumsum(used, dtype=np.int32) - np.int32(1))[codes]


@compiled
def _renumber(codes: Codes, known: int) -> Ints:
    """Number the codes below `known` that occur anew, in their order and in place; returns them. -1 stays -1."""
    number = np.full(known, -1, dtype=np.int32)
    for row in range(len(codes)):
        if codes[row] >= 0:
            number[codes[row]] = 0
    used = np.flatnonzero(number == 0).astype(np.int64)
    for place in range(len(used)):
        number[used[place]] = place
    for row in range(len(codes)):
        if codes[row] >= 0:
            codes[row] = number[codes[row]]
    return used


def _numbers(texts: Texts, index: dict[str, int]) -> Ints:
    """Return each row's number in an index, -1 where it has no text."""
    return np.array([*(index[text] for text in texts.values), -1], dtype=np.int64)[texts.codes]


def offer_route_expr() -> pl.Expr:
    """Return the route key of an offer: served by its peer, else by the provider itself."""
    peer = pl.when(pl.col("peer_id").fill_null("") == "").then(pl.col("provider_id")).otherwise(pl.col("peer_id"))
    parts = [pl.col("provider_id").fill_null(""), pl.col("model_family").fill_null(""), peer.fill_null("")]
    return pl.concat_str(parts, separator="|").alias("route_key")


_CALL_COLUMNS = (
    *("id", "usage_event_id", "evidence_snapshot", "evidence_state", "replica", "replica_seq", "request"),
    *("requested_model", "policy_id", "settings_id"),
)


def _call_frame(ledger: Ledger) -> pl.DataFrame:
    """Add decided_ms, evidence_ms and route, and leave out calls that never reached a decision.

    A call without decided_at was decided its latency before it ended.
    """
    guessed = pl.col("ts") * 1000 - _known_latency_ms().fill_null(0)
    frame = ledger.calls.with_columns(decided_ms=pl.coalesce("decided_at", guessed))
    # Where replicas number their decisions, a call of one without a number ended before it was decided.
    unnumbered = pl.col("replica_seq").is_null()
    frame = frame.filter(pl.col("replica").is_null() | ~unnumbered | unnumbered.all())
    frame = frame.select(
        "decided_ms",
        *_CALL_COLUMNS,
        evidence_ms=pl.coalesce("evidence_at", "decided_ms"),
        route=pl.when(pl.col("route_key") != "").then(pl.col("route_key")),
    )
    in_order = frame["decided_ms"].is_sorted()  # and so by (decided_ms, id), as the ledger is sorted by id
    return frame if in_order else frame.sort("decided_ms", maintain_order=True)


def _known_latency_ms() -> pl.Expr:
    """The latency in whole ms, null where it is unknown; a recorded 0 is unknown."""
    latency = pl.col("latency_ms")
    known = latency.is_not_null() & latency.is_finite() & (latency > 0)
    return pl.when(known).then(latency).round(mode="half_to_even").cast(pl.Int64, strict=False)


def _start_ms() -> pl.Expr:
    """When an attempt began, null where it is unknown."""
    return pl.coalesce("started_at", pl.col("ts") - _known_latency_ms())


def _attempts(frame: pl.DataFrame, routes: Ints, provider: Texts, calls: Ints) -> Attempts:
    return Attempts(
        id=_ints(frame["id"]),
        ts_ms=_ints(frame["ts"]),
        start_ms=_ints(frame.select(_start_ms()).to_series()),
        route=routes,
        provider=provider,
        call=calls,
        number=_ints(frame["attempt"]),
        ok=frame["ok"].to_numpy().astype(np.bool_),
        latency_ms=_latencies(frame["latency_ms"]),
        error_kind=Texts.of(frame["error_kind"]),
        tools_requested=frame["tools_requested"].fill_null(False).to_numpy().astype(np.bool_),
        tools_emitted=frame["tool_calls_emitted"].fill_null(False).to_numpy().astype(np.bool_),
        replica=Texts.of(frame["replica"]),
        replica_seq=_ints(frame["replica_seq"]),
        txid=_ints(frame["txid"]),
    )


def _calls(frame: pl.DataFrame, routes: Ints, attempts: Attempts) -> Calls:
    first = np.full(len(frame), -1, dtype=np.int64)
    numbered_one = np.flatnonzero((attempts.number == 1) & (attempts.call >= 0))
    first[attempts.call[numbered_one]] = numbered_one  # of several, the last
    return Calls(
        id=_ints(frame["id"]),
        decided_ms=_ints(frame["decided_ms"]),
        evidence_ms=_ints(frame["evidence_ms"]),
        route=routes,
        first_attempt=first,
        snapshot=Snapshots(frame["evidence_snapshot"]),
        state=Texts.of(frame["evidence_state"]),
        replica=Texts.of(frame["replica"]),
        replica_seq=_ints(frame["replica_seq"]),
        request=Texts.of(frame["request"]),
        requested_model=Texts.of(frame["requested_model"]),
        policy_id=Texts.of(frame["policy_id"]),
        settings_id=Texts.of(frame["settings_id"]),
    )


def _latencies(series: pl.Series) -> Floats:
    latencies = series.cast(pl.Float64)
    unusable = (~latencies.is_finite()).fill_null(False).to_numpy()
    values = latencies.fill_null(float("nan")).to_numpy().astype(np.float64)
    return np.where(unusable, np.inf, values)


def _ints(series: pl.Series) -> Ints:
    # Writable, as compiled code is compiled once more for arrays that are not.
    return series.cast(pl.Int64).fill_null(-1).to_numpy(writable=True)


def _codes(physical: pl.Series) -> Codes:
    if not physical.null_count():
        return physical.to_numpy().astype(np.int32)
    return physical.cast(pl.Int32).fill_null(-1).to_numpy(writable=True)


# Visibility


def visibility(timeline: Timeline, settings: Settings) -> Visibility:
    """Return who sees what: recorded where the ledger has snapshots and the settings do not say otherwise."""
    if settings.visibility == "best" and timeline.calls.snapshot.known.any() and np.any(timeline.attempts.txid >= 0):
        return _recorded(timeline, settings)
    return _lagged(timeline, settings)


def lag_free(settings: Settings) -> Settings:
    """Return the settings as if every row were visible the moment its attempt ended."""
    return replace(settings, visibility="lagged", lag_ms=(0,))


def _lags(timeline: Timeline, settings: Settings) -> Ints:
    """Return each attempt's write lag in ms, drawn by the hash of (seed, row) where there are several."""
    choices = settings.lag_ms
    if len(choices) == 1:
        return np.full(len(timeline.attempts), choices[0], dtype=np.int64)
    luck = Luck(settings.seed)
    drawn = [choices[luck.whole(0, len(choices) - 1, "lag", row)] for row in timeline.attempts.id.tolist()]
    return np.array(drawn, dtype=np.int64)


def _lagged(timeline: Timeline, settings: Settings) -> Visibility:
    nothing = np.empty(0, dtype=np.int64)
    keys = timeline.attempts.ts_ms + _lags(timeline, settings)
    texts = pl.Series(dtype=pl.String)
    return Visibility("lagged", keys, timeline.calls.evidence_ms, keys, nothing, nothing, nothing, texts)


def _recorded(timeline: Timeline, settings: Settings) -> Visibility:
    """Line up the decisions with a snapshot by what they saw; an attempt's key is the place of the first that sees it.

    What has no place there goes by time. A decision without a snapshot (its reading failed, or it is older than
    snapshots) saw what the latest one before it had seen; before the first snapshot, whatever was visible by then. A
    row without a transaction id is seen once its visible instant has been passed by a decision, and by all that saw
    more than that one, so that nobody unsees it where the clocks of two replicas differ.
    """
    calls, attempts = timeline.calls, timeline.attempts
    read = calls.snapshot.read
    having = np.flatnonzero(calls.snapshot.known)
    order = having[sorted_by(read.size[having], calls.evidence_ms[having], calls.id[having])]
    texts = calls.snapshot.texts.gather(order)
    evidence_ms = calls.evidence_ms[order]
    reach_ms, by_time = np.maximum.accumulate(evidence_ms), sorted_by(evidence_ms)
    known_ms, known_key = evidence_ms[by_time], np.maximum.accumulate(by_time + 1)

    visible_ms = attempts.ts_ms + _lags(timeline, settings)
    seen = first_seen(*read.of(order), attempts.txid, int(NEVER))
    keys, unnumbered = seen, np.flatnonzero(attempts.txid < 0)
    passed = np.searchsorted(reach_ms, visible_ms[unnumbered], side="right")
    keys[unnumbered] = np.where(passed < len(order), passed, NEVER)
    keys = np.where((keys == 0) & (visible_ms < known_ms[0]), visible_ms - BEFORE, keys)

    result = Visibility("recorded", keys, known_key, visible_ms, reach_ms, known_ms, known_key, texts)
    call_keys = np.empty(len(calls), dtype=np.int64)
    call_keys[~calls.snapshot.known] = result.instants(calls.evidence_ms[~calls.snapshot.known])
    call_keys[order] = np.arange(1, len(order) + 1)
    return replace(result, calls=call_keys)
