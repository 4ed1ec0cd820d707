"""What a replay returns: a run of one or more settings, its rows kept or handed to a sink."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import polars as pl
import pyarrow as pa

from replay.audit import Audit
from replay.columns import frame
from replay.outcomes import DECISIONS
from replay.reproduction import Reproduction
from replay.settings import Settings


class Sink(Protocol):
    """Takes a run's rows as they are made, so that they need not all be held."""

    def decisions(self, rows: pa.Table) -> None:
        """Take some decisions, in order."""

    def predictions(self, rows: pa.Table) -> None:
        """Take some predictions, in order."""


class Kept:
    """The sink of a run that keeps its rows."""

    def __init__(self) -> None:
        self.decided: list[pa.Table] = [pl.DataFrame(schema=DECISIONS).to_arrow()]
        self.predicted: list[pa.Table] = []

    def decisions(self, rows: pa.Table) -> None:
        """Keep some decisions."""
        self.decided.append(rows)

    def predictions(self, rows: pa.Table) -> None:
        """Keep some predictions."""
        self.predicted.append(rows)

    def tables(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return all decisions and all predictions."""
        decided, predicted = ([frame(rows) for rows in some] for some in (self.decided, self.predicted))
        return pl.concat(decided), pl.concat(predicted) if predicted else pl.DataFrame()


@dataclass
class Replayed:
    """One setting's replay; the frames are empty where a sink took the rows.

    `undecided` counts the calls that could not be decided again. `lag_flips` are the ids of the calls that would have
    been decided otherwise, had every row been visible at once; None where no write lag is known or assumed.
    `interpreted` says why the compiled core did not decide, None where it did.
    """

    settings: Settings
    visibility: str
    decided: int
    undecided: int
    decisions: pl.DataFrame = field(default_factory=pl.DataFrame)
    predictions: pl.DataFrame = field(default_factory=pl.DataFrame)
    predicted: int = 0
    lag_flips: list[int] | None = None
    audit: Audit = field(default_factory=Audit)
    interpreted: str | None = None

    def add(self, later: Replayed) -> None:
        """Take in the replay of what came after, under the same setting."""
        self.decided += later.decided
        self.undecided += later.undecided
        self.predicted += later.predicted
        self.decisions = pl.concat([self.decisions, later.decisions])
        self.predictions = pl.concat([self.predictions, later.predictions])
        if self.lag_flips is not None and later.lag_flips is not None:
            self.lag_flips += later.lag_flips
        self.audit.add(later.audit)
        self.interpreted = self.interpreted or later.interpreted


@dataclass
class Run:
    """A replay of one ledger under one or more settings.

    `missing` counts the numbers that are missing from the replicas' own numbering, `numbered` says whether any attempt
    carries such a number, and whether any does not.
    """

    reproduction: Reproduction
    replayed: list[Replayed]
    missing: int = 0
    numbered: tuple[bool, bool] = (True, False)
    proved: bool = True

    def add(self, later: Run) -> None:
        """Take in the replay of what came after, under the same settings."""
        self.reproduction.add(later.reproduction)
        for one, more in zip(self.replayed, later.replayed, strict=True):
            one.add(more)
        self.missing += later.missing
        self.numbered = (self.numbered[0] or later.numbered[0], self.numbered[1] or later.numbered[1])

    @property
    def warnings(self) -> list[str]:
        """What a reader should know before believing the figures."""
        said = []
        for one in self.replayed:
            if one.undecided:
                said.append(
                    f"{one.settings.name}: {one.undecided:,} calls could not be decided again: unknown policy, or "
                    "a request that the core refuses"
                )
            if one.settings.prices.mode == "measured":
                said.append(f"{one.settings.name}: measured prices are a what-if; production never feeds drift back")
        if all(self.numbered):
            said.append("some attempts carry their replica's numbering and some do not: in-process order goes by time")
        if self.missing:
            said.append(
                f"{self.missing:,} numbers are missing from the replicas' own numbering: rows were dropped, or their "
                "calls had not ended yet"
            )
        return said

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
