"""What is read of a mirror for a replay alone, against everything that is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import polars as pl
import pytest

from replay import engine, queries
from replay.errors import ReplayError
from replay.ledger.folder import fill, frames
from replay.ledger.load import Ledger, load_ledger, table_identity
from replay.ledger.rows import AttemptRow, CallRow
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW
from replay.timeline import Texts


def read(ledger: Ledger, *, whole: bool, shuffled: bool = False) -> Ledger:
    """Put a ledger into a mirror, its rows in another order if asked to, and read that."""
    tables = {
        name: frame.sample(fraction=1, shuffle=True, seed=1) if shuffled else frame
        for name, frame in frames(ledger).items()
    }
    with duckdb.connect() as connection:
        fill(connection, tables)
        return load_ledger(connection, whole=whole)


def test_a_replay_needs_no_more_than_is_read_for_it(small_world: Ledger) -> None:
    """Decisions, predictions, reproduction and audits are those of the whole ledger."""
    both = [PRODUCTION_NOW, PRODUCTION_BEFORE]
    whole, part = (engine.run(read(small_world, whole=whole), both) for whole in (True, False))
    assert part.decisions.equals(whole.decisions)
    assert part.predictions.equals(whole.predictions)
    assert part.reproduction == whole.reproduction
    assert part.warnings == whole.warnings
    assert [one.audit for one in part.replayed] == [one.audit for one in whole.replayed]
    assert [one.lag_flips for one in part.replayed] == [one.lag_flips for one in whole.replayed]


@pytest.mark.parametrize("whole", [True, False])
def test_the_order_of_rows_in_a_file_does_not_matter(small_world: Ledger, whole: bool) -> None:
    """Shuffled rows are read as the same frames, with the same identity."""
    first, other = read(small_world, whole=whole), read(small_world, whole=whole, shuffled=True)
    assert first.identity == other.identity == small_world.identity
    for ours, theirs in zip(frames(first).values(), frames(other).values(), strict=True):
        assert ours.equals(theirs)


def test_what_recurs_is_read_as_numbers(small_world: Ledger) -> None:
    """Texts that recur are enumerations, in byte order; columns that no replay reads are not there."""
    part = read(small_world, whole=False)
    assert isinstance(part.attempts.schema["provider_id"], pl.Enum)
    assert part.attempts.schema["provider_id"].categories.to_list() == ["p", "q", "r"]
    assert part.attempts["provider_id"].cast(pl.String).equals(small_world.attempts["provider_id"])
    assert "session_id" not in part.calls.columns
    assert part.offers.equals(small_world.offers)


def test_the_identity_is_of_all_columns(
    ledger_of: Callable[..., Ledger], attempt: Callable[..., AttemptRow], call: Callable[..., CallRow]
) -> None:
    """A change where no replay looks changes the identity too; so does a row that is missing."""
    rows = [call(1, 5_000), call(2, 7_000)]
    changed = [call(1, 5_000), call(2, 7_000, session_id="other")]
    contents = set()
    for some in (rows, changed, rows[:1]):
        identity = ledger_of(calls=some, attempts=[attempt(1, 5_500)]).identity
        contents.add(identity["calls"]["content"])
        assert identity["calls"]["first_ms"] == 6_000
        assert identity["route_observations"] == {
            "rows": 1,
            "first_ms": 5_500,
            "last_ms": 5_500,
            "content": identity["route_observations"]["content"],
        }
    assert len(contents) == 3


def test_an_empty_table_has_an_identity() -> None:
    """Nothing has no range, and the content of nothing."""
    with duckdb.connect() as connection:
        connection.execute(queries.ddl("mirror"))
        identity = table_identity(connection, "calls")
        assert len(load_ledger(connection, whole=False).calls) == 0
    assert identity == {"rows": 0, "first_ms": None, "last_ms": None, "content": "0" * 32}


def test_numbers_of_an_enumeration_are_those_of_its_texts() -> None:
    """A column is numbered alike as texts and as an enumeration, of which some values may not occur."""
    texts = pl.Series(["b", None, "a", "b"])
    coded = texts.cast(pl.Enum(["a", "aa", "b", "c"]))
    plain, found = Texts.of(texts), Texts.of(coded)
    assert (found.values, found.codes.tolist()) == (plain.values, plain.codes.tolist()) == (["a", "b"], [1, -1, 0, 1])


@pytest.mark.parametrize(
    ("texts", "values", "codes"),
    [
        (["b", None, "a"], ["", "a", "b"], [2, 0, 1]),
        (["b", None, ""], ["", "b"], [1, 0, 0]),
        (["b", "a"], ["a", "b"], [1, 0]),
    ],
)
def test_no_text_as_the_empty_text(texts: list[str | None], values: list[str], codes: list[int]) -> None:
    """Where a row has no text it gets the empty one, which comes first."""
    found = Texts.of(pl.Series(texts)).or_empty()
    assert (found.values, found.codes.tolist()) == (values, codes)


def test_a_run_that_fails_while_it_is_proved_says_why(small_world: Ledger, tmp_path: Path) -> None:
    """An error in the proof, which goes on beside the predictions, is the run's error."""
    broken = small_world.calls.with_columns(evidence_snapshot=pl.lit("no snapshot"))
    with pytest.raises(ReplayError, match="evidence_snapshot 'no snapshot'"):
        engine.run(read(Ledger(**{**small_world.__dict__, "calls": broken}), whole=False), [PRODUCTION_NOW])
