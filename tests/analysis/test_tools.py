import math
import random

import duckdb
import polars as pl
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from analysis.tools import (
    ATTEMPTS_SCHEMA,
    condemnations,
    emission_rate,
    evidence,
    evidence_at,
    silence_chance,
    verdict,
)
from replay import queries
from replay.cli.tools import register
from replay.errors import ReplayError
from replay.estimators import ToolsSticky, ToolsWindow
from replay.ledger.mirror import open_mirror

MINUTE_MS = 60_000


def make(*rows):
    """Return attempts from (ts, asked, called) or (ts, asked, called, ok, provider) tuples."""
    full = []
    for place, (ts, asked, called, *rest) in enumerate(rows):
        ok, provider = (*rest, *(True, "p")[len(rest) :])
        full.append((place + 1, ts, provider, "m", None, ok, asked, called))
    return pl.DataFrame(full, schema=ATTEMPTS_SCHEMA, orient="row")


def awkward(seed, count=120, span_ms=400):
    """Return attempts of three routes in bursts, with ties, failures, nulls, and calls nobody asked for."""
    rng = random.Random(seed)
    providers = {"p": 0.0, "q": 0.1, None: 0.02}
    rows = []
    for place in range(count):
        provider = rng.choice(list(providers))
        asked = rng.choice([True, True, True, False, None])
        called = rng.random() < providers[provider] if rng.random() < 0.9 else None
        family = rng.choice(["m", "m", ""])
        served = rng.choice([None, ""])
        ok = rng.random() < 0.7
        rows.append((place + 1, rng.randrange(span_ms), provider, family, served, ok, asked, called))
    return pl.DataFrame(rows, schema=ATTEMPTS_SCHEMA, orient="row")


def route_of(row):
    """Return the route key of a row."""
    return f"{row['provider_id'] or ''}|{row['model_family'] or ''}|{row['served_by'] or ''}"


def condemned_at(found, at_ms):
    """Return the routes whose intervals hold an instant."""
    return set(found.filter((pl.col("from_ms") <= at_ms) & (pl.col("until_ms") > at_ms))["route_key"])


def test_the_window_rule_is_the_shared_query_at_every_instant():
    """At every millisecond, the condemned routes and their evidence are those of the unedited shared SQL."""
    frame = awkward(2, count=80, span_ms=150)
    rule = ToolsWindow(min_samples=4, window_ms=30)
    found = condemnations(frame, rule)
    incapable, counts = queries.load("tool_incapable_routes"), queries.load("tool_evidence")
    connection = duckdb.connect()
    connection.register("route_observations", frame.to_arrow())
    verdicts = set()
    for at in range(-1, 190):
        window = {"since_ms": at - 30, "until_ms": at}
        rows = connection.execute(incapable.text, incapable.bind(**window, min_samples=4)).fetchall()
        said = {"|".join(row[:3]) for row in rows}
        assert condemned_at(found, at) == said
        known = evidence_at(frame, rule, at)
        stored = connection.execute(counts.text, counts.bind(**window)).fetchall()
        assert sorted(("|".join(r[:3]), r[3], r[4], r[5]) for r in stored) == sorted(
            known.select("route_key", "requests", "failed", "emitted").rows()
        )
        assert set(known.filter("condemned")["route_key"]) == said
        verdicts |= {(key, key in said) for key in ("p|m|", "q|m|")}
    assert len(verdicts) == 4, "both routes must be condemned at some instants and not at others"


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([ToolsWindow(3, 40), ToolsSticky(3, 60), ToolsSticky(5, 30), ToolsWindow(1, 1)]),
    st.sampled_from(["counted", "excluded"]),
)
def test_intervals_equal_the_streaming_rule_at_every_instant(seed, rule, failed):
    """Sweeping gives at each instant what folding every earlier attempt and reading gives, for both rules."""
    frame = awkward(seed, count=80, span_ms=200)
    found = condemnations(frame, rule, failed=failed)
    streams = {}
    rows = sorted(frame.iter_rows(named=True), key=lambda row: (row["ts"], row["id"]))
    waiting = iter([*rows, None])
    following = next(waiting)
    for at in range(300):
        while following is not None and following["ts"] < at:
            if following["ok"] or failed == "counted":
                stream = streams.setdefault(route_of(following), rule.start())
                stream.fold(following["ts"], bool(following["tools_requested"]), bool(following["tool_calls_emitted"]))
            following = next(waiting)
        expected = {key for key, stream in streams.items() if not stream.read(at).capable}
        assert condemned_at(found, at) == expected
        if at % 20 == 0:
            known = evidence_at(frame, rule, at, failed=failed)
            assert set(known.filter("condemned")["route_key"]) == expected
            for row in known.iter_rows(named=True):
                read = streams[row["route_key"]].read(at)
                assert (row["requests"], row["emitted"]) == (read.requests, read.emitted)


def test_a_condemnation_by_hand():
    """Three silent requests at 10, 20, 30 in a window of 100: condemned from 31 until the first leaves, at 111."""
    found = condemnations(make((10, True, False), (20, True, False, False), (30, True, False)), ToolsWindow(3, 100))
    assert found.height == 1
    row = found.row(0, named=True)
    assert (row["route_key"], row["from_ms"], row["until_ms"], row["duration_ms"]) == ("p|m|", 31, 111, 80)
    assert (row["requests"], row["failed"], row["cleared_by"], row["open_at_end"]) == (3, 1, "aged out", True)
    assert (row["time_to_condemn_ms"], row["silent_before"], row["silent_during"]) == (21, 2, 0)
    assert (row["emitted_ever"], row["chance"]) == (0, None)


def test_a_tool_call_clears_and_the_silence_starts_anew():
    """Time to condemn and silent requests count from the first request after the last tool call."""
    found = condemnations(
        make(
            (0, True, True),
            *((t, True, False) for t in (50, 60, 200, 210, 220)),
            (230, True, True),
        ),
        ToolsWindow(3, 100),
    )
    row = found.row(0, named=True)
    assert found.height == 1
    assert (row["from_ms"], row["until_ms"], row["cleared_by"]) == (221, 231, "tool call")
    assert (row["time_to_condemn_ms"], row["silent_before"], row["silent_during"]) == (171, 5, 0)
    assert (row["emitted_ever"], row["open_at_end"]) == (2, True)


def test_a_second_condemnation_counts_from_the_end_of_the_first():
    """The limit cycle: forgotten, tried again, condemned again, each with its own silent requests."""
    found = condemnations(make(*((t, True, False) for t in (0, 10, 15, 200, 210))), ToolsWindow(2, 50))
    assert found.select("from_ms", "until_ms").rows() == [(11, 61), (211, 251)]
    assert found["time_to_condemn_ms"].to_list() == [11, 11]
    assert found["silent_before"].to_list() == [2, 2]
    assert found["silent_during"].to_list() == [1, 0]


def test_sticky_proves_a_route_for_good():
    """After one tool call no silence condemns; before it, a mark lasts until the horizon from the count's beginning."""
    silent = [(t, True, False) for t in range(0, 50, 10)]
    rule = ToolsSticky(3, 100)
    assert condemnations(make((-5, True, True), *silent), rule).height == 0
    marked = condemnations(make(*silent), rule).row(0, named=True)
    assert (marked["from_ms"], marked["until_ms"], marked["cleared_by"], marked["requests"]) == (21, 100, "expired", 3)
    cleared = condemnations(make(*silent, (60, False, True)), rule).row(0, named=True)
    assert (cleared["until_ms"], cleared["cleared_by"]) == (61, "tool call")


def test_a_sticky_mark_that_expires_at_once_is_no_condemnation():
    """The third request at 99 would be read from 100 on, when the mark has expired; so would one at 150."""
    for last in (99, 150):
        assert (
            condemnations(make((0, True, False), (5, True, False), (last, True, False)), ToolsSticky(3, 100)).height
            == 0
        )


def test_a_condemned_route_that_calls_tools_is_pointed_out():
    """The verdict says how many of the condemned routes are capable."""
    frame = make((0, True, True), *((t, True, False) for t in (50, 60, 200, 210, 220)))
    assert verdict(frame, ToolsWindow(3, 100))[0].endswith("; 1 of them called tools at other times.")


def test_excluded_failures_do_not_condemn():
    """Two silent and one failed request condemn only where failures count."""
    frame = make((10, True, False), (20, True, False, False), (30, True, False))
    assert condemnations(frame, ToolsWindow(3, 100), failed="counted").height == 1
    assert condemnations(frame, ToolsWindow(3, 100), failed="excluded").height == 0


def test_the_chance_of_silence_uses_the_rate_of_the_capable_routes():
    """One tool call in four requests of the capable route: (3/4)³ that three requests stay silent."""
    capable = [(t, True, t == 0, True, "q") for t in range(4)]
    frame = make(*capable, *((t, True, False) for t in (10, 20, 30)))
    assert emission_rate(frame) == 0.25
    found = condemnations(frame, ToolsWindow(3, 100)).filter(pl.col("route_key") == "p|m|").row(0, named=True)
    assert found["chance"] == 27 / 64
    assert silence_chance(0, 0.25) == 1.0
    assert emission_rate(make((1, True, False))) is None


def test_evidence_of_the_whole_ledger_by_hand():
    """Requests, failed ones, tool calls and the rate among requests; a call nobody asked for is no answer."""
    found = evidence(make((5, True, True), (6, True, False, False), (7, False, True), (9, False, False)))
    assert found.rows() == [("p|m|", 2, 1, 2, 0.5, 5, 7)]


def test_no_tools_at_all_is_said():
    """Nothing recorded about tools, or nothing recorded: empty frames and one sentence."""
    for frame in (make(), make((1, None, None), (2, False, False))):
        rule = ToolsWindow(20, 30 * MINUTE_MS)
        assert evidence(frame).height == condemnations(frame, rule).height == evidence_at(frame, rule, 10).height == 0
        assert verdict(frame, rule) == ["nothing to judge: no attempt says that it asked for tools."]


def test_row_order_never_matters():
    """Shuffled attempts give identical frames."""
    frame = awkward(9)
    mixed = frame.sample(fraction=1.0, shuffle=True, seed=5)
    for rule in (ToolsWindow(3, 60), ToolsSticky(3, 60)):
        assert condemnations(frame, rule).equals(condemnations(mixed, rule))
    assert evidence(frame).equals(evidence(mixed))


@pytest.mark.parametrize(
    ("change", "failed", "message"),
    [(lambda f: f.drop("ok"), "counted", "lack the columns"), (lambda f: f, "ignored", "counted or excluded")],
)
def test_bad_input_is_refused(change, failed, message):
    """A missing column and an unknown treatment of failures are errors."""
    with pytest.raises(ReplayError, match=message):
        evidence(change(make((1, True, True))), failed=failed)


def test_the_verdict_names_the_condemned_routes_and_the_chance():
    """Which, how often, when, on what, for how long, and how likely by chance."""
    frame = make(*((t, True, t % 2 == 0, True, "q") for t in range(10)), *((t, True, False) for t in (10, 20, 30)))
    assert verdict(frame, ToolsWindow(3, 1_000)) == [
        "1 of 2 routes asked for tools are condemned by the window rule (3 silent requests in 1s, failed attempts "
        "counted).",
        "p|m|: once, first at 1970-01-01T00:00:00.031Z on 3 requests without a tool call (0 failed); condemned for "
        "1.0 s in all; it never called a tool.",
        "A capable route calls a tool in 50 % of requests; at that rate 3 silent requests in a row happen by chance "
        "with probability 0.12.",
    ]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Give a runner of `replay tools` on a mirror that holds the given attempts."""
    monkeypatch.setenv("COLUMNS", "160")
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)

    def call(frame, *options):
        path = tmp_path / "ledger.duckdb"
        with open_mirror(path, write=True) as connection:
            connection.register("given", frame.to_arrow())
            columns = ", ".join(ATTEMPTS_SCHEMA)
            connection.execute(f"INSERT INTO route_observations ({columns}) SELECT {columns} FROM given")
        return CliRunner().invoke(app, ["tools", str(path), *options])

    return call


def test_the_command_prints_the_verdict_and_every_route(run):
    """`replay tools` on 25 silent requests: condemned under the defaults, with its evidence in the table."""
    frame = make(*((t * 1_000, True, False) for t in range(25)), (0, True, True, True, "q"))
    result = run(frame)
    assert result.exit_code == 0, result.output
    assert "1 of 2 routes asked for tools are condemned by the window rule (20 silent requests in 30m" in result.output
    line = next(line for line in result.output.splitlines() if line.startswith("p|m| "))
    assert line.split()[1:6] == ["25", "0", "0", "0.000", "1"]


def test_the_command_takes_the_rule_and_an_instant(run):
    """Options reach the rule: at an instant, a sticky rule without failures knows what it has seen by then."""
    frame = make(*((t * 1_000, True, False, t != 1) for t in range(6)))
    options = ("--min-samples", "3", "--window", "10s", "--failed", "excluded", "--rule", "sticky")
    result = run(frame, *options, "--at", "1970-01-01T00:00:04Z")
    assert result.exit_code == 0, result.output
    assert "At 1970-01-01T00:00:04Z, the sticky rule" in result.output
    assert "condemns p|m|." in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--window", "0m"), "tools window is 0 ms"), (("--at", "noon"), "'noon' is not an instant")],
)
def test_the_command_refuses_bad_options(run, options, message):
    """A window of nothing and a time that is none are ReplayErrors."""
    result = run(make((1, True, True)), *options)
    assert isinstance(result.exception, ReplayError)
    assert message in str(result.exception)


def test_the_command_refuses_a_ledger_without_attempts(run):
    """An empty ledger is told what to import."""
    result = run(make())
    assert isinstance(result.exception, ReplayError)
    assert "holds no attempts" in str(result.exception)


def test_the_chance_is_the_share_of_silent_runs_in_a_simulation():
    """(1 − p)ⁿ is what independent requests do: n = 5 at p = 0.2, 20,000 seeded runs."""
    rng = random.Random(1)
    silent = sum(all(rng.random() >= 0.2 for _ in range(5)) for _ in range(20_000)) / 20_000
    assert silence_chance(5, 0.2) == pytest.approx(silent, abs=4 * math.sqrt(0.33 * 0.67 / 20_000))
