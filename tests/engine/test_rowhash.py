"""The numbers that stand for rows: held against a definition in plain Python."""

from __future__ import annotations

import hashlib
import math
import struct

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from replay.orderhash import GOLDEN, MASK, ODD, mix
from replay.rowhash import NOTHING, RowHash, TableHash

COLUMNS = {
    "whole": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "small": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "large": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "real": (pa.float64(), st.floats()),
    "truth": (pa.bool_(), st.booleans()),
    "text": (pa.string(), st.text(max_size=20)),
}

ROWS = st.lists(
    st.fixed_dictionaries({name: st.none() | values for name, (_, values) in COLUMNS.items()}), min_size=1, max_size=8
)


def word(value: object) -> int:
    """Return the word of one value, as the module's first lines define it."""
    if value is None:
        return int(NOTHING)
    if isinstance(value, str):
        data = value.encode()
        chain = mix(len(data))
        for start in range(0, len(data), 8):
            chain = mix(chain ^ int.from_bytes(data[start : start + 8], "little"))
        return chain
    if isinstance(value, float):
        return struct.unpack("<Q", struct.pack("<d", math.nan if math.isnan(value) else value))[0]
    assert isinstance(value, int)
    return value & MASK


def of_row(row: dict[str, object]) -> int:
    """Return one row's number."""
    return (
        sum(
            mix(word(value) ^ (place * GOLDEN & MASK)) for place, value in enumerate((row[name] for name in COLUMNS), 1)
        )
        & MASK
    )


def batch(rows: list[dict[str, object]]) -> pa.RecordBatch:
    """Return rows as Arrow columns."""
    return pa.record_batch({name: pa.array([row[name] for row in rows], kind) for name, (kind, _) in COLUMNS.items()})


@given(ROWS)
def test_rows_hash_as_defined(rows: list[dict[str, object]]) -> None:
    """SHA-256 of every row's number, eight bytes each, in their order."""
    found = RowHash()
    found.update(batch(rows))
    assert found.hexdigest() == hashlib.sha256(b"".join(of_row(row).to_bytes(8, "little") for row in rows)).hexdigest()


@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 8))
def test_a_table_hashes_as_defined_in_any_order_and_cut(
    rows: list[dict[str, object]], random: object, step: int
) -> None:
    """Two sums over the rows, whatever their order and however they are cut into batches."""
    numbers = [of_row(row) for row in rows]
    sums = [sum(map(mix, numbers)) & MASK, sum(mix(one ^ ODD) for one in numbers) & MASK]
    random.shuffle(rows)  # type: ignore[attr-defined]
    found, whole = TableHash(), batch(rows)
    for start in range(0, len(rows), step):
        found.update(whole.slice(start, step))
    assert found.hexdigest() == f"{sums[0]:016x}{sums[1]:016x}"


@given(ROWS)
def test_how_texts_are_stored_does_not_matter(rows: list[dict[str, object]]) -> None:
    """A column of dictionaries, of long texts or of views hashes as the same column of plain texts."""
    plain = batch(rows)
    hashes = []
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        column = plain["text"].dictionary_encode() if pa.types.is_dictionary(kind) else plain["text"].cast(kind)
        found = RowHash()
        found.update(plain.set_column(plain.schema.get_field_index("text"), "text", column))
        hashes.append(found.hexdigest())
    assert len(set(hashes)) == 1


def test_a_row_that_is_there_twice_counts_twice() -> None:
    """Two equal rows do not cancel each other out, and nothing at all is not the same as they."""
    row = pa.record_batch({"n": [7]})
    hashes = []
    for times in range(3):
        found = TableHash()
        for _ in range(times):
            found.update(row)
        hashes.append(found.hexdigest())
    assert len(set(hashes)) == 3


@given(ROWS, st.integers(0, 7), st.integers(1, 8))
def test_cut_columns_hash_as_whole_ones(rows: list[dict[str, object]], first: int, step: int) -> None:
    """Slices, chunks and dictionaries of chunks hash as the same rows laid out anew."""
    laid = pa.table(batch(rows))
    coded = laid.set_column(laid.schema.get_field_index("text"), "text", laid["text"].dictionary_encode())
    hashes = []
    for table in (laid, coded):
        cut = pa.concat_tables([table.slice(start, step) for start in range(0, len(rows), step)]).slice(first)
        found = RowHash()
        found.update(cut)
        hashes.append(found.hexdigest())
    wanted = b"".join(of_row(row).to_bytes(8, "little") for row in rows[first:])
    assert hashes == [hashlib.sha256(wanted).hexdigest()] * 2
