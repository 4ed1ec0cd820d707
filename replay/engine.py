"""The open-loop replay: every recorded decision again under other settings, audited, and held against its record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from replay import offerbook, outcomes, rankings, timeline
from replay import predictions as predicting
from replay.asking import Policies
from replay.audit import Audit, audit, audited
from replay.behind import Behind
from replay.core import Policy
from replay.deciding import Decider
from replay.durations import iso
from replay.errors import ReplayError
from replay.gaps import Numbering
from replay.kernel.core import ROWS_PER_BLOCK, Block, CompiledCore, NotCoveredError
from replay.kernel.layout import sorted_by
from replay.kernel.loop import SHOWN
from replay.ledger.load import Ledger
from replay.measuring import Measuring, see_alike
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
from replay.results import Kept, Replayed, Run, Sink
from replay.settings import Settings
from replay.timeline import Ints, Timeline, lag_free

__all__ = ["CORES", "DECISIONS", "TOP", "Core", "Progress", "Replayed", "Run", "Sink", "reproduce", "run"]

TOP = SHOWN
"""Places of a plan that `decisions` shows."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much is done, and of how much."""

Full = Callable[[pa.Table], None]
"""Takes full rankings, in blocks of rows."""

Core = Literal["compiled", "interpreter"]
CORES: tuple[Core, ...] = ("compiled", "interpreter")
"""What decides. Both decide alike; the interpreter is the definition, and covers everything."""


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
    full: Full | None = None,
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
    part = Part(axis, Policies(axis, policy), since_ms, until_ms)
    if len(part.calls) and policy is None and not part.policies.any_recorded(part.calls):
        raise ReplayError(
            f"none of the {len(part.calls):,} calls has a recorded policy; a replay needs one to decide with: "
            "give one, for example --policy balanced"
        )
    with Behind() as behind:
        replaying = Replaying(part, settings, say, behind, core=core, sink=sink, full=full)
        done = replaying.finish(prove=prove)
    replaying.keep()
    return done


class Part:
    """What of a timeline is to be reported: calls decided, and attempts ended, in [since_ms, until_ms).

    `gaps` is what is known of the replicas' numbering from earlier parts of the same ledger, `sample` how many
    decisions are audited; None: all, or 500 where there are many.
    """

    def __init__(
        self,
        axis: Timeline,
        policies: Policies,
        since_ms: int | None = None,
        until_ms: int | None = None,
        gaps: Numbering | None = None,
        sample: int | None = None,
    ) -> None:
        self.axis, self.policies, self.sample = axis, policies, sample
        self.calls = _within(axis.calls.decided_ms, since_ms, until_ms)
        attempts = _within(axis.attempts.ts_ms, since_ms, until_ms)
        self.attempts = attempts[sorted_by(axis.attempts.ts_ms[attempts], axis.attempts.id[attempts])]
        self.gaps = gaps or Numbering.whole()


class Replaying:
    """A part of a timeline on its way through the engine: decided at once, and then, with `finish`, proved."""

    def __init__(
        self,
        part: Part,
        settings: Sequence[Settings],
        say: Progress,
        behind: Behind,
        *,
        core: Core = "compiled",
        sink: Sink | None = None,
        full: Full | None = None,
    ) -> None:
        axis = part.axis
        decider = Decider(axis, offerbook.build(axis), part.policies, part.calls, part.gaps)
        if full is not None:
            rankings.require_few(decider, settings)
        self.part, self._say, self._behind, self._full = part, say, behind, full
        self._replayer = _Replayer(decider, core, say)
        self.measured: list[Measuring] = []
        for setting in settings:
            self.measured.append(Measuring(axis, setting, self.measured[0] if self.measured else None))
        self._kept = [Kept() for _ in settings]
        self._sinks = [sink or one for one in self._kept]
        decided = [
            self._replayer.replay(one, into, behind) for one, into in zip(self.measured, self._sinks, strict=True)
        ]
        self._replayed, self._choices = [one for one, _ in decided], [chosen for _, chosen in decided]

    def stop(self) -> None:
        """Let `finish`, in another thread, end early."""
        self._replayer.stopped = True

    def finish(self, *, prove: bool = True) -> Run:
        """Predict all attempts and, beside it, prove what was decided."""
        proof = _Proof(self._replayer, self.measured, self._replayed, self._choices, self.part.sample)
        with _Beside(proof.prove if prove else Reproduction, self._replayer) as proving:
            for measuring, one, into in zip(self.measured, self._replayed, self._sinks, strict=True):
                if not prove:
                    self._say(f"predicting under {one.settings.name}", 0, 1)
                one.predicted = _predict(measuring, self.part.attempts, into, self._behind)
            reproduction = proving.result()
        if self._full is not None:
            self._rank_all(self._full)
        axis = self.part.axis
        numbers = axis.attempts.replica_seq
        numbered = (bool((numbers >= 0).any()), bool((numbers < 0).any()))
        return Run(reproduction, self._replayed, self.part.gaps.missing(axis, self.part.calls), numbered, prove)

    def _rank_all(self, full: Full) -> None:
        decider = self._replayer.decider
        for measuring in self.measured:
            for rows, done in rankings.blocks(decider, measuring):
                self._say(f"ranking all candidates under {measuring.settings.name}", done, len(decider.selected))
                full(rows)

    def keep(self) -> None:
        """Give the run's settings the rows that no sink took; once all are handed on."""
        for one, own in zip(self._replayed, self._kept, strict=True):
            one.decisions, one.predictions = own.tables()


def _predict(measuring: Measuring, attempts: Ints, into: Sink, behind: Behind) -> int:
    """Predict attempts under one setting, block by block; returns how many."""
    for predicted in predicting.predict_blocks(measuring, attempts, ROWS_PER_BLOCK):
        behind.hand(into.predictions, predicting.table(measuring, predicted))
    return len(attempts)


def reproduce(ledger: Ledger, core: Core = "compiled") -> Reproduction:
    """Decide every call of a ledger again as it was recorded, and hold it against its first attempt; nothing else."""
    axis = timeline.build(ledger)
    decider = Decider(axis, offerbook.build(axis), Policies(axis))
    return _Replayer(decider, core, lambda what, done, total: None).reproduce((), ())


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

    def replay(self, measuring: Measuring, into: Sink, behind: Behind) -> tuple[Replayed, Choices]:
        """Decide everything under one setting."""
        chosen, name = [], measuring.settings.name
        for block in self.blocks(measuring, self.decider.selected, f"deciding under {name}"):
            chosen.append(outcomes.choices(self.decider, block))
            behind.hand(into.decisions, outcomes.table(self.decider, measuring, block))
        if not chosen:
            behind.hand(into.decisions, pl.DataFrame(schema=DECISIONS).to_arrow())
        choices = _together(chosen)
        undecided = int((choices.route == UNDECIDED).sum())
        counts = len(choices.calls) - undecided, undecided
        one = Replayed(measuring.settings, measuring.visibility.kind, *counts, interpreted=self.interpreted)
        return one, choices

    def lag_flips(self, measuring: Measuring, choices: Choices) -> Ints | None:
        """Return the calls decided differently had every row been visible at once; None where there was no lag."""
        settings = measuring.settings
        if measuring.visibility.kind == "lagged" and settings.lag_ms == (0,):
            return None
        if "shared" not in (settings.reliability.state, settings.latency.state, settings.tools.state):
            return np.empty(0, dtype=np.int64)
        free, concerned = Measuring(measuring.timeline, lag_free(settings), measuring), choices.route != UNDECIDED
        if settings.windows_only:  # a fold also depends on the order in which it saw
            concerned &= ~see_alike(measuring, free, choices.calls)
        calls, route = choices.calls[concerned], choices.route[concerned]
        without = self.choose(free, calls, f"deciding under {settings.name} without lag")
        flips: Ints = calls[(without.route != UNDECIDED) & (without.route != route)]
        return flips

    def reproduce(self, replayed: Sequence[Replayed], choices: Sequence[Choices]) -> Reproduction:
        """Reproduce where any decision's evidence is complete, else find the agreement with the final route.

        A setting of the run that made the very decisions that the proof needs carries it, so that nothing is decided
        twice: the first one for agreement; for reproduction the recorded one, if every call was decided with its own
        policy.
        """
        selected, axis = self.decider.selected, self.decider.timeline
        result = Reproduction(decisions=len(selected))
        if not len(selected):
            return result
        known = recorded_settings(axis.ledger.settings)
        complete = completeness(self.decider, known)
        if not (complete.codes[selected] == 0).any():
            result.incomplete = complete.count(selected)
            for chosen in choices[:1]:
                agree(result, self.decider, chosen)
            return result
        for chosen in self._recorded_choices(known, complete, replayed, choices):
            hold(result, self.decider, complete, chosen)
        return result

    def _recorded_choices(
        self,
        known: dict[str, Settings],
        complete: Completeness,
        replayed: Sequence[Replayed],
        choices: Sequence[Choices],
    ) -> Iterator[Choices]:
        """Decide every call again under its recorded setting and policy, unless a setting of the run did just that."""
        selected, identities = self.decider.selected, self.decider.timeline.calls.settings_id
        codes = identities.codes[selected]
        for one, chosen in zip(replayed, choices, strict=True):
            its = identities.code(one.settings.identity)
            if (codes == its).all() and one.settings.memo_ms is None and self.decider.policies.given is None:
                yield chosen
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


@dataclass
class _Proof:
    """The proof of a part's replay: what the write lag changed, the record against the plans, an audit per setting."""

    replayer: _Replayer
    measured: Sequence[Measuring]
    replayed: Sequence[Replayed]
    choices: Sequence[Choices]
    sample: int | None

    def prove(self) -> Reproduction:
        """Settings that the shared SQL checks alike share one audit."""
        calls = self.replayer.decider.timeline.calls
        flipped = []
        for measuring, one, chosen in zip(self.measured, self.replayed, self.choices, strict=True):
            flips = self.replayer.lag_flips(measuring, chosen)
            one.lag_flips = None if flips is None else calls.id[flips].tolist()
            flipped.append(np.empty(0, dtype=np.int64) if flips is None else flips)
        reproduction = self.replayer.reproduce(self.replayed, self.choices)
        contested, done = self._contested(flipped), dict[str, Audit]()
        for measuring, one in zip(self.measured, self.replayed, strict=True):
            checked = audited(one.settings)
            if checked.identity not in done:
                say = partial(self.replayer.say, f"auditing {one.settings.name} against production's SQL")
                like = Measuring(measuring.timeline, checked, measuring)
                selected = self.replayer.decider.selected
                done[checked.identity] = (
                    audit(like, selected, contested, say)
                    if self.sample is None
                    else audit(like, selected, contested, say, sample=self.sample, all_up_to=0)
                )
            one.audit = replace(done[checked.identity])
        return reproduction

    def _contested(self, flipped: Sequence[Ints]) -> Ints:
        """Return the calls on which the settings differ from each other, from the record, or with the write lag."""
        first = self.choices[0]
        contested = np.zeros(len(first.calls), dtype=np.bool_)
        for mine, flips in zip(self.choices, flipped, strict=True):
            contested |= (mine.route != first.route) | ((mine.route != UNDECIDED) & (mine.cause != 0))
            contested |= np.isin(mine.calls, flips)
        return first.calls[contested]
