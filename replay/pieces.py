"""Long ledgers, replayed piece by piece: in bounded memory, with the very result of the whole.

    rows read   ┈┈┈┈┈╞═══════ this piece ═══════╪═ ahead ═╡
                     │                          │
    ├─ health ─┼ reach ┤◀─── reported ─────────▶│ cut
     of before  in full

A piece is a span of time. It needs the rows before it that can still matter (`replay.keeping`): everything within the
longest window, what may still be under way, and of older rows what a process remembers of its providers. And it needs
rows ahead: its decisions' own attempts, and what they saw although its clock was ahead. Where that cannot be said
beforehand (a fold remembers everything), or the rows turn out otherwise, the ledger is replayed whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from replay import engine, timeline
from replay.asking import Policies
from replay.audit import SAMPLE
from replay.behind import Behind
from replay.core import Policy
from replay.engine import Core, Full, Part, Progress, Replaying, Run, Sink
from replay.errors import ReplayError
from replay.gaps import Numbering
from replay.keeping import kept_rows
from replay.ledger.lacks import count
from replay.ledger.load import Ledger, read_for_replay
from replay.ledger.mirror import open_mirror
from replay.ledger.spans import Extent, Spans, cuts_ms, extent
from replay.measuring import Measuring, Order, sight
from replay.memory import give_back
from replay.reproduction import recorded_settings
from replay.settings import Settings
from replay.slicing.reach import remembered_ms
from replay.timeline import NEVER, Timeline

CALLS_PER_PIECE = 131_072

Hashes = NDArray[np.uint64]

_MEMORY = "192MB"
"""What DuckDB may keep in memory of the file."""

_PIECES_PER_TIDYING = 8
"""How often freed memory is given back: at every piece it would cost more than it saves."""

_CLOCKS_MS = 60_000
"""How far ahead a clock may be; if it was more, that is noticed."""

_TRIES = 60
"""Whole seconds after a planned cut that are tried for one that no process's numbering contradicts."""


class NotInPiecesError(ReplayError):
    """The rows are not as a replay in pieces needs them; says why. The ledger can be replayed whole."""


def why_whole(known: Extent, settings: Sequence[Settings]) -> str | None:
    """Say why a ledger has to be replayed whole under these settings, given and recorded; None: pieces will do.

    >>> from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW
    >>> ledger = Extent(9, 9, 0, 10**9, 1_000, 0, 9, 9, 9, 9, 2)
    >>> why_whole(ledger, [PRODUCTION_NOW]), why_whole(ledger, [PRODUCTION_BEFORE])
    (None, 'production-before remembers everything')
    """
    for one in settings:
        if not one.windows_only:
            return f"{one.name} remembers everything"
        if any(measure.when_cold != measure.when_empty for measure in (one.reliability, one.latency)):
            return f"{one.name} tells a route that was never seen from one that was"
        if one.memo_ms is not None:
            return f"{one.name} reuses stamps"
        if one.prices.mode == "measured":
            return f"{one.name} measures prices"
    if not known.offers:
        return "the candidates are all routes of the ledger, as it has no offers"
    if known.txids not in (0, known.attempts):
        return "some attempts have a transaction id and some have not"
    return None


class RestartableSink(Sink, Protocol):
    """A sink that can forget the rows it took."""

    def restart(self) -> None:
        """Forget all rows: they come again."""


@dataclass(frozen=True)
class MirrorRun:
    """A mirror's replay: the run, the identity of what was read, what was inferred, and in how many pieces it was done.

    `whole` says why a long ledger was replayed whole all the same.
    """

    run: Run
    identity: dict[str, dict[str, Any]]
    inferred: list[str]
    pieces: int = 1
    whole: str | None = None


def replay_mirror(
    mirror: Path,
    settings: Sequence[Settings],
    sink: RestartableSink,
    policy: Policy | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
    progress: Progress | None = None,
    *,
    core: Core = "compiled",
    full: Full | None = None,
    calls_per_piece: int = CALLS_PER_PIECE,
) -> MirrorRun:
    """Replay a mirror file as `replay.engine.run` does a ledger: a long one in pieces, where that gives the same.

    Slices, full rankings and several settings at once are replayed whole.
    """
    why = None
    if len(settings) == 1 and since_ms is None and until_ms is None and full is None:
        try:
            return replay_in_pieces(
                mirror, settings[0], sink, policy, progress, core=core, calls_per_piece=calls_per_piece
            )
        except NotInPiecesError as error:
            why = str(error) or None
            sink.restart()
    ledger, inferred = read_for_replay(mirror)
    run = engine.run(ledger, settings, policy, since_ms, until_ms, progress, core=core, sink=sink, full=full)
    return MirrorRun(run, ledger.identity, inferred, whole=why)


def replay_in_pieces(
    mirror: Path,
    settings: Settings,
    sink: Sink,
    policy: Policy | None = None,
    progress: Progress | None = None,
    *,
    core: Core = "compiled",
    calls_per_piece: int = CALLS_PER_PIECE,
) -> MirrorRun:
    """Replay a mirror under one setting, piece by piece; `sink` takes the rows.

    Raises NotInPiecesError, maybe after rows were handed on, where the ledger has to be replayed whole.
    """
    say = progress or (lambda what, done, total: None)
    with open_mirror(mirror) as connection, ThreadPoolExecutor(1) as beside:
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        connection.execute("SET preserve_insertion_order = false")  # rows are sorted by their ids in any case
        known = extent(connection)
        if known.calls < 1.5 * calls_per_piece or not known.attempts or not (policy or _any_known_policy(connection)):
            raise NotInPiecesError  # where something is missing, the whole ledger's replay says what
        spans = Spans(connection, cuts_ms(connection, calls_per_piece), ahead_ms(known))
        used = connection.execute("SELECT DISTINCT settings_id FROM calls").fetchall()
        recorded = recorded_settings(spans.small["settings"])
        concerned = [settings, *(one for identity, one in recorded.items() if (identity,) in used)]
        pieces = _Pieces(known, spans.cuts_ms, concerned, policy)
        counting = beside.submit(count, connection.cursor())
        with Behind() as behind, _Proofs() as proofs:
            for number, (first_ms, rows) in enumerate(_one_ahead(iter(spans)), start=1):
                tell = _in_piece(say, number, len(spans.cuts_ms) + 1)
                tell("laying out the ledger", 0, 1)
                part = pieces.next(rows)
                replaying = Replaying(part, [settings], tell, behind, core=core, sink=sink)
                pieces.go_on(part, replaying.measured[0], first_ms)
                proofs.add(replaying)
                if number % _PIECES_PER_TIDYING == 0:
                    give_back()
            run = proofs.together()
        counted = counting.result()
        counted.orphans = pieces.require_all_found()
        return MirrorRun(run, spans.identity, counted.sentences(), number)


def _any_known_policy(connection: duckdb.DuckDBPyConnection) -> bool:
    found = connection.execute("SELECT 1 FROM calls WHERE policy_id IN (SELECT policy_id FROM policies) LIMIT 1")
    return found.fetchone() is not None


def ahead_ms(known: Extent) -> int:
    """Return how far the reading has to be ahead of the decisions that are reported."""
    return known.longest_ms + _CLOCKS_MS + 1_000 * _TRIES


def _in_piece(say: Progress, number: int, of: int) -> Progress:
    return lambda what, done, total: say(f"{what}, piece {number} of {of}", done, total)


def _one_ahead(spans: Iterator[tuple[int, Ledger]]) -> Iterator[tuple[int, Ledger]]:
    """Read the next span while the last is worked on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, spans, None)
        while (span := coming.result()) is not None:
            coming = pool.submit(next, spans, None)
            yield span


class _Pieces:
    """The way through a ledger, piece by piece: what is kept of those behind, and what must hold of each."""

    def __init__(
        self, known: Extent, cuts_ms: Sequence[int], concerned: Sequence[Settings], policy: Policy | None
    ) -> None:
        """`concerned` are the settings to replay under, and those under which decisions are reproduced."""
        self._known, self._settings, self._policy = known, concerned[0], policy
        mine = _processes(concerned[0])
        self._others = list({_processes(one): one for one in concerned if _processes(one) != mine}.values())
        self._cuts_ms: list[int | None] = [*cuts_ms, None]
        remembered = max(remembered_ms(one) + one.longest_window_ms for one in concerned)  # an audit looks further
        self._reach_ms = remembered + 2 * known.longest_ms + known.oldest_evidence_ms + _CLOCKS_MS
        self._piece, self._done = 0, 0
        self._since_ms: int | None = None
        self._until_ms: int | None = None
        self._kept: tuple[pl.DataFrame, pl.DataFrame] | None = None
        self._gaps = Numbering()
        self._order: Order | None = None
        self._called: list[Hashes] = []
        self._unmatched: list[Hashes] = []
        why = why_whole(known, concerned)
        if why is None and self._reach_ms + ahead_ms(known) > (known.last_ms - known.first_ms) / len(self._cuts_ms):
            why = "what can matter to a decision reaches over much of it"
        if why is not None:
            raise NotInPiecesError(why)

    def next(self, rows: Ledger) -> Part:
        """Put a span's rows to what was kept, and say what of that is to be reported."""
        self._since_ms = self._until_ms
        if self._kept is not None:
            calls, attempts = (_joined(*pair) for pair in zip(self._kept, (rows.calls, rows.attempts), strict=True))
            rows = replace(rows, calls=calls, attempts=attempts)
        axis = timeline.build(replace(rows, offers=self._offers(rows.offers)))
        if self._since_ms is not None:
            self._require_later(axis, self._since_ms)
        planned_ms = self._cuts_ms[self._piece]
        self._until_ms, upto = (None, None) if planned_ms is None else _clean_cut(axis, planned_ms)
        self._gaps = self._gaps.next(upto)
        part = Part(axis, Policies(axis, self._policy), self._since_ms, self._until_ms, self._gaps)
        part.sample = self._quota(len(part.calls))
        self._piece += 1
        return part

    def go_on(self, part: Part, measuring: Measuring, first_ms: int) -> None:
        """Keep what matters later of a piece; no row read for it ended before `first_ms`.

        Raises NotInPiecesError where something in it is otherwise than in the whole ledger.
        """
        if self._order not in (None, measuring.order):
            raise NotInPiecesError("some of its time is not numbered by its processes")
        self._order = measuring.order
        self._check_visibility(part, measuring, first_ms)
        self._take_note(part)
        if self._until_ms is not None:
            told_apart = [measuring, *(Measuring(part.axis, one, measuring) for one in self._others)]
            self._kept = kept_rows(told_apart, self._until_ms - self._reach_ms, self._until_ms)

    def require_all_found(self) -> int:
        """Refuse the whole result if a call has its namesake in another piece, or an attempt its call.

        Returns how many attempts name a call that is nowhere.
        """
        called = np.sort(np.concatenate(self._called))
        if (called[1:] == called[:-1]).any():
            raise NotInPiecesError("several calls have the same id")
        lone = np.concatenate(self._unmatched)
        if (np.searchsorted(called, lone, side="left") < np.searchsorted(called, lone, side="right")).any():
            raise NotInPiecesError("an attempt lies far from its call")
        return len(lone)

    def _offers(self, offers: pl.DataFrame) -> pl.DataFrame:
        """Leave out offers that no decision of the piece can meet, unless other prices may be asked for."""
        if self._settings.prices.mode != "recorded":
            return offers
        planned_ms = self._cuts_ms[self._piece]
        met = pl.lit(True)
        if planned_ms is not None:
            met &= pl.col("valid_from") < planned_ms + 1_000 * _TRIES
        if self._since_ms is not None:
            met &= pl.col("valid_to").is_null() | (pl.col("valid_to") > self._since_ms)
        return offers.filter(met)

    def _require_later(self, axis: Timeline, since_ms: int) -> None:
        """Refuse a piece with events that a process numbered before the cut, but that come after it in time."""
        calls, attempts = axis.calls, axis.attempts
        for replica, numbers, at_ms in (
            (calls.replica, calls.replica_seq, calls.decided_ms),
            (attempts.replica, attempts.replica_seq, attempts.ts_ms),
        ):
            later = (at_ms >= since_ms) & (numbers >= 0)
            for name, number in self._gaps.looked_at.items():
                if (numbers[later & (replica.codes == replica.code(name))] <= number).any():
                    raise NotInPiecesError("a process numbered its events in another order than that of time")

    def _quota(self, calls: int) -> int:
        """Return how many of a piece's decisions are audited."""
        before, self._done = self._done, self._done + calls
        return self._done * SAMPLE // self._known.calls - before * SAMPLE // self._known.calls

    def _check_visibility(self, part: Part, measuring: Measuring, first_ms: int) -> None:
        axis, visibility = part.axis, measuring.visibility
        recorded = self._settings.visibility == "best" and self._known.snapshots > 0 and self._known.txids > 0
        if (visibility.kind == "recorded") != recorded:
            raise NotInPiecesError("some of its time has no snapshots, or no transaction ids")
        if self._since_ms is None:
            return
        earlier, new = axis.calls.decided_ms < self._since_ms, axis.attempts.ts_ms >= first_ms
        seen_until = measuring.evidence_key[earlier].max(initial=-NEVER)
        if (visibility.attempts[new] < seen_until).any():
            raise NotInPiecesError("a row was seen by decisions long before its own end")
        starts = axis.attempts.start_ms[part.attempts]
        if recorded and (starts >= 0).any() and not visibility.reaches(int(starts[starts >= 0].min())):
            raise NotInPiecesError("an attempt began before every snapshot that is at hand")

    def _take_note(self, part: Part) -> None:
        """Take note of the piece's requests, to see at the end that every attempt has found its call."""
        axis, rows = part.axis, part.axis.ledger
        calls = rows.calls.filter(np.isin(rows.calls["id"].to_numpy(), axis.calls.id[part.calls]))
        lone = part.attempts[axis.attempts.call[part.attempts] < 0]
        self._called.append(_hashes(calls["usage_event_id"]))
        self._unmatched.append(_hashes(rows.attempts["request_id"][lone]))


def _processes(settings: Settings) -> tuple[object, ...]:
    """Return all that the settings say of which process decided, and of who saw what."""
    return settings.replicas, settings.restarts, settings.seed, sight(settings)


class _Proofs:
    """Predicts and proves every piece while the next one is decided, and puts together what came of them."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._last: tuple[Replaying, Future[Run]] | None = None
        self._run: Run | None = None

    def __enter__(self) -> _Proofs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and self._last is not None:
            self._last[0].stop()
        self._pool.shutdown()

    def add(self, replaying: Replaying) -> None:
        """Take the next piece; waits until the last one is done."""
        self._settle()
        self._last = replaying, self._pool.submit(replaying.finish)

    def together(self) -> Run:
        """Return the run of all pieces."""
        self._settle()
        assert self._run is not None
        return self._run

    def _settle(self) -> None:
        if self._last is None:
            return
        done = self._last[1].result()
        self._last = None
        if self._run is None:
            self._run = done
        else:
            self._run.add(done)


def _joined(kept: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Return both, sorted by id; what recurs is numbered anew where either knows other texts."""
    columns = {}
    for name, kind in rows.schema.items():
        ours, theirs = kept[name], rows[name]
        if isinstance(kind, pl.Enum) and isinstance(ours.dtype, pl.Enum) and ours.dtype != kind:
            known = pl.Enum(sorted({*ours.dtype.categories, *kind.categories}, key=str.encode))
            ours, theirs = ours.cast(known), theirs.cast(known)
        columns[name] = pl.concat([ours, theirs])
    frame = pl.DataFrame(columns)
    return frame if frame["id"].is_sorted() else frame.sort("id")


def _clean_cut(axis: Timeline, planned_ms: int) -> tuple[int, dict[str, int]]:
    """Return the first whole second from the planned one on which every process's numbering agrees with time.

    That is: all it numbered before has lower numbers than all after. Returns the last number before, too, by process.
    """
    calls, attempts = axis.calls, axis.attempts
    found = []
    for name in sorted({*calls.replica.values, *attempts.replica.values}):
        of_calls, of_attempts = (
            np.flatnonzero((rows.replica.codes == rows.replica.code(name)) & (rows.replica_seq >= 0))
            for rows in (calls, attempts)
        )
        numbers = np.concatenate([calls.replica_seq[of_calls], attempts.replica_seq[of_attempts]])
        at_ms = np.concatenate([calls.decided_ms[of_calls], attempts.ts_ms[of_attempts]])
        order = np.argsort(numbers, kind="stable")
        until_ms = np.maximum.accumulate(at_ms[order])
        from_ms = np.minimum.accumulate(at_ms[order][::-1])[::-1]
        found.append((name, numbers[order], until_ms, from_ms))
    for cut_ms in range(planned_ms, planned_ms + 1_000 * _TRIES, 1_000):
        places = [int(np.searchsorted(until_ms, cut_ms)) for _, _, until_ms, _ in found]
        if all(place == len(one[3]) or one[3][place] >= cut_ms for place, one in zip(places, found, strict=True)):
            upto = {one[0]: int(one[1][place - 1]) for place, one in zip(places, found, strict=True) if place}
            return cut_ms, upto
    raise NotInPiecesError("a process numbered its events in another order than that of time")


def _hashes(texts: pl.Series) -> Hashes:
    hashes: Hashes = texts.drop_nulls().hash().to_numpy()
    return hashes
