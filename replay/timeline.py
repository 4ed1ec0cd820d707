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

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from replay.errors import ReplayError
from replay.ledger.load import Ledger
from replay.settings import Settings
from replay.virtual import Luck

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NEVER = np.int64(2**62)
"""A key no reader reaches."""

BEFORE = np.int64(2**61)
"""Keys of what came before the first snapshot of a ledger: instants less this, so below every snapshot's place."""


@dataclass(frozen=True)
class Attempts:
    """Attempts as arrays of one length, sorted by id. -1 stands for an absent index, start, number or txid."""

    id: Ints
    ts_ms: Ints
    start_ms: Ints
    route: Ints
    provider: list[str]
    call: Ints
    number: Ints
    ok: Bools
    latency_ms: Floats  # nan: not recorded; inf: recorded, but no finite number
    error_kind: list[str | None]
    tools_requested: Bools
    tools_emitted: Bools
    replica: list[str | None]
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
    snapshot: list[str | None]
    state: list[str | None]
    replica: list[str | None]
    replica_seq: Ints
    rows: list[dict[str, Any]]  # request, requested_model, policy_id, settings_id as recorded

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

    `visible_ms` is each attempt's end plus the assumed write lag. Recorded: `snapshots[key − 1]` is what a reader with
    that key saw, and of rows without a transaction id those that were visible before `reach_ms[key − 1]`.
    """

    kind: Literal["recorded", "lagged"]
    attempts: Ints
    calls: Ints
    visible_ms: Ints
    snapshots: list[Snapshot]
    reach_ms: Ints
    _known_ms: Ints  # recorded: evidence instants in order, and the highest key read until then
    _known_key: Ints

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
    parts = [pl.col(name).fill_null("") for name in ("provider_id", "model_family", "served_by")]
    return pl.concat_str(parts, separator="|").alias("route_key")


def build(ledger: Ledger) -> Timeline:
    """Put a ledger on its timeline. What had to be inferred for it, `replay.ledger.lacks` says."""
    calls = _call_frame(ledger)
    attempts = ledger.attempts.with_columns(route_key_expr())
    offer_routes = ledger.offers.select(offer_route_expr())["route_key"]
    used = pl.concat(
        [
            attempts.select("route_key", at_ms=pl.coalesce(_start_ms(), "ts")),
            calls.select(route_key="route", at_ms="decided_ms").drop_nulls(),
        ]
    )
    first_ms = dict(used.group_by("route_key").agg(pl.col("at_ms").min()).iter_rows())
    routes = sorted({*first_ms, *offer_routes}, key=str.encode)
    index = {key: number for number, key in enumerate(routes)}
    first = np.array([*(first_ms.get(key, NEVER) for key in routes), NEVER], dtype=np.int64)
    call_of = {row: number for number, row in enumerate(calls["usage_event_id"]) if row is not None}
    attempt_arrays = _attempts(attempts, index, call_of)
    return Timeline(ledger, routes, attempt_arrays, _calls(calls, index, attempt_arrays), index, first)


def offer_route_expr() -> pl.Expr:
    """Return the route key of an offer: served by its peer, else by the provider itself."""
    peer = pl.when(pl.col("peer_id").fill_null("") == "").then(pl.col("provider_id")).otherwise(pl.col("peer_id"))
    parts = [pl.col("provider_id").fill_null(""), pl.col("model_family").fill_null(""), peer.fill_null("")]
    return pl.concat_str(parts, separator="|").alias("route_key")


def _call_frame(ledger: Ledger) -> pl.DataFrame:
    """Add decided_ms, evidence_ms and route, and leave out calls that never reached a decision.

    A call without decided_at was decided its latency before it ended.
    """
    guessed = pl.col("ts") * 1000 - _known_latency_ms().fill_null(0)
    frame = ledger.calls.with_columns(decided_ms=pl.coalesce("decided_at", guessed))
    frame = frame.with_columns(evidence_ms=pl.coalesce("evidence_at", "decided_ms"))
    frame = frame.with_columns(route=pl.when(pl.col("route_key") != "").then(pl.col("route_key")))
    # Where replicas number their decisions, a call of one without a number ended before it was decided.
    unnumbered = pl.col("replica_seq").is_null()
    frame = frame.filter(pl.col("replica").is_null() | ~unnumbered | unnumbered.all())
    return frame.sort("decided_ms", "id")


def _known_latency_ms() -> pl.Expr:
    """The latency in whole ms, null where it is unknown; a recorded 0 is unknown."""
    latency = pl.col("latency_ms")
    known = latency.is_not_null() & latency.is_finite() & (latency > 0)
    return pl.when(known).then(latency).round(mode="half_to_even").cast(pl.Int64, strict=False)


def _start_ms() -> pl.Expr:
    """When an attempt began, null where it is unknown."""
    return pl.coalesce("started_at", pl.col("ts") - _known_latency_ms())


def _attempts(frame: pl.DataFrame, index: dict[str, int], call_of: dict[str, int]) -> Attempts:
    frame = frame.with_columns(start=_start_ms())
    calls = [call_of.get(request, -1) if request is not None else -1 for request in frame["request_id"]]
    return Attempts(
        id=_ints(frame["id"]),
        ts_ms=_ints(frame["ts"]),
        start_ms=_ints(frame["start"]),
        route=np.array([index[key] for key in frame["route_key"]], dtype=np.int64),
        provider=frame["provider_id"].fill_null("").to_list(),
        call=np.array(calls, dtype=np.int64),
        number=_ints(frame["attempt"]),
        ok=frame["ok"].to_numpy().astype(np.bool_),
        latency_ms=_latencies(frame["latency_ms"]),
        error_kind=frame["error_kind"].to_list(),
        tools_requested=frame["tools_requested"].fill_null(False).to_numpy().astype(np.bool_),
        tools_emitted=frame["tool_calls_emitted"].fill_null(False).to_numpy().astype(np.bool_),
        replica=frame["replica"].to_list(),
        replica_seq=_ints(frame["replica_seq"]),
        txid=_ints(frame["txid"]),
    )


def _calls(frame: pl.DataFrame, index: dict[str, int], attempts: Attempts) -> Calls:
    first = np.full(len(frame), -1, dtype=np.int64)
    for number in np.flatnonzero((attempts.number == 1) & (attempts.call >= 0)):
        first[attempts.call[number]] = number
    columns = ["request", "requested_model", "policy_id", "settings_id", "session_id", "usage_event_id"]
    return Calls(
        id=_ints(frame["id"]),
        decided_ms=_ints(frame["decided_ms"]),
        evidence_ms=_ints(frame["evidence_ms"]),
        route=np.array([-1 if key is None else index[key] for key in frame["route"]], dtype=np.int64),
        first_attempt=first,
        snapshot=frame["evidence_snapshot"].to_list(),
        state=frame["evidence_state"].to_list(),
        replica=frame["replica"].to_list(),
        replica_seq=_ints(frame["replica_seq"]),
        rows=frame.select(columns).to_dicts(),
    )


def _latencies(series: pl.Series) -> Floats:
    latencies = series.cast(pl.Float64)
    unusable = (~latencies.is_finite()).fill_null(False).to_numpy()
    values = latencies.fill_null(float("nan")).to_numpy().astype(np.float64)
    return np.where(unusable, np.inf, values)


def _ints(series: pl.Series) -> Ints:
    return series.cast(pl.Int64).fill_null(-1).to_numpy().astype(np.int64)


# Visibility


@dataclass(frozen=True)
class Snapshot:
    """What a transaction could see: ids below `xmin`, and those below `xmax` that were not in progress.

    >>> snapshot = Snapshot.parse("10:14:11,12")
    >>> [txid for txid in range(8, 16) if snapshot.sees(txid)], snapshot.size
    ([8, 9, 10, 13], 12)
    """

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read the text form of `pg_current_snapshot()`, xmin:xmax:xip,…; raises ReplayError for any other."""
        found = re.fullmatch(r"([0-9]{1,19}):([0-9]{1,19}):((?:[0-9]{1,19}(?:,[0-9]{1,19})*)?)", text)
        if found is None:
            raise ReplayError(
                f"a call has the evidence_snapshot {text[:80]!r}; expected xmin:xmax:xip,… as pg_current_snapshot() "
                'writes it, or null where it is unknown; correct the ledger, or set visibility = "lagged"'
            )
        xmin, xmax, running = found.groups()
        return cls(int(xmin), int(xmax), frozenset(int(one) for one in running.split(",") if one))

    def sees(self, txid: int) -> bool:
        """Say whether the writes of a finished transaction are visible."""
        return txid < self.xmin or (txid < self.xmax and txid not in self.running)

    @property
    def size(self) -> int:
        """How many ids it sees. Snapshots of one cluster only ever grow, so this orders them by what they see."""
        return self.xmax - len(self.running)


NOTHING = Snapshot(0, 0, frozenset())
"""A snapshot that sees no transaction."""


def visibility(timeline: Timeline, settings: Settings) -> Visibility:
    """Return who sees what: recorded where the ledger has snapshots and the settings do not say otherwise."""
    recorded = any(text is not None for text in timeline.calls.snapshot)
    if settings.visibility == "best" and recorded and np.any(timeline.attempts.txid >= 0):
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
    return Visibility("lagged", keys, timeline.calls.evidence_ms, keys, [], nothing, nothing, nothing)


def _recorded(timeline: Timeline, settings: Settings) -> Visibility:
    """Line up the decisions with a snapshot by what they saw; an attempt's key is the place of the first that sees it.

    What has no place there goes by time. A decision without a snapshot (its reading failed, or it is older than
    snapshots) saw what the latest one before it had seen; before the first snapshot, whatever was visible by then. A
    row without a transaction id is seen once its visible instant has been passed by a decision, and by all that saw
    more than that one, so that nobody unsees it where the clocks of two replicas differ.
    """
    calls, attempts = timeline.calls, timeline.attempts
    parsed = {text: Snapshot.parse(text) for text in calls.snapshot if text is not None}
    having = np.flatnonzero([text is not None for text in calls.snapshot])
    sizes = np.array([parsed[text].size for text in calls.snapshot if text is not None], dtype=np.int64)
    order = having[np.lexsort((calls.id[having], calls.evidence_ms[having], sizes))]
    snapshots = [parsed[calls.snapshot[call] or ""] for call in order.tolist()]
    reach_ms = np.maximum.accumulate(calls.evidence_ms[order])
    by_time = np.argsort(calls.evidence_ms[order], kind="stable")
    known_ms, known_key = calls.evidence_ms[order][by_time], np.maximum.accumulate(by_time + 1)

    visible_ms = attempts.ts_ms + _lags(timeline, settings)
    first_seen = {txid: _first_seen(snapshots, txid) for txid in set(attempts.txid.tolist()) if txid >= 0}
    seen = np.array([first_seen.get(txid, -1) for txid in attempts.txid.tolist()], dtype=np.int64)
    passed = np.searchsorted(reach_ms, visible_ms, side="right")
    keys = np.where(attempts.txid >= 0, seen, np.where(passed < len(order), passed, NEVER))
    keys = np.where((keys == 0) & (visible_ms < known_ms[0]), visible_ms - BEFORE, keys)

    result = Visibility("recorded", keys, known_key, visible_ms, snapshots, reach_ms, known_ms, known_key)
    call_keys = result.instants(calls.evidence_ms)
    call_keys[order] = np.arange(1, len(order) + 1)
    return replace(result, calls=call_keys)


def _first_seen(snapshots: list[Snapshot], txid: int) -> int:
    """Return the number of the first snapshot that sees a transaction (they only grow), NEVER if none does."""
    low, high = 0, len(snapshots)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if snapshots[middle].sees(txid) else (middle + 1, high)
    return low if low < len(snapshots) else int(NEVER)
