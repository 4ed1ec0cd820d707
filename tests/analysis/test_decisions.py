import random

import polars as pl
import pytest

from analysis.decisions import DECISIONS_SCHEMA, STANDING, agreement, flip_summary, flips, verdict
from analysis.intervals import HOUR_MS, block_bootstrap
from analysis.prequential import differences, score
from replay.errors import NotComparableError, ReplayError

MONDAY_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z


def make(*rows):
    """Return a decisions frame; what a row does not say is route A, alone, recorded as such, at midnight."""
    base = {
        "setting": "now",
        "decided_ms": MONDAY_MS,
        "evidence_ms": MONDAY_MS,
        "recorded_route": "A",
        "chosen_route": "A",
        "request_class": "plain",
    }
    full = [{**dict.fromkeys(DECISIONS_SCHEMA), "call_id": 1, **base, **row} for row in rows]
    return pl.DataFrame(full, schema=DECISIONS_SCHEMA)


def two_days(seed=1):
    """Return rows of two settings over 48 hours: some flips, some of them ties, two request classes, causes."""
    rng = random.Random(seed)
    rows = []
    for call in range(480):
        at = MONDAY_MS + call * HOUR_MS // 10
        kind = rng.choice(["tools", "plain"])
        shared = {"call_id": call, "decided_ms": at, "evidence_ms": at, "request_class": kind}
        rows.append({"setting": "now", **shared, "chosen_route": "A", "margin": rng.choice([0.0, 0.5, None])})
        rows.append({"setting": "before", **shared, "chosen_route": rng.choice(["A", "A", "B", None]), "margin": 0.2})
    causes = pl.DataFrame({"call_id": range(480), "cause": [rng.choice(["price", "tools"]) for _ in range(480)]})
    return rows, causes


def one(frame, **where):
    """Return the one row of a frame with these values."""
    found = frame.filter(*(pl.col(name) == value for name, value in where.items()))
    assert found.height == 1
    return found.row(0, named=True)


def test_a_flip_shows_both_routes_as_both_settings_saw_them():
    """Scores, margins and stamps of a's and b's choice under a and under b, null outside the top three."""
    frame = make(
        {
            "chosen_route": "A",
            "margin": 0.3,
            **{"route_1": "A", "route_2": "B", "route_3": "C"},
            **{"score_1": 0.9, "score_2": 0.6, "success_rate_2": 0.5, "latency_ms_1": 120.0, "price_in_2": 3.0},
        },
        {
            "setting": "before",
            "chosen_route": "B",
            "margin": 0.1,
            **{"route_1": "C", "route_2": "B", "route_3": "D", "score_1": 0.8, "score_2": 0.7, "price_out_2": 15.0},
        },
    )
    row = one(flips(frame, "now", "before"), call_id=1)
    assert (row["chosen_a"], row["chosen_b"], row["margin_a"], row["margin_b"]) == ("A", "B", 0.3, 0.1)
    assert (row["score_a_in_a"], row["score_b_in_a"], row["score_b_in_b"], row["score_a_in_b"]) == (0.9, 0.6, 0.7, None)
    assert (row["success_rate_b_in_a"], row["latency_ms_a_in_a"]) == (0.5, 120.0)
    assert (row["price_in_b_in_a"], row["price_out_b_in_b"], row["tie"]) == (3.0, 15.0, False)


def test_no_candidate_in_one_setting_only_is_a_flip():
    """Null against a route differs, null against null does not."""
    frame = make(
        {"call_id": 1, "chosen_route": None},
        {"call_id": 2, "chosen_route": None},
        {"call_id": 1, "setting": "before"},
        {"call_id": 2, "setting": "before", "chosen_route": None},
    )
    assert flips(frame, "now", "before")["call_id"].to_list() == [1]


@pytest.mark.parametrize(("margin", "tie"), [(0.0, True), (-1e-13, True), (1e-12, False), (None, False)])
def test_a_margin_below_the_tolerance_is_a_tie(margin, tie):
    """A flip that hangs on candidate order is marked; a single candidate has no margin and is none."""
    frame = make({"margin": margin}, {"setting": "before", "chosen_route": "B", "margin": 0.5})
    assert flips(frame, "now", "before")["tie"].to_list() == [tie]


def test_summary_counts_equal_a_loop_in_plain_python():
    """Flips, ties and decisions overall, by cause, class and day equal plain counting; ties are apart."""
    rows, causes = two_days()
    found = flip_summary(make(*rows), "now", "before", causes, replicates=100)
    of_call = dict(causes.iter_rows())
    pairs = [(rows[i], rows[i + 1]) for i in range(0, len(rows), 2)]
    flipped = [(a, a["margin"] == 0.0) for a, b in pairs if a["chosen_route"] != b["chosen_route"]]

    def counts(keep):
        mine = [tie for a, tie in flipped if keep(a)]
        return mine.count(False), mine.count(True)

    everything = one(found, group="all")
    assert (everything["flips"], everything["ties"]) == counts(lambda a: True)
    assert everything["decisions"] == 480
    assert everything["share"] == everything["flips"] / 480
    for cause in ("price", "tools"):
        row = one(found, group="cause", key=cause)
        assert (row["flips"], row["ties"]) == counts(lambda a, cause=cause: of_call[a["call_id"]] == cause)
        assert row["decisions"] == 480
    tools = one(found, group="request class", key="tools")
    assert (tools["flips"], tools["ties"]) == counts(lambda a: a["request_class"] == "tools")
    assert tools["decisions"] == sum(a["request_class"] == "tools" for a, _ in pairs)
    assert found.filter(pl.col("group") == "day")["key"].to_list() == ["2026-03-02", "2026-03-03"]
    tuesday = one(found, group="day", key="2026-03-03")
    assert (tuesday["flips"], tuesday["ties"]) == counts(lambda a: a["decided_ms"] >= MONDAY_MS + 24 * HOUR_MS)


def test_the_flip_share_has_the_block_bootstrap_interval():
    """The interval is that of flips ÷ decisions over the decision instants."""
    rows, _ = two_days()
    found = one(flip_summary(make(*rows), "now", "before", replicates=200, seed=9), group="all")
    pairs = [(rows[i], rows[i + 1]) for i in range(0, len(rows), 2)]
    counted = [float(a["chosen_route"] != b["chosen_route"] and a["margin"] != 0.0) for a, b in pairs]
    times = [a["decided_ms"] for a, _ in pairs]
    spread = block_bootstrap(times, counted, [1.0] * 480, HOUR_MS, replicates=200, seed=9)
    assert (found["low"], found["high"], found["blocks"]) == (spread.low, spread.high, 48)
    assert found["low"] < found["share"] < found["high"]


def test_row_order_never_matters():
    """Shuffled decisions give identical flips, summary and agreement."""
    rows, causes = two_days(4)
    frame = make(*rows)
    mixed = frame.sample(fraction=1.0, shuffle=True, seed=3)
    assert flips(mixed, "now", "before").equals(flips(frame, "now", "before"))
    options = {"replicates": 30}
    assert flip_summary(mixed, "now", "before", causes, **options).equals(
        flip_summary(frame, "now", "before", causes, **options)
    )
    assert agreement(mixed, **options).equals(agreement(frame, **options))


def test_agreement_never_mixes_first_attempts_and_final_routes():
    """Calls whose first attempt is known are compared with it, the others with the final route, under two labels."""
    found = agreement(
        make(
            {"call_id": 1, "recorded_first_route": "A", "recorded_route": "B"},
            {"call_id": 2, "recorded_first_route": "B", "recorded_route": "A"},
            {"call_id": 3, "recorded_route": "A"},
            {"call_id": 4, "recorded_route": None},
        )
    )
    first = one(found, setting="now", label="first-attempt agreement")
    assert (first["decisions"], first["agreed"], first["share"]) == (2, 1, 0.5)
    final = one(found, setting="now", label="final-route agreement")
    assert (final["decisions"], final["agreed"], final["share"], final["low"]) == (1, 1, 1.0, None)


def test_empty_decisions_have_no_agreement_and_no_flips():
    """No rows: an empty agreement; flips between settings that are not there are refused."""
    assert agreement(make()).height == 0
    with pytest.raises(ReplayError, match="no decisions of setting 'now'"):
        flips(make(), "now", "before")


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (({}, {}, {"setting": "before"}), ReplayError, "more than once"),
        (({}, {"setting": "before", "call_id": 2}), NotComparableError, "different calls"),
    ],
)
def test_frames_that_would_give_a_wrong_count_are_refused(rows, error, message):
    """A doubled call and settings over different calls are errors."""
    with pytest.raises(error, match=message):
        flips(make(*rows), "now", "before")


def test_causes_must_name_calls_once():
    """Two causes for one call would double its flip."""
    causes = pl.DataFrame({"call_id": [1, 1], "cause": ["price", "tools"]})
    with pytest.raises(ReplayError, match="one row per flipped call"):
        flip_summary(make({}, {"setting": "before"}), "now", "before", causes)


def hourly(predictions, hours, *pairs):
    """Return hourly successes with (setting, p) predictions, the same at the attempt and as read."""
    return predictions(
        *(
            {"setting": setting, "attempt_id": i, "ts_ms": i * HOUR_MS, "p_start": p, "p_read": p}
            for i in range(hours)
            for setting, p in pairs
        )
    )


def leading(frame):
    """Return the first sentence of the verdict on now against before."""
    return verdict(score(frame), differences(frame, "now", ["before"]))[0]


def test_the_verdict_names_the_better_setting_with_its_figures(predictions):
    """An interval away from 0 gives "predicts better", for whichever of the two it is."""
    assert leading(hourly(predictions, 40, ("now", 0.9), ("before", 0.5))) == (
        "now predicts better than before as read: Brier 0.010 vs 0.250, difference −0.240 [−0.240, −0.240], "
        "40 attempts (now vs before)."
    )
    assert leading(hourly(predictions, 40, ("now", 0.5), ("before", 0.9))).startswith("before predicts better than now")


def test_the_verdict_shows_no_difference_when_the_interval_holds_0(predictions):
    """Equal predictions are not called better."""
    assert leading(hourly(predictions, 40, ("now", 0.9), ("before", 0.9))) == (
        "no difference shown between now and before as read: Brier 0.010 vs 0.010, difference 0.000 [0.000, 0.000], "
        "40 attempts."
    )


def test_the_verdict_does_not_decide_without_an_interval(predictions):
    """Under 30 blocks the numbers are given and the reason, no winner."""
    assert leading(hourly(predictions, 29, ("now", 0.9), ("before", 0.5))) == (
        "not decided between now and before as read (29 blocks of 60 min hold data; an interval needs 30): "
        "Brier 0.010 vs 0.250, difference −0.240, 29 attempts."
    )


def test_the_verdict_says_mostly_unmeasured_below_half(predictions):
    """Under half stamped, no winner is named, whatever the interval."""
    rows = []
    for i in range(100):
        shared = {"attempt_id": i, "ts_ms": i * HOUR_MS}
        stamp = 0.5 if i < 31 else None
        rows += [{"setting": "now", **shared, "p_read": stamp}, {"setting": "before", **shared, "p_read": 0.5}]
    assert leading(predictions(*rows)).startswith(
        "mostly unmeasured as read: only 31 % of attempts were stamped under now; Brier"
    )


def test_the_verdict_ends_with_the_standing_limit(predictions):
    """Whatever the figures, even none: only routes that the recorded policy chose are scored."""
    empty = predictions({"setting": "now"}, {"setting": "before", "attempt_id": 0})
    said = verdict(score(empty), differences(empty, "now", ["before"]))
    assert said[1] == "Brier at the attempt: nothing to compare, now and before have no scored attempt in common."
    assert said[-1] == STANDING


def test_the_verdict_counts_flips_causes_ties_and_agreement(predictions):
    """One sentence each for flips and agreement, with the ties apart."""
    frame = make(
        *({"call_id": i} for i in range(4)),
        {"setting": "before", "call_id": 0, "chosen_route": "B"},
        {"setting": "before", "call_id": 1, "chosen_route": "B", "margin": 0.0},
        *({"setting": "before", "call_id": i} for i in (2, 3)),
    )
    causes = pl.DataFrame({"call_id": [0, 1], "cause": ["price", "price"]})
    scores = predictions({"setting": "now"}, {"setting": "before", "attempt_id": 0})
    said = verdict(
        score(scores),
        differences(scores, "now", ["before"]),
        flip_summary(frame, "now", "before", causes),
        agreement(frame),
    )
    assert (
        "now and before choose different routes in 1 of 4 decisions, 25 %; 1 more are ties (by cause: price 1)." in said
    )
    assert "final-route agreement of before: 50 % of 4 decisions." in said
