"""The open-loop replay: every recorded decision again under other settings, audited, and held against its record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Literal, Protocol

import numpy as np
import polars as pl

from replay import offerbook, outcomes, rankings, timeline
from replay import predictions as predicting
from replay.asking import Policies
from replay.audit import Audit, audit, audited
from replay.behind import Behind
from replay.core import Policy
from replay.deciding import Decider
from replay.durations import iso
from replay.errors import ReplayError
from replay.gaps import missing_numbers
from replay.kernel.core import ROWS_PER_BLOCK, Block, CompiledCore, NotCoveredError
from replay.kernel.loop import SHOWN
from replay.ledger.load import Ledger
from replay.measuring import Measuring
from replay.outcomes import DECISIONS, UNDECIDED, Choices
from replay.reproduction import (
    Completeness,
    Reproduction,
    agree,
    completeness,
    hold,
    measurings,
    recorded_settings,
)
from replay.settings import Settings
from replay.timeline import Ints, lag_free

__all__ = ["CORES", "DECISIONS", "TOP", "Core", "Progress", "Replayed", "Run", "Sink", "reproduce", "run"]

TOP = SHOWN
"""Places of a plan that `decisions` shows."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much is done, and of how much."""

Core = Literal["compiled", "interpreter"]
CORES: tuple[Core, ...] = ("compiled", "interpreter")
"""What decides. Both decide alike; the interpreter is the definition, and covers everything."""


class Sink(Protocol):
    """Takes a run's rows as they are made, so that they need not all be held."""

    def decisions(self, rows: pl.DataFrame) -> None:
        """Take some decisions, in order."""

    def predictions(self, rows: pl.DataFrame) -> None:
        """Take some predictions, in order."""


class _Kept:
    """The sink of a run that keeps its rows."""

    def __init__(self) -> None:
        self.decided: list[pl.DataFrame] = [pl.DataFrame(schema=DECISIONS)]
        self.predicted: list[pl.DataFrame] = []

    def decisions(self, rows: pl.DataFrame) -> None:
        self.decided.append(rows)

    def predictions(self, rows: pl.DataFrame) -> None:
        self.predicted.append(rows)

    def tables(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return all decisions and all predictions."""
        decided, predicted = ([_plain(rows) for rows in some] for some in (self.decided, self.predicted))
        return pl.concat(decided), pl.concat(predicted) if predicted else pl.DataFrame()


def _plain(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.col(pl.Enum).cast(pl.String))


class _StoppedError(Exception):
    """The run ends early, for what happened in another thread."""


class _Beside:
    """Does some work in a thread of its own for the length of a block; a block that fails stops it first."""

    def __init__(self, work: Callable[[], Reproduction], replayer: _Replayer) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._work, self._replayer = work, replayer

    def __enter__(self) -> Future[Reproduction]:
        return self._pool.submit(self._work)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._replayer.stopped = kind is not None
        self._pool.shutdown()


@dataclass
class Replayed:
    """One setting's replay; the frames are empty where a sink took the rows.

    `lag_flips` are the calls that would have been decided otherwise, had every row been visible at once; None where
    no write lag is known or assumed. `interpreted` says why the compiled core did not decide, None where it did.
    """

    settings: Settings
    visibility: str
    choices: Choices
    decisions: pl.DataFrame = field(default_factory=pl.DataFrame)
    predictions: pl.DataFrame = field(default_factory=pl.DataFrame)
    predicted: int = 0
    lag_flips: list[int] | None = None
    audit: Audit = field(default_factory=Audit)
    interpreted: str | None = None

    @property
    def undecided(self) -> int:
        """Calls that could not be decided again."""
        return int((self.choices.route == UNDECIDED).sum())

    @property
    def decided(self) -> int:
        """Calls that could."""
        return len(self.choices.calls) - self.undecided


@dataclass
class Run:
    """A replay of one ledger under one or more settings."""

    reproduction: Reproduction
    replayed: list[Replayed]
    warnings: list[str] = field(default_factory=list)
    proved: bool = True

    @property
    def decisions(self) -> pl.DataFrame:
        """All settings' decisions."""
        return pl.concat([one.decisions for one in self.replayed])

    @property
    def predictions(self) -> pl.DataFrame:
        """All settings' predictions."""
        return pl.concat([one.predictions for one in self.replayed])

    @property
    def passed(self) -> bool:
        """Whether every audit agreed and everything that could be reproduced was."""
        return self.reproduction.passed and all(one.audit.passed for one in self.replayed)


def run(
    ledger: Ledger,
    settings: Sequence[Settings],
    policy: Policy | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
    progress: Progress | None = None,
    *,
    prove: bool = True,
    core: Core = "compiled",
    sink: Sink | None = None,
    full: Callable[[pl.DataFrame], None] | None = None,
) -> Run:
    """Replay a ledger under each of the settings.

    `policy` decides every call; None decides each with the policy it was recorded with. Only calls decided, and
    attempts ended, in [since_ms, until_ms) are reported; evidence from before is read all the same, so a slice's
    first decision is what it is in a longer run. `prove=False` leaves out reproduction, audit and the effect of the
    write lag, for a look while a slider moves; such a run is never written. `sink` takes the rows as they are made,
    setting by setting; without one the run keeps them. `full` takes the full ranking of every decision, in blocks of
    rows (`replay.rankings`): for slices. Raises ReplayError where the ledger is empty, has calls but neither recorded
    policies nor a given one, or the full ranking has too many rows.
    """
    say = progress or (lambda what, done, total: None)
    if len(ledger.attempts) == 0:
        raise ReplayError("the mirror holds no attempts; a replay has nothing to measure: import a ledger first")
    _check_names(settings)
    if since_ms is not None and until_ms is not None and until_ms <= since_ms:
        raise ReplayError(f"the slice ends at {iso(until_ms)}, not after its start {iso(since_ms)}; swap the two")
    say("laying out the ledger", 0, 1)
    axis = timeline.build(ledger)
    policies = Policies(axis, policy)
    selected = _within(axis.calls.decided_ms, since_ms, until_ms)
    if len(selected) and policy is None and not policies.any_recorded(selected):
        raise ReplayError(
            f"none of the {len(selected):,} calls has a recorded policy; a replay needs one to decide with: "
            "give one, for example --policy balanced"
        )
    decider = Decider(axis, offerbook.build(axis), policies, selected)
    if full is not None:
        rankings.require_few(decider, settings)
    replayer = _Replayer(decider, core, say)
    attempts = _within(axis.attempts.ts_ms, since_ms, until_ms)
    measured: list[Measuring] = []
    for setting in settings:
        measured.append(Measuring(axis, setting, measured[0] if measured else None))
    kept = [_Kept() for _ in settings]
    sinks = [sink or one for one in kept]
    with Behind() as behind:
        replayed = [replayer.replay(one, into, behind) for one, into in zip(measured, sinks, strict=True)]
        with _Beside(lambda: _prove(replayer, measured, replayed) if prove else Reproduction(), replayer) as proof:
            for measuring, one, into in zip(measured, replayed, sinks, strict=True):
                if not prove:
                    say(f"predicting under {one.settings.name}", 0, 1)
                one.predicted = _predict(measuring, attempts, into, behind)
            reproduction = proof.result()
    for one, own in zip(replayed, kept, strict=True):
        one.decisions, one.predictions = own.tables()
    if full is not None:
        for measuring in measured:
            for rows, done in rankings.blocks(decider, measuring):
                say(f"ranking all candidates under {measuring.settings.name}", done, len(selected))
                full(rows)
    return Run(reproduction, replayed, _warnings(decider, replayed), prove)


def _predict(measuring: Measuring, attempts: Ints, into: Sink, behind: Behind) -> int:
    """Predict attempts under one setting, block by block; returns how many."""
    for predicted in predicting.blocks(predicting.predict(measuring, attempts), ROWS_PER_BLOCK):
        behind.hand(into.predictions, predicting.table(measuring, predicted))
    if not len(attempts):
        behind.hand(into.predictions, predicting.predictions(measuring, attempts))
    return len(attempts)


def reproduce(ledger: Ledger, core: Core = "compiled") -> Reproduction:
    """Decide every call of a ledger again as it was recorded, and hold it against its first attempt; nothing else."""
    axis = timeline.build(ledger)
    decider = Decider(axis, offerbook.build(axis), Policies(axis))
    return _Replayer(decider, core, lambda what, done, total: None).prove(())


class _Replayer:
    """Decides a ledger's calls with one core, or with the interpreter where that core does not cover a setting."""

    def __init__(self, decider: Decider, core: Core, say: Progress) -> None:
        self.decider = decider
        self.stopped = False
        self._say = say
        self.core = None if core == "interpreter" else CompiledCore(decider)
        self.interpreted: str | None = None

    def say(self, what: str, done: int, total: int) -> None:
        """Tell how far it is, unless the run ends early."""
        if self.stopped:
            raise _StoppedError
        self._say(what, done, total)

    def blocks(self, measuring: Measuring, calls: Ints, what: str, *, recorded_policy: bool = False) -> Iterator[Block]:
        """Decide some calls, block by block; `interpreted` says afterwards why the compiled core did not."""
        done, self.interpreted = 0, None
        if self.core is not None:
            try:
                for block in self.core.decide(measuring, calls, self.say, what, recorded_policy=recorded_policy):
                    done += len(block.calls)
                    yield block
                return
            except NotCoveredError as error:
                self.interpreted = str(error)
        for block in outcomes.interpreted(self.decider, measuring, calls[done:], recorded_policy=recorded_policy):
            self.say(what, done, len(calls))
            done += len(block.calls)
            yield block

    def choose(self, measuring: Measuring, calls: Ints, what: str, *, recorded_policy: bool = False) -> Choices:
        """Decide some calls and keep only what was chosen."""
        blocks = self.blocks(measuring, calls, what, recorded_policy=recorded_policy)
        return _together([outcomes.choices(self.decider, block) for block in blocks])

    def replay(self, measuring: Measuring, into: Sink, behind: Behind) -> Replayed:
        """Decide everything under one setting."""
        chosen, name = [], measuring.settings.name
        for block in self.blocks(measuring, self.decider.selected, f"deciding under {name}"):
            chosen.append(outcomes.choices(self.decider, block))
            behind.hand(into.decisions, outcomes.table(self.decider, measuring, block))
        if not chosen:
            behind.hand(into.decisions, pl.DataFrame(schema=DECISIONS))
        choices = _together(chosen)
        return Replayed(measuring.settings, measuring.visibility.kind, choices, interpreted=self.interpreted)

    def lag_flips(self, measuring: Measuring, choices: Choices) -> list[int] | None:
        """Return the calls decided differently had every row been visible at once; None where there was no lag."""
        settings = measuring.settings
        if measuring.visibility.kind == "lagged" and settings.lag_ms == (0,):
            return None
        if "shared" not in (settings.reliability.state, settings.latency.state, settings.tools.state):
            return []
        what = f"deciding under {settings.name} without lag"
        without = self.choose(Measuring(measuring.timeline, lag_free(settings)), choices.calls, what)
        differ = (choices.route != UNDECIDED) & (without.route != UNDECIDED) & (choices.route != without.route)
        return [int(call) for call in choices.calls[differ]]

    def prove(self, replayed: Sequence[Replayed]) -> Reproduction:
        """Reproduce where any decision's evidence is complete, else find the agreement with the final route.

        A setting of the run that made the very decisions that the proof needs carries it, so that nothing is decided
        twice: the first one for agreement; for reproduction the recorded one, if every call was decided with its own
        policy.
        """
        selected, axis = self.decider.selected, self.decider.timeline
        result = Reproduction(decisions=len(selected))
        if not len(selected):
            return result
        known = recorded_settings(axis)
        complete = completeness(self.decider, known)
        if not (complete.codes[selected] == 0).any():
            result.incomplete = complete.count(selected)
            for one in replayed[:1]:
                agree(result, self.decider, one.choices)
            return result
        for choices in self._recorded_choices(known, complete, replayed):
            hold(result, self.decider, complete, choices)
        return result

    def _recorded_choices(
        self, known: dict[str, Settings], complete: Completeness, replayed: Sequence[Replayed]
    ) -> Iterator[Choices]:
        """Decide every call again under its recorded setting and policy, unless a setting of the run did just that."""
        selected, identities = self.decider.selected, self.decider.timeline.calls.settings_id
        codes = identities.codes[selected]
        for one in replayed:
            its = identities.code(one.settings.identity)
            if (codes == its).all() and one.settings.memo_ms is None and self.decider.policies.given is None:
                yield one.choices
                return
        whole = complete.codes[selected] == 0
        yield Choices.undecided(selected[~whole])
        for identity, measuring in measurings(self.decider.timeline, known).items():
            calls = selected[whole & (codes == identities.code(identity))]
            if len(calls):
                yield self.choose(measuring, calls, "reproducing what was recorded", recorded_policy=True)


def _together(parts: list[Choices]) -> Choices:
    return Choices.undecided(np.empty(0, dtype=np.int64)) if not parts else Choices.together(parts)


def _check_names(settings: Sequence[Settings]) -> None:
    names = [one.name for one in settings]
    twice = [name for name in names if names.count(name) > 1]
    if twice or not settings:
        given = f"two settings are called {twice[0]!r}" if twice else "no settings were given"
        raise ReplayError(f"{given}; expected at least one, each under its own name: set name in the settings file")


def _within(at_ms: Ints, since_ms: int | None, until_ms: int | None) -> Ints:
    low = -(2**63) if since_ms is None else since_ms
    high = 2**63 - 1 if until_ms is None else until_ms
    return np.flatnonzero((at_ms >= low) & (at_ms < high)).astype(np.int64)


def _prove(replayer: _Replayer, measured: Sequence[Measuring], replayed: Sequence[Replayed]) -> Reproduction:
    """Find what the write lag changed, hold the record against the plans, and audit every setting.

    Settings that the shared SQL checks alike share one audit.
    """
    for measuring, one in zip(measured, replayed, strict=True):
        one.lag_flips = replayer.lag_flips(measuring, one.choices)
    reproduction = replayer.prove(replayed)
    flips, done = _contested(replayed), dict[str, Audit]()
    for measuring, one in zip(measured, replayed, strict=True):
        checked = audited(one.settings)
        if checked.identity not in done:
            what = f"auditing {one.settings.name} against production's SQL"
            like = Measuring(measuring.timeline, checked, measuring)
            done[checked.identity] = audit(like, replayer.decider.selected, flips, partial(replayer.say, what))
        one.audit = done[checked.identity]
    return reproduction


def _contested(replayed: Sequence[Replayed]) -> list[int]:
    """Return the calls on which the settings differ from each other, from the record, or with the write lag."""
    first = replayed[0].choices
    contested = np.zeros(len(first.calls), dtype=np.bool_)
    for one in replayed:
        mine = one.choices
        contested |= (mine.route != first.route) | ((mine.route != UNDECIDED) & (mine.cause != 0))
        contested |= np.isin(mine.calls, one.lag_flips or [])
    return [int(call) for call in first.calls[contested]]


def _warnings(decider: Decider, replayed: Sequence[Replayed]) -> list[str]:
    warnings = []
    for one in replayed:
        if one.undecided:
            warnings.append(
                f"{one.settings.name}: {one.undecided:,} calls could not be decided again: unknown policy, or "
                "a request that the core refuses"
            )
        if one.settings.prices.mode == "measured":
            warnings.append(f"{one.settings.name}: measured prices are a what-if; production never feeds drift back")
    sequence = decider.timeline.attempts.replica_seq
    if len(sequence) and (sequence >= 0).any() and (sequence < 0).any():
        warnings.append("some attempts carry their replica's numbering and some do not: in-process order goes by time")
    lost = missing_numbers(decider.timeline, decider.selected)
    if lost:
        warnings.append(
            f"{lost:,} numbers are missing from the replicas' own numbering: rows were dropped, or their calls had "
            "not ended yet"
        )
    return warnings
