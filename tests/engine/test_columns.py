"""Columns from arrays, held against the same in plain Python, and how they come out of a run's file."""

from __future__ import annotations

import math
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.columns import by_first_use, fields, frame, known, numbers, texts, texts_that_recur, truths
from replay.record import DICTIONARY_BYTES, ROWS_PER_GROUP, _Table

ROWS = st.lists(st.tuples(st.floats(), st.booleans(), st.booleans(), st.integers(-1, 3)), max_size=30)
NAMES = ["a", "", "ä", "b"]


@given(ROWS)
def test_columns_hold_what_the_arrays_hold(rows: list[tuple[float, bool, bool, int]]) -> None:
    """Values where they hold, nulls elsewhere; what is known is a number, too."""
    values, holds, truth, codes = (
        np.array([row[place] for row in rows], dtype=kind) for place, kind in enumerate(("f8", "?", "?", "i8"))
    )
    some = [value if held else None for value, held, _, _ in rows]
    assert repr(numbers(values, holds).to_pylist()) == repr(some)
    assert known(values, holds).to_pylist() == [None if one is None or math.isnan(one) else one for one in some]
    assert truths(truth, holds).to_pylist() == [true if held else None for _, held, true, _ in rows]
    assert texts(codes, NAMES).to_pylist() == [None if code < 0 else NAMES[code] for code in codes]


@given(st.lists(st.integers(0, 5), max_size=30))
def test_texts_that_recur_are_there_once(codes: list[int]) -> None:
    """Several numbers of one text are one, and one of none is null."""
    of = ["x", None, "y", "x", "", None]
    column = texts_that_recur(np.array(codes, dtype=np.int64), of)
    assert column.to_pylist() == [of[code] for code in codes]
    assert column.dictionary.to_pylist() == ["x", "y", ""]


@given(st.lists(st.lists(st.integers(-1, 3), max_size=12), min_size=1, max_size=4), st.integers(0, 6))
def test_a_dictionary_is_that_of_its_rows(parts: list[list[int]], first: int) -> None:
    """However the rows are cut, and whatever else their dictionaries hold: the texts in use, by first use."""
    column = pa.chunked_array([texts(np.array(codes, dtype=np.int64), NAMES[::-1]) for codes in parts]).slice(first)
    plain = column.to_pylist()
    for given_as in (column, pa.chunked_array([plain], pa.string())):
        found = by_first_use(given_as)
        assert found.to_pylist() == plain
        assert found.dictionary.to_pylist() == list(dict.fromkeys(one for one in plain if one is not None))


@given(st.lists(st.integers(0, 299), max_size=300))
def test_records_are_taken_apart(rows: list[int]) -> None:
    """Fields of eight bytes and of four, of several records a row, in the order asked for."""
    kind = np.dtype([("word", "u8"), ("a", "i4"), ("b", "i4"), ("real", "f8")], align=True)
    records = np.frombuffer(np.random.default_rng(1).bytes(300 * 2 * kind.itemsize), dtype=kind).reshape(300, 2).copy()
    field, wanted = fields(records, np.array(rows, dtype=np.int64)), records[rows]
    for name in kind.names or ():
        for place in (0, 1):
            assert field(name, place).tobytes() == wanted[name][:, place].tobytes()


def test_a_frame_has_plain_texts() -> None:
    """A dictionary becomes a column of texts, nulls stay null, and nan is not null."""
    table = pa.table({"text": texts(np.array([1, -1]), ["a", "b"]), "real": numbers(np.array([math.nan, 1.0]))})
    expected = pl.DataFrame({"text": ["b", None], "real": [math.nan, 1.0]})
    assert frame(table).equals(expected)
    assert frame(table).schema == expected.schema


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    """One row more than a group holds, with texts and prices that do not recur."""
    count = ROWS_PER_GROUP + 1
    drawn = np.random.default_rng(3)
    numbered = drawn.permutation(count)
    holds = drawn.random(count) < 0.9
    return pa.table(
        {
            "setting": texts(np.zeros(count, dtype=np.int32), ["one"]),
            "note": texts(np.where(holds, numbered, -1), [f"note {number}" for number in range(count)]),
            "call_id": numbers(numbered - count // 2),
            "start_ms": numbers(numbered * 7919, holds),
            "candidates": numbers(drawn.integers(0, 3, count).astype(np.int32)),
            "price_in": numbers(drawn.random(count), holds),
            "latency_ms": known(np.where(drawn.random(count) < 0.1, np.inf, drawn.random(count)), holds),
            "tools": truths(holds, ~holds),
            "order_hash": numbers(drawn.integers(0, 2**64, count, dtype=np.uint64)),
        }
    )


def written(path: Path, *parts: pa.Table) -> Path:
    """Write rows that come in these parts."""
    table = _Table(path)
    for part in parts:
        table.add(part)
    table.finish()
    return path


def test_what_is_written_is_read_by_everybody(rows: pa.Table, tmp_path: Path) -> None:
    """Polars, DuckDB and pyarrow read every value, and more different ones than a dictionary has room for."""
    path, expected = written(tmp_path / "rows.parquet", rows), frame(rows)
    assert 8 * len(rows) > DICTIONARY_BYTES
    assert pl.read_parquet(path).equals(expected)
    assert frame(pq.read_table(path)).equals(expected)
    with duckdb.connect() as connection:
        assert connection.execute(f"FROM '{path}'").pl().equals(expected)
    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(place).num_rows for place in range(groups.num_row_groups)] == [ROWS_PER_GROUP, 1]


def test_how_rows_come_changes_no_byte(rows: pa.Table, tmp_path: Path) -> None:
    """In parts of any size, with other dictionaries, or with plain texts: the same file."""
    whole = written(tmp_path / "whole.parquet", rows).read_bytes()
    cuts = [rows.slice(first, 20_000) for first in range(0, len(rows), 20_000)]
    other = [frame(cut).to_arrow() for cut in cuts]
    mixed = pa.concat_tables([rows.slice(40_000), rows.slice(0, 40_000)])
    turned = [mixed.slice(len(rows) - 40_000), mixed.slice(0, len(rows) - 40_000)]
    for number, parts in enumerate((cuts, other, turned)):
        assert written(tmp_path / f"{number}.parquet", *parts).read_bytes() == whole
