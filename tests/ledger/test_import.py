from __future__ import annotations

import csv
import gzip
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from replay.errors import ReplayError
from replay.ledger.importers import import_file, load_mapping, read_mapped
from replay.ledger.mirror import open_mirror

T0 = 1_700_000_000_000
ATTEMPTS: list[dict[str, Any]] = [
    {"ts": T0, "provider_id": "p", "model_family": "m", "served_by": "", "ok": True, "latency_ms": 12.5},
    {"ts": T0 + 1, "provider_id": "p", "model_family": "m", "served_by": None, "ok": False, "latency_ms": None},
    {"ts": T0 + 1, "provider_id": "p", "model_family": "m", "served_by": None, "ok": False, "latency_ms": None},
    {"ts": T0 + 2, "provider_id": None, "model_family": "a|b", "served_by": 'q"x\ny', "ok": True, "latency_ms": 1e-7},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the form the file's name asks for; in CSV, an empty text is quoted and a null is not."""
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[1]
    if kind == "parquet":
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
        return path
    if kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        lines = [",".join(rows[0])] + [",".join(_field(value) for value in row.values()) for row in rows]
        text = "\n".join(lines) + "\n"
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def _field(value: Any) -> str:
    if value is None:
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return '"' + text.replace('"', '""') + '"' if isinstance(value, str) else text


def table(mirror: Path, name: str, columns: str = "*") -> list[tuple[Any, ...]]:
    """Return a mirror's table in the order it is stored in."""
    with open_mirror(mirror) as connection:
        return connection.execute(f"SELECT {columns} FROM {name}").fetchall()


def refused(file: Path, mirror: Path, source: Any, **options: Any) -> str:
    """Import something that must be refused, with and without a mirror there; return the error's text."""
    with pytest.raises(ReplayError) as fresh:
        import_file(file, mirror.with_name("fresh.duckdb"), source=source, **options)
    assert not mirror.with_name("fresh.duckdb").exists()
    with open_mirror(mirror, write=True):
        pass
    before = mirror.read_bytes()
    with pytest.raises(ReplayError):
        import_file(file, mirror, source=source, **options)
    assert mirror.read_bytes() == before
    return str(fresh.value)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """Where a test's mirror goes; nothing is there yet."""
    return tmp_path / "ledger.duckdb"


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_form_gives_the_same_rows(tmp_path: Path, mirror: Path, name: str) -> None:
    """CSV, JSONL (plain and packed) and Parquet bring in the same values, null and empty kept apart."""
    report = import_file(write(tmp_path / name, ATTEMPTS), mirror, source="route_observations")
    columns = "ts, provider_id, model_family, served_by, ok, latency_ms"
    assert sorted(map(repr, table(mirror, "route_observations", columns))) == sorted(
        repr(tuple(row.values())) for row in ATTEMPTS
    )
    assert (report.targets[0].read, report.targets[0].added) == (4, 4)


def test_the_form_does_not_change_identities(tmp_path: Path, mirror: Path) -> None:
    """The same ledger in another form is the same ledger: nothing is added."""
    import_file(write(tmp_path / "a.csv", ATTEMPTS), mirror, source="route_observations")
    for name in ("a.jsonl", "a.parquet"):
        report = import_file(write(tmp_path / name, ATTEMPTS), mirror, source="route_observations")
        assert (report.added, report.targets[0].present) == (0, 4)


def test_identity_is_the_documented_hash(tmp_path: Path, mirror: Path) -> None:
    """An id is 2^62 plus the low 62 bits of md5(md5(canonical values) + '#' + occurrence)."""
    rows = [{"ts": T0, "provider_id": "é", "ok": True, "latency_ms": 0.1, "error_kind": ""}] * 2
    import_file(write(tmp_path / "a.jsonl", rows), mirror, source="route_observations")
    values = {"ts": str(T0), "provider_id": "é", "ok": "true", "latency_ms": "0.10000000000000001", "error_kind": ""}
    canonical = "".join(f"route_observations.{name}={len(text)}:{text};" for name, text in values.items())
    inner = hashlib.md5(canonical.encode()).hexdigest()
    expected = {2**62 + (int(hashlib.md5(f"{inner}#{n}".encode()).hexdigest(), 16) & (2**62 - 1)) for n in (1, 2)}
    assert {row[0] for row in table(mirror, "route_observations", "id")} == expected


def test_second_import_adds_nothing(tmp_path: Path, mirror: Path) -> None:
    """A file imported again adds 0 rows and leaves tables and the record of imports as they were."""
    file = write(tmp_path / "a.csv", ATTEMPTS)
    import_file(file, mirror, source="route_observations")
    before = table(mirror, "route_observations"), table(mirror, "mirror_imports")
    assert import_file(file, mirror, source="route_observations").added == 0
    assert (table(mirror, "route_observations"), table(mirror, "mirror_imports")) == before


def test_overlapping_files_share_rows(tmp_path: Path, mirror: Path) -> None:
    """Of a second file that overlaps the first, only the new rows are added."""
    import_file(write(tmp_path / "a.csv", ATTEMPTS[:2]), mirror, source="route_observations")
    report = import_file(write(tmp_path / "b.csv", ATTEMPTS[1:]), mirror, source="route_observations")
    assert (report.targets[0].added, report.targets[0].present) == (2, 1)


def test_shuffled_rows_give_the_identical_table(tmp_path: Path, mirror: Path) -> None:
    """Two thousand rows with many exact repeats give the same table, row for row, in any order."""
    rng = random.Random(7)
    rows = [{**ATTEMPTS[0], "ts": T0 + rng.randrange(300), "ok": rng.random() < 0.5} for _ in range(2000)]
    import_file(write(tmp_path / "a.csv", rows), mirror, source="route_observations")
    rng.shuffle(rows)
    other = tmp_path / "other.duckdb"
    import_file(write(tmp_path / "b.csv", rows), other, source="route_observations")
    stored = table(mirror, "route_observations")
    assert len({row[0] for row in stored}) == 2000
    assert stored == table(other, "route_observations")


def test_native_ids_are_kept(tmp_path: Path, mirror: Path) -> None:
    """A native id stays; a row that repeats it with the same values is already there."""
    rows = [{"id": 7, **ATTEMPTS[0]}, {"id": 9, **ATTEMPTS[1]}, {"id": 7, **ATTEMPTS[0]}]
    report = import_file(write(tmp_path / "a.csv", rows), mirror, source="route_observations")
    assert [row[0] for row in table(mirror, "route_observations", "id")] == [7, 9]
    assert (report.targets[0].added, report.targets[0].present) == (2, 1)


def test_native_id_with_other_values_is_refused(tmp_path: Path, mirror: Path) -> None:
    """A mirror holds one production's ledger: an id that comes back with other values stops the import."""
    import_file(write(tmp_path / "a.csv", [{"id": 7, **ATTEMPTS[0]}]), mirror, source="route_observations")
    before = table(mirror, "route_observations")
    file = write(tmp_path / "b.csv", [{"id": 8, **ATTEMPTS[0]}, {"id": 7, **ATTEMPTS[1]}])
    with pytest.raises(ReplayError, match=r"row 2: id 7 is already in the mirror's route_observations .*\(ts, .*ok"):
        import_file(file, mirror, source="route_observations")
    assert table(mirror, "route_observations") == before


def test_native_id_twice_in_a_file_with_other_values_is_refused(tmp_path: Path, mirror: Path) -> None:
    """Two rows of one file that claim one id with different values stop the import."""
    file = write(tmp_path / "b.csv", [{"id": 7, **ATTEMPTS[0]}, {"id": 7, **ATTEMPTS[1]}])
    assert "row 2: id 7 is already in an earlier row of the file" in refused(file, mirror, "route_observations")


def test_columns_of_a_call_that_follow_from_others_are_filled(tmp_path: Path, mirror: Path) -> None:
    """A call without route_key and tokens_total gets both from its parts."""
    rows = [{"ts": 1_700_000_000, "provider_id": "p", "model_family": "m", "tokens_in": 5, "tokens_out": 7}]
    import_file(write(tmp_path / "a.csv", rows), mirror, source="calls")
    assert table(mirror, "calls", "route_key, tokens_total") == [("p|m|", 12)]


@pytest.mark.parametrize(
    ("source", "row"),
    [
        ("provider_prices", {"provider_id": "p", "model_family": "m", "price_in": -1.0, "updated_at": T0}),
        ("peer_offers", {"peer_id": "p", "service": "s", "max_concurrency": 3, "reputation": 0.5}),
        ("offer_history", {"valid_from": T0, "position": 0, "provider_id": "p", "capabilities": '{"a":true}'}),
        ("policies", {"policy_id": "x", "term": '["top"]', "declared_fields": "{}", "tiers": '["a"]'}),
        ("settings", {"settings_id": "x", "settings": "{}"}),
    ],
)
def test_the_other_native_tables(tmp_path: Path, mirror: Path, source: str, row: dict[str, Any]) -> None:
    """Prices, offers, policies and settings are imported by their own keys."""
    for added in (1, 0):
        assert import_file(write(tmp_path / "a.csv", [row]), mirror, source=source).added == added
    assert table(mirror, source, ", ".join(row)) == [tuple(row.values())]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ts": None}, "no ts (milliseconds, when the attempt ended)"),
        ({"ok": None}, "no ok (true or false)"),
        ({"provider_id": None, "model_family": ""}, "no route (neither provider_id nor model_family)"),
        ({"latency_ms": -1}, "latency_ms is negative"),
        ({"latency_ms": "nan"}, "latency_ms is not finite"),
        ({"latency_ms": "1e999"}, "latency_ms is not finite"),
    ],
)
def test_unusable_rows_are_set_aside(tmp_path: Path, mirror: Path, change: dict[str, Any], reason: str) -> None:
    """A readable row that no replay could use is counted and kept with its reason; the others go in."""
    file = write(tmp_path / "a.csv", [ATTEMPTS[0], {**ATTEMPTS[1], **change}])
    report = import_file(file, mirror, source="route_observations").targets[0]
    assert (report.read, report.added, report.rejected, report.reasons) == (2, 1, 1, {reason: 1})
    ((number, kept, source),) = table(mirror, "mirror_rejects", "row_number, reason, source")
    assert (number, kept, json.loads(source)["model_family"]) == (2, reason, {**ATTEMPTS[1], **change}["model_family"])


def test_a_call_with_negative_tokens_or_unknown_basis_is_set_aside(tmp_path: Path, mirror: Path) -> None:
    """Negative tokens and a cost basis outside the closed set make a call unusable."""
    rows = [
        {"ts": 1_700_000_000, "tokens_in": -1, "cost_basis": None},
        {"ts": 1_700_000_000, "tokens_in": 1, "cost_basis": "x"},
    ]
    report = import_file(write(tmp_path / "a.jsonl", rows), mirror, source="calls").targets[0]
    basis = "cost_basis is none of reported, computed, subscription"
    assert report.reasons == {basis: 1, "tokens_in is negative": 1}


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("ts", "soon", "a whole number of milliseconds"),
        ("ts", f"{T0}.5", "a whole number of milliseconds"),
        ("ts", "0x18BCFE56800", "a whole number of milliseconds"),
        ("ok", "maybe", "true or false"),
        ("latency_ms", "1,5", "a number"),
    ],
)
def test_an_unreadable_value_stops_the_import(
    tmp_path: Path, mirror: Path, column: str, value: str, expected: str
) -> None:
    """The error names the row (header not counted), the column, the value, what was expected, and the way on."""
    file = write(tmp_path / "a.csv", [ATTEMPTS[0], {**ATTEMPTS[1], column: value}, {**ATTEMPTS[1], column: value}])
    said = refused(file, mirror, "route_observations")
    assert f"row 2 (the header not counted), column {column}: '{value}'" in said
    assert expected in said
    assert "2 of 3 rows" in said
    assert "--reject-unreadable" in said


def test_unreadable_rows_can_be_set_aside(tmp_path: Path, mirror: Path) -> None:
    """With reject_unreadable the row is kept among the rejects and the others are imported."""
    file = write(tmp_path / "a.csv", [ATTEMPTS[0], {**ATTEMPTS[1], "ok": "maybe"}])
    report = import_file(file, mirror, source="route_observations", reject_unreadable=True).targets[0]
    assert (report.added, report.reasons) == (1, {"unreadable ok: expected true or false": 1})


@pytest.mark.parametrize(("scale", "unit"), [(1e-3, "seconds"), (1e3, "microseconds"), (1e6, "nanoseconds")])
def test_attempts_in_the_wrong_unit_are_refused(tmp_path: Path, mirror: Path, scale: float, unit: str) -> None:
    """Times that only make sense in another unit are refused, and the unit is named."""
    rows = [{**row, "ts": int(row["ts"] * scale)} for row in ATTEMPTS]
    said = refused(write(tmp_path / "a.csv", rows), mirror, "route_observations")
    assert f"read as milliseconds (the smallest is {rows[0]['ts']})" in said
    assert f"as {unit}" in said


def test_calls_in_milliseconds_are_refused(tmp_path: Path, mirror: Path) -> None:
    """A call's ts is in seconds; milliseconds are recognised."""
    said = refused(write(tmp_path / "a.csv", [{"ts": T0, "status": 200}]), mirror, "calls")
    assert "calls.ts was read as seconds" in said
    assert "as milliseconds" in said


def test_a_single_time_in_another_unit_is_set_aside(tmp_path: Path, mirror: Path) -> None:
    """One row among many with a time in seconds is a bad row, not a bad file."""
    rows = [*ATTEMPTS, {**ATTEMPTS[0], "ts": T0 // 1000}]
    report = import_file(write(tmp_path / "a.csv", rows), mirror, source="route_observations").targets[0]
    assert report.reasons == {"ts is not in milliseconds: it only makes sense as seconds": 1}


def test_a_simulated_clock_that_starts_at_zero_is_accepted(tmp_path: Path, mirror: Path) -> None:
    """Times that make sense in no unit are taken as they are."""
    rows = [{**row, "ts": row["ts"] - T0} for row in ATTEMPTS]
    assert import_file(write(tmp_path / "a.csv", rows), mirror, source="route_observations").added == 4


def test_missing_and_unknown_columns_are_named(tmp_path: Path, mirror: Path) -> None:
    """The error lists what is missing, what is unknown, its nearest, what there is and what is expected."""
    said = refused(write(tmp_path / "a.csv", [{"ts": T0, "provider": "p"}]), mirror, "route_observations")
    for part in ("Missing: ok", "provider (did you mean provider_id?)", "The file has ts, provider", "latency_ms"):
        assert part in said


@pytest.mark.parametrize("cut", [-1, -8, -12, 20])
@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
def test_a_truncated_gzip_is_refused(tmp_path: Path, mirror: Path, name: str, cut: int) -> None:
    """A gzip file that ends too soon is refused, even where only its checksum is missing."""
    file = write(tmp_path / name, ATTEMPTS * 100)
    file.write_bytes(file.read_bytes()[:cut])
    assert "truncated or damaged gzip" in refused(file, mirror, "route_observations")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"ts,ok,provider_id\n", "holds no rows"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        ("a.csv", b"ts,ok,ok\n1,true,true\n", "more than one column named ok"),
        ("a.csv", b"ts,ok,provider_id\n1,true\n", "cannot be read as CSV"),
        ("a.csv", b'ts,ok,provider_id\n1,true,"p\n', "cannot be read as CSV"),
        ("a.csv", b"ts,ok,provider_id\n1,true,\xff\xfe\n", "cannot be read as CSV"),
        ("a.csv.gz", b"ts,ok\n1,true\n", "damaged gzip"),
        ("a.jsonl", b'{"ts": 1}\n{"ts":\n', "cannot be read as JSONL"),
        ("a.jsonl", b'{"ts": 1}\n[1]\n', "row 2: expected one JSON object per line"),
        ("a.parquet", b"PAR1 not really", "cannot be read as PARQUET"),
        ("a.xlsx", b"x", "of no known form"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, mirror: Path, name: str, content: bytes, part: str) -> None:
    """A file that is empty, broken or of another form is refused in a sentence, and nothing is changed."""
    file = tmp_path / name
    file.write_bytes(content)
    assert part in refused(file, mirror, "route_observations")


def test_a_missing_file_is_refused(tmp_path: Path, mirror: Path) -> None:
    """A file that does not exist is named."""
    assert "none.csv cannot be read: No such file" in refused(tmp_path / "none.csv", mirror, "calls")


@pytest.mark.parametrize("name", ["a[1]*?.csv", "it's.csv", "a[1].jsonl", "a*.parquet"])
def test_a_path_is_no_pattern(tmp_path: Path, mirror: Path, name: str) -> None:
    """Signs that DuckDB takes for patterns or quotes are parts of a file's name."""
    write(tmp_path / ("a11x." + name.rsplit(".", 1)[1]), ATTEMPTS[:1])
    assert import_file(write(tmp_path / name, ATTEMPTS), mirror, source="route_observations").added == 4


def test_an_unknown_source_is_refused(tmp_path: Path, mirror: Path) -> None:
    """A source that is neither table nor mapping is answered with the nearest and all that exist."""
    said = refused(write(tmp_path / "a.csv", ATTEMPTS), mirror, "route_observation")
    assert "did you mean route_observations?" in said
    assert "litellm" in said


MAPPING = """
zone = "Europe/Berlin"
origin = "2024-01-01T00:00:00+01:00"
[calls]
ts = { column = "t", as = "relative_seconds", plus_seconds = "took" }
usage_event_id = { row_id = true }
latency_ms = { column = "took", as = "s_to_ms" }
provider_id = { constant = "p" }
requested_model = { column = "m", prefix = "family:" }
cost_basis = { column = "cost", map = {}, default = "computed" }
[route_observations]
ts = { column = "when", as = "iso" }
ok = { column = "outcome", map = { good = true, bad = false } }
error_kind = { column = "outcome", map = { good = "", bad = "server_error" } }
model_family = { column = "m", null = ["?"] }
provider_id = { constant = "p" }
request_id = { row_id = true }
started_at = { column = "t_ms", as = "milliseconds", optional = true }
"""
MAPPED = [
    {"t": 1.5, "took": 0.75, "when": "2024-07-01T12:00:00", "outcome": "good", "m": "x", "cost": 0},
    {"t": 2, "took": None, "when": "2024-01-01 00:00:00.999+10:00", "outcome": "bad", "m": "?", "cost": None},
]


def mapping_file(tmp_path: Path, text: str = MAPPING) -> Path:
    """Write a mapping and return its path."""
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_mapping_feeds_two_tables(tmp_path: Path, mirror: Path) -> None:
    """Every conversion at once, worked out by hand: instants, durations, maps, prefixes, nulls, linked rows."""
    report = import_file(write(tmp_path / "a.csv", MAPPED), mirror, source=mapping_file(tmp_path))
    origin = 1_704_063_600
    calls = table(mirror, "calls", "ts, latency_ms, provider_id, requested_model, cost_basis")
    assert calls == [(origin + 2, 750.0, "p", "family:x", "computed"), (origin + 2, None, "p", "family:?", None)] or (
        calls == [(origin + 2, None, "p", "family:?", None), (origin + 2, 750.0, "p", "family:x", "computed")]
    )
    attempts = table(mirror, "route_observations", "ts, ok, error_kind, model_family, started_at")
    assert attempts == [
        (1_704_031_200_999, False, "server_error", None, None),
        (1_719_828_000_000, True, None, "x", None),
    ]
    assert {row[0] for row in table(mirror, "calls", "usage_event_id")} == {
        row[0] for row in table(mirror, "route_observations", "request_id")
    }
    assert report.mapping.startswith("mine@")


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("[calls]", "[cals]", "cals (did you mean calls?)"),
        ("latency_ms =", "latency =", "latency (did you mean latency_ms?)"),
        ('as = "s_to_ms"', 'as = "hours"', "expected one of seconds"),
        ('{ column = "when", as = "iso" }', '"when"', "is an instant"),
        ('ts = { column = "when", as = "iso" }\n', "", "is given no ts (milliseconds"),
        ("row_id = true", "row_id = true, constant = 1", "exactly one of"),
        ("constant", "konstant", "konstant (did you mean constant?)"),
        ("Europe/Berlin", "Europe/Bonn", "no IANA time zone"),
        ("00:00:00+01:00", "00:00:00", "has no offset"),
        ('origin = "2024-01-01T00:00:00+01:00"\n', "", "declare origin"),
        ("[calls]", "[calls", "not valid TOML"),
        ('"m", prefix', '"model", prefix', "lacks columns that the mapping"),
    ],
)
def test_a_wrong_mapping_is_refused(tmp_path: Path, mirror: Path, old: str, new: str, part: str) -> None:
    """A mapping that cannot mean anything is refused with the entry that is wrong and what is possible."""
    assert old in MAPPING
    path = mapping_file(tmp_path, MAPPING.replace(old, new))
    assert part in refused(write(tmp_path / "a.csv", MAPPED), mirror, path)


def test_a_time_without_offset_needs_a_zone(tmp_path: Path, mirror: Path) -> None:
    """Without a declared zone, a naive time is unreadable and the error says what to declare."""
    path = mapping_file(tmp_path, MAPPING.replace('zone = "Europe/Berlin"', ""))
    assert "or declare zone in the mapping" in refused(write(tmp_path / "a.csv", MAPPED), mirror, path)


def test_a_value_outside_the_map_is_refused(tmp_path: Path, mirror: Path) -> None:
    """A value that a map without default does not list stops the import."""
    rows = [MAPPED[0], {**MAPPED[1], "outcome": "ugly"}]
    said = refused(write(tmp_path / "a.csv", rows), mirror, mapping_file(tmp_path))
    assert "row 2" in said
    assert "'ugly'" in said
    assert "one of good, bad" in said


def test_prices_per_token_are_shifted_without_rounding(tmp_path: Path) -> None:
    """USD per token becomes USD per million tokens by moving the decimal point, in either notation."""
    path = mapping_file(
        tmp_path,
        '[price_events]\nts_ms = { column = "t", as = "seconds" }\nmodel = "m"\nevent = { constant = "listed" }\n'
        'price_in = { column = "p", as = "per_token", null = ["-1"] }\n',
    )
    prices = ["0.00000035", "3.5e-07", "-1", None, "-2"]
    rows = [{"t": f"170000000{index}.25", "m": "x", "p": price} for index, price in enumerate(prices)]
    frame, rejects = read_mapped(write(tmp_path / "a.jsonl", rows), path, "price_events")
    assert frame["price_in"].to_list() == [0.35, 0.35, None, None]
    assert frame["ts_ms"].to_list() == [1_700_000_000_250, 1_700_000_001_250, 1_700_000_002_250, 1_700_000_003_250]
    assert [(reject.row_number, reject.reason) for reject in rejects] == [(5, "price_in is negative")]


def test_price_events_do_not_go_into_a_mirror(tmp_path: Path, mirror: Path) -> None:
    """A price list is no ledger: the error points to the command that reads it."""
    text = (
        '[price_events]\nts_ms = { column = "ts", as = "milliseconds" }\nmodel = "model_family"\n'
        'event = { constant = "x" }\n'
    )
    said = refused(write(tmp_path / "a.csv", ATTEMPTS), mirror, mapping_file(tmp_path, text))
    assert "replay prices" in said


def test_a_loaded_mapping_can_be_given(tmp_path: Path, mirror: Path) -> None:
    """A mapping that is already loaded imports like its file."""
    loaded = load_mapping(mapping_file(tmp_path))
    assert import_file(write(tmp_path / "a.csv", MAPPED), mirror, source=loaded).added == 4


def test_an_open_transaction_is_rolled_back(tmp_path: Path, mirror: Path) -> None:
    """A refused import on the caller's connection leaves that connection usable and its tables unchanged."""
    file = write(tmp_path / "a.csv", [ATTEMPTS[0], {**ATTEMPTS[1], "ok": "maybe"}])
    with open_mirror(mirror, write=True) as connection:
        with pytest.raises(ReplayError):
            import_file(file, connection, source="route_observations")
        assert connection.execute("SELECT count(*) FROM route_observations").fetchone() == (0,)


def test_text_is_read_as_rfc_4180(tmp_path: Path, mirror: Path) -> None:
    """A byte order mark, CRLF, quoted newlines and blank lines at the end are read as they are meant."""
    file = tmp_path / "a.csv"
    file.write_bytes(b'\xef\xbb\xbfts,ok,model_family\r\n1700000000000,true,"a\r\nb"\r\n\r\n')
    import_file(file, mirror, source="route_observations")
    assert table(mirror, "route_observations", "model_family") == [("a\r\nb",)]


def test_csv_written_by_python_matches(tmp_path: Path, mirror: Path) -> None:
    """The csv module's own output is read back unchanged, commas, quotes and newlines included."""
    texts = ['a,"b"', "line\nbreak", "ä€😀", " spaced "]
    file = tmp_path / "a.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerows([["ts", "ok", "model_family"], *([T0 + n, True, text] for n, text in enumerate(texts))])
    import_file(file, mirror, source="route_observations")
    assert [row[0] for row in table(mirror, "route_observations", "model_family")] == texts


def test_one_thread_gives_the_same_table(tmp_path: Path, mirror: Path) -> None:
    """The number of threads changes nothing."""
    file = write(tmp_path / "a.csv", [{**ATTEMPTS[0], "ts": T0 + n % 50} for n in range(500)])
    import_file(file, mirror, source="route_observations")
    other = tmp_path / "other.duckdb"
    with open_mirror(other, write=True) as connection:
        connection.execute("SET threads = 1")
        import_file(file, connection, source="route_observations")
    assert table(mirror, "route_observations") == table(other, "route_observations")
