"""Settings: what they mean, that they survive being written, and how every mistake in them is refused."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.cli import run_cli
from replay.cli.run import varied
from replay.durations import duration_ms, human, instant_ms, iso
from replay.errors import ReplayError
from replay.estimators import Count, Ema, TimeEma, ToolsNever, ToolsSticky, ToolsWindow, Window
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW, Measure, Prices, Settings, Tools, from_dict, load


def test_the_presets_are_what_the_texts_say() -> None:
    """now: 15 min windows, tools 20 in 30 min, shared. before: ema 0.2 and 0.3, sticky tools, in process."""
    now, before = load("production-now"), load("production-before")
    assert (now.reliability, now.latency) == (Measure(rule=Window(900_000)), Measure(rule=Window(900_000)))
    assert now.tools == Tools(rule=ToolsWindow(20, 1_800_000))
    assert now == replace(Settings(), name="production-now")
    assert before.reliability == Measure(rule=Ema(0.2), state="process")
    assert before.latency == Measure(rule=Ema(0.3), state="process", zero_latency="unknown")
    assert before.tools == Tools(rule=ToolsSticky(20, 1_800_000), state="process")


rules = st.one_of(
    st.builds(Window, st.integers(1, 10**9)),
    st.builds(Count, st.integers(1, 1_000)),
    st.builds(Ema, st.floats(0.01, 1)),
    st.builds(TimeEma, st.integers(1, 10**9)),
)
tools_rules = st.one_of(
    st.builds(ToolsWindow, st.integers(1, 99), st.integers(1, 10**9)),
    st.builds(ToolsSticky, st.integers(1, 99), st.integers(1, 10**9)),
    st.just(ToolsNever()),
)
rates = st.none() | st.floats(0, 1)
states = st.sampled_from(["shared", "process"])
measures = st.builds(
    Measure,
    rule=rules,
    state=states,
    exclude_kinds=st.sampled_from([(), ("a",), ("a", "b")]),
    when_cold=rates,
    when_empty=rates,
    failed_latency_ms=st.none() | st.floats(0, 1e6),
    zero_latency=st.sampled_from(["value", "unknown"]),
)
prices = st.sampled_from(
    [Prices(), Prices(mode="at", at_ms=0), Prices(mode="scaled", scale={"b": 2.0, "a": 0.5}), Prices(mode="measured")]
)
any_settings = st.builds(
    Settings,
    name=st.text(max_size=9),
    reliability=measures,
    latency=measures,
    tools=st.builds(Tools, rule=tools_rules, state=states, failed=st.sampled_from(["counted", "excluded"])),
    prices=prices,
    memo_ms=st.none() | st.integers(0, 9_999),
    visibility=st.sampled_from(["best", "lagged"]),
    lag_ms=st.lists(st.integers(0, 99), min_size=1, max_size=3).map(tuple),
    replicas=st.none() | st.integers(1, 9),
    restarts=st.sets(st.integers(0, 10**13)).map(lambda found: tuple(sorted(found))),
    honour_open_breaker_ms=st.booleans(),
    seed=st.integers(0, 99),
)


@given(chosen=any_settings)
def test_settings_survive_being_written(chosen: Settings) -> None:
    """As JSON, and again from what was read: the same settings under the same identity."""
    again = from_dict(json.loads(json.dumps(chosen.to_dict())))
    assert again == chosen
    assert again.identity == chosen.identity


@given(one=any_settings, other=any_settings)
def test_identity_is_the_meaning(one: Settings, other: Settings) -> None:
    """Two settings have the same identity exactly when they differ in their name at most."""
    assert (one.identity == other.identity) == (one == replace(other, name=one.name))


def test_ways_of_writing_the_same_have_one_identity() -> None:
    """15m or 900000 ms, 1 or 1.0, restarts and kinds in any order and repeated, mean the same."""
    one = from_dict(
        {
            "reliability": {"rule": "window", "window": "15m", "exclude_kinds": ["b", "a", "b"], "when_cold": 1},
            "restarts": ["2026-03-02", 5],
        }
    )
    other = from_dict(
        {
            "reliability": {"rule": "window", "window_ms": 900_000, "exclude_kinds": ["a", "b"], "when_cold": 1.0},
            "restarts": [5, "2026-03-02T01:00:00+01:00", 5],
        }
    )
    assert one.identity == other.identity


def test_a_settings_file_is_read(tmp_path: Path) -> None:
    """A TOML file with units, TOML's own instants, and every table; its name is the file's unless it says one."""
    file = tmp_path / "mine.toml"
    file.write_text(
        'memo = "2s"\nlag = ["0s", "250ms"]\nreplicas = 3\nrestarts = [2026-03-02T00:00:00Z]\n'
        '[reliability]\nrule = "count"\nn = 20\n[latency]\nrule = "time_ema"\ntau = "10s"\n'
        '[tools]\nrule = "never"\n[prices]\nmode = "at"\nat = "2026-03-02"\n',
        encoding="utf-8",
    )
    assert load(str(file)) == Settings(
        name="mine",
        reliability=Measure(rule=Count(20)),
        latency=Measure(rule=TimeEma(10_000)),
        tools=Tools(rule=ToolsNever()),
        prices=Prices(mode="at", at_ms=1_772_409_600_000),
        memo_ms=2_000,
        lag_ms=(0, 250),
        replicas=3,
        restarts=(1_772_409_600_000,),
    )


MISTAKES = [
    ("windw = 1", "settings has no key 'windw'"),
    ("name = 5", "settings.name is 5; expected a text"),
    ("reliability = 5", "settings.reliability is 5; expected a table"),
    ('[reliability]\nrule = "mean"', "settings.reliability.rule is 'mean'; expected one of window, count"),
    ('[reliability]\nrule = "window"', "has rule 'window' without 'window'"),
    ('[reliability]\nrule = "window"\nwindow = "0m"', "window is 0 ms; expected more than 0"),
    ('[reliability]\nrule = "window"\nwindow = "-5m"', "window is '-5m'; expected a duration of 0 or more"),
    ('[reliability]\nrule = "window"\nwindow = "soon"', "'soon' is not a duration"),
    ('[reliability]\nrule = "window"\nwindow = 1.5', "1.5 is not a duration"),
    ('[reliability]\nrule = "window"\nwindow_ms = "x"', "window_ms is 'x'; expected a whole number of ms"),
    ('[reliability]\nrule = "window"\nwindow = "15m"\nalpha = 1', "settings.reliability has no key 'alpha'"),
    ('[reliability]\nrule = "window"\nwindow = "999999999999d"', "too far for a duration"),
    ('[reliability]\nrule = "count"\nn = 2.5', "n is 2.5; expected a whole number"),
    ('[reliability]\nrule = "count"\nn = true', "n is True; expected a whole number"),
    ('[reliability]\nrule = "ema"\nalpha = "x"', "alpha is 'x'; expected a finite number"),
    ('[reliability]\nrule = "ema"\nalpha = nan', "alpha is nan; expected a finite number"),
    ('[reliability]\nrule = "ema"\nalpha = 0', "alpha is 0.0; expected more than 0"),
    ('[latency]\nrule = "ema"\nalpha = 0.3\nstate = "disk"', "state is 'disk'; expected one of shared, process"),
    ('[latency]\nrule = "ema"\nalpha = 0.3\nexclude_kinds = "timeout"', "expected a list of error kinds"),
    ('[latency]\nrule = "ema"\nalpha = 0.3\nfailed_latency_ms = "2s"', "failed_latency_ms is '2s'; expected a finite"),
    ('[reliability]\nrule = "ema"\nalpha = 0.3\nwhen_cold = 1.5', "expected success rates from 0 to 1"),
    ('[tools]\nrule = "sticky"\nmin_samples = 0\nhorizon = "30m"', "min_samples is 0; expected at least 1"),
    ('[tools]\nrule = "sticky"\nmin_samples = 20', "has rule 'sticky' without 'horizon'"),
    ('[tools]\nrule = "never"\nmin_samples = 20', "settings.tools has no key 'min_samples'"),
    ('[tools]\nrule = "never"\nfailed = "maybe"', "failed is 'maybe'; expected one of counted, excluded"),
    ('memo = "-1s"', "memo is '-1s'; expected a duration of 0 or more"),
    ('visibility = "none"', "visibility is 'none'; expected one of best, lagged"),
    ("lag = []", "settings.lag is"),
    ('lag = ["1s", "-1s"]', "settings.lag is"),
    ("replicas = 0", "replicas is 0; expected at least 1"),
    ('replicas = "three"', "replicas is 'three'; expected a whole number"),
    ('restarts = "2026-03-02"', "restarts is '2026-03-02'; expected a list of instants"),
    ("restarts = [1.5]", "1.5 is not an instant"),
    ('restarts = ["2026-03-02T10:00:00"]', "has no offset"),
    ('honour_open_breaker_ms = "false"', "expected true or false"),
    ('seed = "x"', "seed is 'x'; expected a whole number"),
    ('[prices]\nmode = "free"', "mode is 'free'; expected one of recorded, at, scaled, measured"),
    ('[prices]\nmode = "at"', 'has mode "at" without an instant'),
    ('[prices]\nmode = "scaled"', 'has mode "scaled" without factors'),
    ('[prices]\nmode = "scaled"\nscale = 5', "scale is 5; expected a table"),
    ('[prices]\nmode = "scaled"\nscale = { p = "x" }', "scale.p is 'x'; expected a finite number"),
    ('[prices]\nmode = "scaled"\nscale = { p = -1 }', "expected factors of 0 or more"),
    ('[prices]\nmode = "measured"\nmin_calls = 0', "expected both more than 0"),
    ('[prices]\nmode = "measured"\nwindow = "0s"', "expected both more than 0"),
    ("a = = 1", "is not TOML"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[said[:40] for _, said in MISTAKES])
def test_every_mistake_is_one_error(tmp_path: Path, text: str, said: str) -> None:
    """Each mistake says what was given and what was expected, as one ReplayError of one paragraph."""
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ReplayError, match=said) as error:
        load(str(file))
    assert "\n" not in str(error.value).replace("\n(at", "")
    assert error.value.exit_code == 2


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    """No such file or preset, a folder, bytes that are no text."""
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for name, said in (("production-then", "expected a TOML file or a preset"), (str(tmp_path), "no settings"),
                       (str(binary), "expected a TOML file in UTF-8")):  # fmt: skip
        with pytest.raises(ReplayError, match=said):
            load(name)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"window": "0s"}, "window is 0 ms"),
        ({"alpha": 2.0}, "alpha is 2.0"),
        ({"memo": "x"}, "not a duration"),
        ({"replicas": 0}, "replicas is 0"),
        ({"scale_price": ["p=-1"]}, "expected a factor of 0 or more"),
        ({"scale_price": ["p"]}, "expected a factor of 0 or more"),
        ({"prices": "yesterday"}, "not an instant"),
        ({"restart": ["noon"]}, "not an instant"),
    ],
)
def test_flags_are_checked_as_files_are(flags: dict[str, Any], said: str) -> None:
    """The flags of `replay run` go through the same checks."""
    with pytest.raises(ReplayError, match=said):
        varied(PRODUCTION_NOW, **flags)


def test_flags_replace_what_they_name_and_nothing_else() -> None:
    """A window replaces both rules and keeps where the state lives; the name says what was varied."""
    made = varied(PRODUCTION_BEFORE, window="5m", tools_window="10m", memo="2s", lag=["100ms", "1s"], seed=4)
    assert made == replace(
        PRODUCTION_BEFORE,
        name="production-before window=5m tools_window=10m memo=2s lag=100ms,1s seed=4",
        reliability=replace(PRODUCTION_BEFORE.reliability, rule=Window(300_000)),
        latency=replace(PRODUCTION_BEFORE.latency, rule=Window(300_000)),
        tools=Tools(rule=ToolsSticky(20, 600_000), state="process"),
        memo_ms=2_000,
        lag_ms=(100, 1_000),
        seed=4,
    )
    assert varied(PRODUCTION_NOW, scale_price=["p=1.5", "q=2"]).prices == Prices(
        mode="scaled", scale={"p": 1.5, "q": 2.0}
    )
    assert varied(PRODUCTION_NOW, prices="1970-01-01").prices == Prices(mode="at", at_ms=0)
    assert varied(PRODUCTION_NOW).identity == PRODUCTION_NOW.identity


def test_replay_settings_prints_them_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """`replay settings NAME` prints every default filled in, in the form that can be read again."""
    assert run_cli(["settings", "production-before"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("identity") == PRODUCTION_BEFORE.identity
    assert from_dict(printed) == PRODUCTION_BEFORE
    assert run_cli(["settings", "nothing"]) == 2


def test_the_shipped_presets_are_plain_toml() -> None:
    """Each preset file parses as TOML and says its own name."""
    folder = Path(__file__).parents[2] / "replay" / "presets"
    for file in sorted(folder.glob("*.toml")):
        assert tomllib.loads(file.read_text(encoding="utf-8"))["name"] == file.stem


@pytest.mark.parametrize(
    ("text", "ms"),
    [("500ms", 500), ("30s", 30_000), ("15m", 900_000), ("24h", 86_400_000), ("7d", 604_800_000), ("1.5s", 1_500),
     (" 2 s ", 2_000), ("250", 250), (250, 250)],
)  # fmt: skip
def test_durations(text: str | int, ms: int) -> None:
    """Numbers with a unit; a bare number is ms."""
    assert duration_ms(text) == ms


@pytest.mark.parametrize("text", ["", "m", "1w", "1 2s", "1e3s", "٣s", True, None, "9" * 400])
def test_no_durations(text: Any) -> None:
    """Anything else is refused by name."""
    with pytest.raises(ReplayError, match="duration"):
        duration_ms(text)


@pytest.mark.parametrize(
    "text", ["", "now", "2026-13-01", "--5", "²", 1.5, True, None, "9" * 30, "2026-03-02T10:00:00"]
)
def test_no_instants(text: Any) -> None:
    """What is no instant, or has no offset, is refused by name."""
    with pytest.raises(ReplayError, match=r"instant|offset"):
        instant_ms(text)


@given(at_ms=st.integers(0, 4 * 10**12))
def test_instants_survive_being_written(at_ms: int) -> None:
    """An instant written in UTC reads as itself."""
    assert instant_ms(iso(at_ms)) == at_ms


@given(ms=st.integers(1, 10**10))
def test_durations_survive_being_written(ms: int) -> None:
    """A duration in its largest whole unit reads as itself."""
    assert duration_ms(human(ms)) == ms
