"""One setting measured for a sweep: its decisions and predictions as a few figures, from what all settings share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.prequential import ALL
from replay import engine, offerbook, outcomes, predictions, timeline
from replay.asking import Policies
from replay.core import Policy
from replay.deciding import Decider
from replay.errors import ReplayError
from replay.kernel.core import CompiledCore, NotCoveredError
from replay.ledger.load import Ledger
from replay.measuring import Measuring, sight
from replay.outcomes import UNDECIDED, Choices
from replay.settings import Settings
from replay.sweep.scoring import figures
from replay.timeline import Bools, Ints

DECISIONS = "the decisions"
AGREEMENT, FLIPS, SWITCHES, UNDECIDED_SHARE = "agreement", "flips", "switches per 100", "undecided"


class UnprovenError(ReplayError):
    """The settings that a grid varies do not pass their audit, or do not reproduce what was recorded."""

    exit_code = 1


class Work:
    """A ledger laid out once; `measure` gives the figures of any setting that `prepare` was told of.

    Nothing in `measure` uses Polars, so that it may run in a forked process; only settings for which `alone` holds
    need it.
    """

    def __init__(self, ledger: Ledger, policy: Policy | None, since_ms: int | None, until_ms: int | None) -> None:
        axis = timeline.build(ledger)
        self.timeline = axis
        selected = _within(axis.calls.decided_ms, since_ms, until_ms)
        self.attempts = _within(axis.attempts.ts_ms, since_ms, until_ms)
        self.decider = Decider(axis, offerbook.build(axis), Policies(axis, policy), selected)
        self.core = CompiledCore(self.decider)
        self.actual = axis.taken[selected]
        self.before = _before(self.decider, selected)
        self._sights: dict[tuple[object, ...], Measuring] = {}
        self.first: Choices | None = None

    def prepare(self, settings: Sequence[Settings]) -> None:
        """Find out who sees what under every setting, and decide under the first, which the others are held against."""
        for one in settings:
            if sight(one) not in self._sights:
                self._sights[sight(one)] = Measuring(self.timeline, one)
        self.first, _ = self._choose(self._measuring(settings[0]))

    def measure(self, settings: Settings) -> dict[str, Any]:
        """Return one setting's `rows` (without the setting itself), and why the interpreter decided, if it did."""
        measuring = self._measuring(settings)
        chosen, interpreted = self._choose(measuring)
        predicted = predictions.predict(measuring, self.attempts)
        scored = figures(self.timeline, predicted, settings.latency_quantile)
        rows = [{**row, "decisions": None} for row in scored] + self._of_decisions(chosen)
        return {"rows": rows, "interpreted": interpreted}

    def _measuring(self, settings: Settings) -> Measuring:
        return Measuring(self.timeline, settings, self._sights.get(sight(settings)))

    def _choose(self, measuring: Measuring) -> tuple[Choices, str | None]:
        selected, why = self.decider.selected, None
        try:
            blocks = self.core.decide(measuring, selected, lambda what, done, total: None, "")
            parts = [outcomes.choices(self.decider, block) for block in blocks]
        except NotCoveredError as error:
            why = str(error)
            blocks = outcomes.interpreted(self.decider, measuring, selected)
            parts = [outcomes.choices(self.decider, block) for block in blocks]
        return Choices.together(parts) if parts else Choices.undecided(selected), why

    def _of_decisions(self, chosen: Choices) -> list[dict[str, Any]]:
        if self.first is None:
            raise AssertionError("prepare was not called")
        decided, route = chosen.route != UNDECIDED, chosen.route
        both = decided & (self.first.route != UNDECIDED)
        again = decided & (self.before >= 0)
        again &= np.append(decided, False)[self.before]
        return [
            _share(AGREEMENT, route == self.actual, decided & (self.actual >= 0)),
            _share(FLIPS, route != self.first.route, both),
            _share(SWITCHES, route != np.append(route, UNDECIDED)[self.before], again, 100.0),
            _share(UNDECIDED_SHARE, ~decided, np.ones(len(route), dtype=np.bool_)),
        ]


def alone(settings: Settings) -> bool:
    """Say whether a setting reads frames while it is measured, which a forked process cannot: measured prices do."""
    return settings.prices.mode == "measured"


def prove(
    ledger: Ledger,
    settings: Sequence[Settings],
    policy: Policy | None,
    since_ms: int | None,
    until_ms: int | None,
    say: engine.Progress,
) -> engine.Run:
    """Replay the settings a grid varies, audited and reproduced; raises UnprovenError where that fails."""
    done = engine.run(ledger, settings, policy, since_ms, until_ms, say, sink=_Nowhere())
    if not done.passed:
        raise UnprovenError(
            f"the audit or the reproduction of {', '.join(one.name for one in settings)} fails, so no figure would "
            "mean anything; `replay run` with the same settings shows what differs"
        )
    return done


class _Nowhere:
    """The sink of a run of which only the proof is wanted."""

    def decisions(self, rows: Any) -> None:
        """Take some decisions."""

    def predictions(self, rows: Any) -> None:
        """Take some predictions."""


def _share(metric: str, holds: Bools, among: Bools, times: float = 1.0) -> dict[str, Any]:
    counted = int(among.sum())
    value = times * int((holds & among).sum()) / counted if counted else None
    head = {"question": DECISIONS, "metric": metric, "scope": ALL, "value": value, "attempts": None, "unscored": None}
    return {**head, "stamped_share": None, "clipped_share": None, "decisions": counted}


def _before(decider: Decider, selected: Ints) -> Ints:
    """Return the place among the selected calls of the one before that asked the same of the same policy, -1: none.

    Only then is another winner a switch: requests that ask differently have different winners anyway.
    """
    policy_of, _ = decider.policies.numbered()
    numbers: dict[str, int] = {}
    asks = [numbers.setdefault(repr(one.request), len(numbers)) for one in decider.asked.distinct]
    kind = policy_of[selected] * max(1, len(numbers)) + np.array([*asks, 0])[decider.asked.codes[selected]]
    order = np.argsort(kind, kind="stable")
    same = kind[order][1:] == kind[order][:-1]
    before = np.full(len(selected), -1, dtype=np.int64)
    before[order[1:][same]] = order[:-1][same]
    return before


def _within(at_ms: Ints, since_ms: int | None, until_ms: int | None) -> Ints:
    low = -(2**63) if since_ms is None else since_ms
    high = 2**63 - 1 if until_ms is None else until_ms
    return np.flatnonzero((at_ms >= low) & (at_ms < high)).astype(np.int64)
